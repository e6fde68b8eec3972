"""How texts of different lengths share a batch of a transformers model without changing one another's answers.

Owns the side that is filled up, the side that an exported tokenizer fills up, and the models that cannot do it: those
are refused, since a text would be answered otherwise alone than beside a longer one. tests/unit/test_padding.py walks
the architectures that transformers ships and fails where one differs from these tables. Called by
`transformers_processors` and `tasks.tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

Side = Literal["left", "right"]

LEFT_CLASSIFIERS = ("xlnet",)
"""Their head reads the last token whatever the mask says. All others are filled up on the right: encoders read the
first token, decoders the last that is not padding, and positions then count from the first token."""

COUNT_PADDING = (
    "bart", "beam", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot",
    "blenderbot-small", "ctrl", "deepseek_v4", "electra", "ernie", "git", "gpt2", "gpt_bigcode", "gpt_neo", "marian",
    "mbart", "megatron-bert", "mvp", "openai-gpt", "pegasus", "plbart", "recurrent_gemma", "rembert", "roc_bert",
    "rwkv", "trocr", "whisper", "xglm",
)  # fmt: skip
"""Language models whose plain forward gives tokens after padding other positions, or carries padding in its state."""

MIXES_PADDING: Mapping[tuple[str, str], str] = {
    ("text-classification", "canine"): "it pools neighbouring characters, padding among them",
    ("text-classification", "convbert"): "its convolutions run over padding",
    ("text-classification", "fnet"): "its Fourier transform has no mask for padding",
    ("text-classification", "funnel"): "it pools neighbouring tokens, padding among them",
    ("text-classification", "mra"): "its attention is approximated by blocks, padding among them",
    ("text-classification", "nystromformer"): "its attention goes through segments of the padded length",
    ("text-classification", "reformer"): "its attention sorts tokens into chunks, padding among them",
    ("text-classification", "t5gemma"): "its head reads another position of a text that padding follows",
    ("text-classification", "t5gemma2"): "its head reads another position of a text that padding follows",
    ("text-classification", "yoso"): "its attention is normalised over padding too",
    ("causal-lm", "prophetnet"): "it predicts several tokens ahead, over padding too",
    ("causal-lm", "reformer"): "its attention sorts tokens into chunks, padding among them",
}
"""(task kind, model type) -> why its answers depend on how much padding follows."""

POSITIONS_FROM_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types whose first ``pad_token_id + 1`` positions are not for tokens."""


def training_side(kind: str, config: Any) -> Side:
    """Where batches are filled up, whatever the source's tokenizer prefers.

    Args:
        kind: of the task.
        config: of the model; None: a model without one.
    """
    is_left = kind == "text-classification" and getattr(config, "model_type", None) in LEFT_CLASSIFIERS
    return "left" if is_left else "right"


def exported_side(kind: str, config: Any, own: Side) -> Side:
    """Where the exported tokenizer fills up, so that plain transformers gives a text the same logits in any batch.

    A language model keeps its source's side, ``own``, which is the left one for generating batches, unless its plain
    forward then counts the padding.
    """
    if kind == "causal-lm" and own == "left" and getattr(config, "model_type", None) not in COUNT_PADDING:
        return "left"
    return training_side(kind, config)


def refusals(kind: str, config: Any, pad_token_id: int, max_length: int) -> Iterator[str]:
    """Why a text's answer would depend on its batch, and what to do; each begins with the recipe's key."""
    if config is None:
        return
    model_type, text = config.model_type, config.get_text_config()
    why = MIXES_PADDING.get((kind, model_type))
    if why is not None:
        yield (
            f"model.source: {model_type} answers a text otherwise alone than beside a longer one: {why}; "
            "choose a model that masks padding, such as BERT or Llama"
        )
    longest, why = _longest(text)
    if longest is not None and max_length > longest:
        yield (
            f"data.max_length {max_length}: {model_type} answers a text otherwise beside one of more than {longest} "
            f"tokens: {why}; set it to {longest} or less"
        )
    own = getattr(text, "pad_token_id", None)
    if model_type in POSITIONS_FROM_PADDING and own is not None and own != pad_token_id:
        yield (
            f"model.source: the tokenizer pads with token {pad_token_id}, and {model_type} counts positions from "
            f"pad_token_id {own} of its config.json; make them agree"
        )
    ends = getattr(text, "eos_token_id", None)
    reads_end = kind == "text-classification" and config.is_encoder_decoder
    if reads_end and pad_token_id in (ends if isinstance(ends, list) else [ends]):
        yield (
            f"model.source: the head of {model_type} finds a text's end by token {pad_token_id}, which pads too; set "
            "another pad_token in the model's tokenizer_config.json"
        )


def _longest(config: Any) -> tuple[int | None, str]:
    """Tokens up to which a text's own length decides how it is computed, and what changes beyond; None: no limit."""
    if getattr(config, "attention_type", None) == "block_sparse":
        attended = (5 + 2 * config.num_random_blocks) * config.block_size
        return attended, "its attention is then sparse (attention_type of its config.json)"
    if getattr(config, "index_topk", None):
        return int(config.index_topk), "its attention then drops tokens (index_topk of its config.json)"
    found = [
        rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
        for rope in _ropes(config)
        if str(rope.get("rope_type")) in ("dynamic", "longrope")
    ]
    longest = min((int(one) for one in found if one), default=None)
    return longest, "its rotary positions are then scaled (rope_parameters of its config.json)"


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary settings: one map, or one for each kind of layer."""
    ropes = getattr(config, "rope_parameters", None) or {}
    if not isinstance(ropes, dict):
        return []
    return [ropes] if "rope_type" in ropes else [rope for rope in ropes.values() if isinstance(rope, dict)]
