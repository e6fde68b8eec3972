"""transformers' Auto models: from the hub, a folder, a package or a GGUF file, with pretrained or random weights.

Owns the configuration (labels, dropout), the loading of weights, and what is done about those that are missing. Called
by `models`.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from launcher.errors import UserError
from launcher.models import architecture, own_task
from launcher.models.dropout import override_config, override_modules, require_dropout
from launcher.models.on_disk import stored_dtype, widen
from launcher.models.transformers_processors import tokenizer
from launcher.models.transformers_source import explained, gguf_arguments, locate, original_configuration, quiet
from launcher.recipe import CausalLM, ImageClassification, Model, Task, TextClassification

log = logging.getLogger(__name__)
AUTO_CLASSES = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "image-classification": transformers.AutoModelForImageClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
}
"""Task kind -> the class that gives the model the task's head."""


def configuration(model: Model, task: Task, labels: list[str] | None, recipe_dir: Path) -> Any:
    """The model's configuration with the task's labels and the recipe's dropout.

    Raises:
        UserError: no such model, or one that needs code of its own, or that has no dropout to override.
        EnvironmentProblem: the hub cannot be reached.
    """
    config = original_configuration(model, recipe_dir)
    own_task.describe(config, labels)
    if config.architectures is None:  # transformers goes through them where there are several classes, as for DeiT
        config.architectures = []
    if isinstance(task, ImageClassification) and task.image_size is not None and model.weights == "random":
        config.image_size = task.image_size
    if model.dropout is not None:
        require_dropout(len(override_config(config, model.dropout)), model.source, model.dropout)
    return config


def build(config: Any, model: Model, task: Task) -> Any:
    """A model of this configuration in fp32, with the library's own initialisation from torch's global generator.

    Raises:
        UserError: transformers has no such task for this architecture.
    """
    with explained(model):
        module = AUTO_CLASSES[task.kind].from_config(config, dtype=torch.float32, trust_remote_code=False)
    _finish(module, model, task)
    return module


def load_start(
    config: Any, model: Model, task: Task, recipe_dir: Path, head_of: Any, *, stay_on_disk: bool = False
) -> tuple[nn.Module, tuple[str, ...], bool]:
    """The pretrained model, its head, and whether that head is new; draws from torch's global generator.

    In fp32; to ``stay_on_disk``, what came from the files may have their narrower dtype, and be mapped from them.

    Raises:
        UserError: the weights are not of this architecture, or have no values for most of it.
        EnvironmentProblem: the hub cannot be reached.
    """
    location = locate(model, recipe_dir)
    is_plain = not model.gguf_file and getattr(config, "quantization_config", None) is None

    def load(dtype: torch.dtype) -> Any:
        return AUTO_CLASSES[task.kind].from_pretrained(
            location,
            config=config,
            dtype=dtype,
            revision=model.revision,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **gguf_arguments(model),
        )

    with explained(model), quiet():
        dtype = stored_dtype(location, model.revision) if stay_on_disk and is_plain else torch.float32
        drawn = torch.get_rng_state()
        module, loaded = load(dtype)
        if dtype is not torch.float32:
            torch.set_rng_state(drawn)
            if _computes_buffers(module):  # in the narrow dtype, so of other values
                module, loaded = load(torch.float32)
            else:
                _widen_whatis_new(module)
    _forget_quantization(module)
    _finish(module, model, task)
    head: tuple[str, ...] = head_of(module)
    is_head_new = _check_loaded(module, loaded, head, model)
    has_labels = not isinstance(task, CausalLM)
    if not is_head_new and has_labels and not same_labels(original_configuration(model, recipe_dir), config):
        log.info("%s: the head (%s) is for other labels; it starts anew", model.source, ", ".join(head))
        widen(module, architecture.names_under(module, head))
        _initialise_again(module, head)
        is_head_new = True
    return module, head, is_head_new


def set_padding(module: Any, task: Task, model: Model, recipe_dir: Path) -> None:
    """Tell a classifier that reads the last token (GPT, Llama) which token pads: the tokenizer's, whatever its own
    configuration says.

    After the model is built: before, transformers would keep that token's embedding from ever learning.

    Raises:
        UserError: neither the configuration nor a tokenizer says it.
    """
    text_config = module.config.get_text_config()
    if not isinstance(task, TextClassification) or not hasattr(text_config, "pad_token_id"):  # Perceiver has none
        return
    try:
        own_task.set_padding(module.config, tokenizer(model, task, recipe_dir).pad_token_id)
    except UserError:  # a run has been refused for it before; what is only built needs none
        if text_config.pad_token_id is None:
            raise


