"""Tiny configurations of every architecture that transformers ships for the task kinds that are built.

Owns how a configuration class's own defaults are made small: widths, depths, vocabularies and experts by their usual
names, in nested configurations too, and what single architectures need beyond that. Called by `families`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers.models.auto import configuration_auto, modeling_auto

KINDS = {
    "text-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
WIDTH, HEADS, LAYERS = 32, 4, 3
SMALL: dict[str, Any] = {
    "hidden_size": WIDTH, "d_model": WIDTH, "n_embd": WIDTH, "dim": WIDTH, "emb_dim": WIDTH, "embed_dim": WIDTH,
    "embedding_size": WIDTH, "word_embed_proj_dim": WIDTH, "projection_dim": WIDTH, "vision_embed_dim": WIDTH,
    "num_attention_heads": HEADS, "n_head": HEADS, "n_heads": HEADS, "num_heads": HEADS, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": WIDTH // HEADS, "d_kv": WIDTH // HEADS,
    "kv_channels": WIDTH // HEADS, "attention_head_size": WIDTH // HEADS,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS, "encoder_layers": LAYERS,
    "decoder_layers": LAYERS, "num_decoder_layers": LAYERS, "num_encoder_layers": LAYERS,
    "intermediate_size": 2 * WIDTH, "ffn_dim": 2 * WIDTH, "d_ff": 2 * WIDTH, "n_inner": 2 * WIDTH,
    "encoder_ffn_dim": 2 * WIDTH, "decoder_ffn_dim": 2 * WIDTH, "d_inner": 2 * WIDTH, "dff": 2 * WIDTH,
    "ffn_hidden_size": 2 * WIDTH, "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH,
    "shared_intermediate_size": WIDTH, "intermediate_size_mlp": 2 * WIDTH, "mlp_hidden_size": 2 * WIDTH,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_num_experts": 4,
    "moe_topk": 2, "moe_k": 2, "moe_top_k": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "vocab_size": 256, "max_position_embeddings": 128, "n_positions": 128, "n_ctx": 128, "max_seq_len": 128,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
"""Attribute -> value, where a configuration has it."""


def shrink(config: Any) -> Any:
    """A tiny configuration of the same class."""
    sizes = config.to_dict()
    changed: dict[str, Any] = {}
    attribute_map = getattr(type(config), "attribute_map", {})
    for name in {*sizes, *attribute_map}:
        if name in SMALL and sizes.get(name, getattr(config, name, None)) is not None:
            changed[attribute_map.get(name, name)] = SMALL[name]
    return changed


def of_type(model_type: str) -> type[Any]:
    return configuration_auto.CONFIG_MAPPING[model_type]


def names(kind: str) -> Iterator[str]:
    yield from KINDS[kind]


def config(kind: str, model_type: str) -> Any:
    """The tiny configuration of an architecture for a task kind."""
    cls = of_type(model_type)
    made = _made(cls)
    return made


def _made(cls: type[Any]) -> Any:
    default = cls()
    changed = shrink(default)
    for name in default.sub_configs:
        sub = getattr(default, name, None)
        if sub is not None:
            changed[name] = _made(type(sub)).to_dict()
    return cls(**changed)
