"""What a transformers configuration says of the task: ours, and nothing of the one that its weights came from.

Owns the keys of config.json and generation_config.json that libraries read to know what a model answers, how it pads
and where it stops. Called by `transformers_models` before a model is built, and by `export` when it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

OF_ANOTHER_TASK = (
    "auto_map", "custom_pipelines", "finetuning_task", "function_to_apply", "return_all_scores", "task_specific_params",
)  # fmt: skip
"""Of the source's task, or of code that came with it: pipelines would act on them."""
NUM_LABELS = 2
"""transformers' own default, which no file mentions; of a task without labels."""


def describe(config: Any, labels: list[str] | None) -> None:
    """Make the configuration that of a model that chooses one of ``labels``, or of one without labels."""
    for one in _with_parts(config):
        for key in OF_ANOTHER_TASK:
            if key in vars(one):
                delattr(one, key)
        one.problem_type = None
    if labels is None:
        config.num_labels = NUM_LABELS
        return
    config.problem_type = "single_label_classification"
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}


def set_padding(config: Any, pad_token_id: int) -> None:
    """Let the configuration, and that of its text, say which token pads."""
    for one in (config, config.get_text_config()):
        if hasattr(one, "pad_token_id"):
            one.pad_token_id = pad_token_id


def finish(module: Any, source: str, processor: Any) -> None:
    """Make the configuration of a model that is exported that of its weights, which are plain tensors of one dtype."""
    config = module.config
    config.name_or_path = source
    if (pad_token_id := getattr(processor, "pad_token_id", None)) is not None:
        set_padding(config, pad_token_id)
    for one in _with_parts(config):
        one.dtype = module.dtype
        if "quantization_config" in vars(one):
            del one.quantization_config


def generation(module: Any, found: Any, tokenizer: Any, *, ends: bool) -> Any:
    """How the exported language model generates: as its source did, padding with our token and ending at it.

    Args:
        found: the source's generation configuration; None: it has none.
        ends: whether the tokenizer's end token was put after the texts that it was trained on, if there is one.
    """
    config = found or module.generation_config
    is_as_published = getattr(config, "_original_object_hash", None) == hash(config)
    if (pad_token_id := getattr(tokenizer, "pad_token_id", None)) is not None:
        config.pad_token_id = pad_token_id
    end = getattr(tokenizer, "eos_token_id", None)
    if ends and end is not None:
        known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        if end not in known:
            others = [one for one in known if one is not None and one < len(tokenizer)]
            config.eos_token_id = [end, *others] if others else end
        module.config.get_text_config().eos_token_id = config.eos_token_id
    if is_as_published:  # transformers saves what was published whatever it thinks of it, but not what was changed
        config._original_object_hash = hash(config)
    return config


def _with_parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside of it, such as that of a multimodal model's text."""
    yield config
    for key in getattr(config, "sub_configs", {}):
        inner = getattr(config, key, None)
        if inner is not None:
            yield from _with_parts(inner)