def set_any_padding(module: Any) -> None:
    """Where there is no padding token, take the first: for who looks at shapes alone."""
    text_config = module.config.get_text_config()
    if getattr(text_config, "pad_token_id", 0) is None:
        text_config.pad_token_id = 0


def _finish(module: Any, model: Model, task: Task) -> None:
    """What the configuration alone cannot settle.

    Raises:
        UserError: images of a size that the position embeddings of pretrained weights are not for; or a language model
            that reads in both directions.
    """
    if isinstance(task, CausalLM) and reads_ahead(module.config):
        raise UserError(
            f"task.kind: causal-lm: {model.source} ({type(module).__name__}) reads each text in both directions, so it "
            "would see the tokens it predicts; choose a decoder, such as a GPT or Llama"
        )
    if model.dropout is not None:
        override_modules(module, model.dropout)
    side = task.image_size if isinstance(task, ImageClassification) else None
    own = getattr(module.config, "image_size", side)
    is_fixed = "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
    if is_fixed and side is not None and own not in (side, [side, side], (side, side)):
        raise UserError(
            f"task.image_size: {side}: {model.source} was trained for {own} and takes no other; remove the key, or set "
            "model.weights: random"
        )


def reads_ahead(config: Any) -> bool:
    """Whether a language model of this configuration sees the tokens that it predicts."""
    if config.model_type in ("cpmant", "xlnet"):
        return True
    if config.model_type == "xlm":
        return not config.causal
    can_read_ahead = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING or config.model_type == "bert-generation"
    return can_read_ahead and getattr(config, "is_decoder", True) is False


def _forget_quantization(module: Any) -> None:
    """A GGUF file's weights have become fp32; what remembers the file would keep the model from being saved."""
    if getattr(module, "hf_quantizer", None) is not None:
        module.hf_quantizer = None
        module.is_quantized = False
        del module.config.quantization_config


def is_new(tensor: torch.Tensor) -> bool:
    """Whether transformers initialised it, having found no value."""
    return not getattr(tensor, "_is_hf_initialized", False)


def _computes_buffers(module: nn.Module) -> bool:
    """Whether a buffer that is part of the weights has values which are not from their files."""
    saved = module.state_dict(keep_vars=True).keys()
    return any(
        name in saved and buffer.is_floating_point() and is_new(buffer) for name, buffer in module.named_buffers()
    )


def _widen_whatis_new(module: Any) -> None:
    """Initialise in fp32 what transformers has initialised in the dtype of the files."""
    new = [name for name, parameter in module.named_parameters() if is_new(parameter)]
    widen(module, new)
    for name in new:
        module.get_submodule(name.rpartition(".")[0])._is_hf_initialized = False
    if new:
        module.initialize_weights()


def _check_loaded(module: nn.Module, loaded: dict[str, Any], head: tuple[str, ...], model: Model) -> bool:
    """Whether the head is new; what is missing elsewhere is said, and most of the model missing is an error."""
    other_shape = {entry if isinstance(entry, str) else entry[0] for entry in loaded["mismatched_keys"]}
    absent = set(loaded["missing_keys"]) | other_shape
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    of_head = set(architecture.names_under(module, head))
    elsewhere = [name for name in sizes if name in absent - of_head]
    wrong = [name for name in elsewhere if name in other_shape]
    missing_elements = sum(sizes[name] for name in elsewhere)
    if wrong or missing_elements > sum(size for name, size in sizes.items() if name not in of_head) / 2:
        what = f"have another shape for {wrong[0]}" if wrong else f"lack {len(elsewhere)} tensors, {elsewhere[0]} first"
        raise UserError(
            f"model.source: the weights of {model.source} are not those of {type(module).__name__}: they {what}; "
            "use weights of this architecture, or weights: random"
        )
    if elsewhere:
        log.warning(
            "%s: no weights for %s; they start at random, so train them too", model.source, ", ".join(elsewhere[:8])
        )
    is_new = bool(absent & of_head)
    if is_new:
        log.info("%s: the head (%s) is new", model.source, ", ".join(head))
    return is_new


def same_labels(original: Any, config: Any) -> bool:
    """Whether a head that came with the weights can serve: its labels are ours in our order, or have no names."""
    names = [original.id2label[index] for index in sorted(original.id2label)]
    unnamed = [f"LABEL_{index}" for index in range(len(names))]
    return names in ([config.id2label[index] for index in sorted(config.id2label)], unnamed)


def _initialise_again(module: Any, head: tuple[str, ...]) -> None:
    """The library's own initialisation, for the head alone."""
    with torch.no_grad():
        for name, child in module.named_modules():
            if f"{name}.".startswith(tuple(h for h in head if h.endswith("."))):
                for tensor in child.parameters(recurse=False):
                    tensor._is_hf_initialized = False
                module._init_weights(child)
