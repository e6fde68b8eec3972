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
    "num_attention_heads": HEADS, "n_head": HEADS, "n_heads": HEADS, "num_heads": HEADS,
        "encoder_attention_heads": HEADS,
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
    "hidden_size_global": WIDTH, "encoder_hash_byte_group_vocab": 300,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
"""Attribute -> value, where a configuration has it."""


MLA = {"num_key_value_heads": HEADS, "head_dim": 8, "qk_head_dim": 16}
"""Latent attention, where keys and values have as many heads as queries."""
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_stages": 4, "image_size": 64, "patch_size": 4}
WINDOWS = {"embed_dim": 8, "depths": [2, 2, 4], "num_heads": [1, 2, 4], "window_size": 4, "patch_size": 2}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash",
         "minicpm3", "mistral4", "youtu", "kimi_linear", "bailing_hybrid"),
        MLA,
    ),
    "deepseek_v2": MLA | {"num_experts_per_tok": 2}, "falcon": {"num_kv_heads": 2},
    "mistral4": MLA | {"head_dim": 16},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2}, "dots3_note_text": {"num_key_value_heads": HEADS},
    "cohere_compass_text": {"rope_parameters": {kind: {"rope_type": "default",
        "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}},
    "esmc": {"num_key_value_heads": HEADS},
    "esm": {"vocab_size": 256, "mask_token_id": 3},
    "bamba": MAMBA2, "granitemoehybrid": MAMBA2 | {"layer_types": ["mamba", "attention", "mamba"]},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8},
    "mamba": {"state_size": 8, "time_step_rank": 4, "intermediate_size": 64},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4, "intermediate_size": 64},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
              "attention_head_dim": 16, "attention_hidden_size": 64, "n_mamba_heads": 2, "mamba_d_state": 8,
              "mamba_dt_rank": 4},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
               "attention_head_dim": 16, "attention_hidden_size": 64, "n_mamba_heads": 8, "mamba_headdim": 8,
               "mamba_d_state": 8, "mamba_ngroups": 1, "chunk_size": 8, "num_mem_blocks": 1,
               "hybrid_layer_ids": [1, 3]},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8, "chunk_size": 8},
    "rwkv": {"attention_hidden_size": WIDTH, "context_length": 128},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "input_size": 32},
    "lilt": {"hidden_size": 48},
    "reformer": {"axial_pos_shape": [4, 6], "axial_pos_embds_dim": [16, 16], "is_decoder": False,
                 "attn_layers": ["local", "lsh", "local"], "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8},
    "t5": {"decoder_start_token_id": 0}, "mt5": {"decoder_start_token_id": 0}, "umt5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "zaya": {"num_experts_per_tok": 1},
    "gemma3n_text": {"num_hidden_layers": 5, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 256,
                     "hidden_size_per_layer_input": 8, "laurel_rank": 4, "layer_types": None,
                     "activation_sparsity_pattern": [0.0] * 5},
    "gemma4_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 8},
    "convnext": STAGES, "convnextv2": STAGES, "focalnet": WINDOWS, "swin": WINDOWS, "swinv2": WINDOWS,
    "donut-swin": WINDOWS, "dinat": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    "bit": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "num_groups": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1]},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "groups_width": 8},
    "cvt": {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "efficientnet": {"width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 256, "image_size": 64},
    "hgnet_v2": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1],
                 "stem_channels": [3, 8, 8], "stage_in_channels": [8, 8, 16, 16], "stage_mid_channels": [8, 8, 8, 8],
                 "stage_out_channels": [8, 16, 16, 32], "stage_num_blocks": [1, 1, 2, 1]},
    "hiera": {"embed_dim": 8, "image_size": [64, 64], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]},
    "levit": {"hidden_sizes": [16, 32, 32], "num_attention_heads": [2, 4, 4], "depths": [2, 2, 2], "key_dim": [8, 8, 8],
              "image_size": 64, "patch_size": 16},
    "pvt": {"image_size": 64, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1,
        2, 4]},
    "pvt_v2": {"image_size": 64, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1,
        1, 2, 4]},
    "segformer": {"image_size": 64, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 4], "decoder_hidden_size": 16},
    "poolformer": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 3, 1]},
    "swiftformer": {"depths": [1, 1, 3, 1], "embed_dims": [8, 16, 24, 32], "image_size": 64},
    "mobilenet_v1": {"depth_multiplier": 0.25}, "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": {"image_size": 64, "patch_size": 2, "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
        "hidden_sizes": [16, 16, 16]},
    "mobilevitv2": {"image_size": 64, "patch_size": 2}, "textnet": {"image_size": 64},
    "imagegpt": {"image_size": 8},
    "perceiver": {"num_latents": 16, "d_latents": 32, "d_model": 32, "num_self_attends_per_block": 3,
        "max_position_embeddings": 128},
}  # fmt: skip
"""Model type -> what it needs beyond `SMALL`."""


def shrink(config: Any) -> dict[str, Any]:
    """Changes that make a configuration of the same class tiny."""
    changed: dict[str, Any] = {}
    attribute_map = getattr(type(config), "attribute_map", {})
    for name, value in SMALL.items():
        try:
            now = getattr(config, name)
        except (AttributeError, KeyError, ValueError):
            continue
        except Exception as error:  # a size that differs by layer
            if "PerLayer" not in type(error).__name__:
                raise
            now = 0
        is_derived = isinstance(getattr(type(config), name, None), property) and name not in attribute_map
        optional = name.endswith("_token_id") or name == "head_dim"
        if not is_derived and ((now is None and optional) or (isinstance(now, int) and not isinstance(now, bool))):
            changed[attribute_map.get(name, name)] = value
    return changed


def config(kind: str, model_type: str) -> Any:
    """The tiny configuration of an architecture for a task kind."""
    made = _made(configuration_auto.CONFIG_MAPPING[model_type])
    if kind == "causal-lm" and getattr(made, "is_decoder", None) is False:
        made.is_decoder = True
    made.architectures = []
    return made


def _made(cls: type[Any]) -> Any:
    try:
        default = cls()
    except Exception:
        default = cls(**OWN.get(cls.model_type, {}))
    changed = shrink(default)
    for name in default.sub_configs:
        sub = getattr(default, name, None)
        if sub is not None:
            changed[name] = _made(type(sub)).to_dict()
    return cls(**changed | OWN.get(cls.model_type, {}))


def names(kind: str) -> Iterator[str]:
    """Model types of a task kind."""
    yield from KINDS[kind]
