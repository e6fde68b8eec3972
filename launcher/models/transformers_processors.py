"""Tokenizers and image processors of transformers models.

Owns the padding token and its side, and the size of images, which the recipe may set. Called by `models`, `export`.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.auto_factory import _get_model_class

from launcher.errors import UserError
from launcher.models import padding
from launcher.models.own_processor import OwnProcessor, own_processor
from launcher.models.transformers_source import explained, gguf_arguments, locate, original_configuration
from launcher.recipe import ImageClassification, Model, Task

log = logging.getLogger(__name__)
CUTTING = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "auto_map")
"""What transformers copies from a tokenizer.json's own cutting and padding, and what points to code of the source's."""


def tokenizer(model: Model, task: Task, recipe_dir: Path) -> Any:
    """The model's tokenizer, with a padding token and the side that the task's batches are filled up on.

    Raises:
        UserError: there is none, or it has neither a padding nor an end token.
        EnvironmentProblem: the hub cannot be reached.
    """
    config = original_configuration(model, recipe_dir)
    with explained(model):
        loaded = transformers.AutoTokenizer.from_pretrained(
            locate(model, recipe_dir), revision=model.revision, trust_remote_code=False, **gguf_arguments(model)
        )
    if loaded.pad_token is None:
        loaded.pad_token = _padding_token(loaded, config, model)
        log.info("%s: no padding token; %r pads, and is masked out", model.source, loaded.pad_token)
    side = padding.exported_side(task.kind, config, loaded.padding_side)
    if side != loaded.padding_side:
        log.info("%s: its tokenizer pads on the %s; here it pads on the %s", model.source, loaded.padding_side, side)
        loaded.padding_side = side
    if "attention_mask" not in loaded.model_input_names:  # without it nobody could tell padding from text
        loaded.model_input_names = [*loaded.model_input_names, "attention_mask"]
    return loaded


def exported_tokenizer(tokenizer: Any, max_length: int | None) -> Any:
    """A copy that cuts texts, when asked to cut, where they were cut in training, and does nothing unasked.

    Args:
        max_length: tokens of a text; None: as the tokenizer says itself.
    """
    own = copy.deepcopy(tokenizer)
    if max_length is not None:
        own.model_max_length = max_length
    if hasattr(own, "backend_tokenizer"):  # whoever reads tokenizer.json alone would cut and fill up as its source did
        own.backend_tokenizer.no_truncation()
        own.backend_tokenizer.no_padding()
    for key in CUTTING:
        getattr(own, "init_kwargs", {}).pop(key, None)
    return own


def _padding_token(loaded: Any, config: Any, model: Model) -> str:
    """The special token that the model's configuration pads with, or the end token.

    No other: a word that pads would be cut out of longer words from then on.
    """
    own = getattr(config.get_text_config(), "pad_token_id", None)
    special = dict(zip(loaded.all_special_ids, loaded.all_special_tokens, strict=True))
    token = special.get(own, loaded.eos_token)
    if token is None:
        raise UserError(f"model.source: the tokenizer of {model.source} has neither a padding nor an end token")
    return str(token)


def image_processor(model: Model, task: Task, recipe_dir: Path) -> OwnProcessor:
    """transformers' own image processor of the model; ``task.image_size`` overrides the size.

    Raises:
        UserError: the model's folder holds none, or one whose images make no batch for the model.
        EnvironmentProblem: the hub cannot be reached.
    """
    with explained(model):
        loaded = transformers.AutoImageProcessor.from_pretrained(
            locate(model, recipe_dir), revision=model.revision, trust_remote_code=False
        )
    config = original_configuration(model, recipe_dir)
    side = task.image_size if isinstance(task, ImageClassification) else None
    own = own_processor(loaded, _arguments(config, model), side)
    channels, (shape, _) = getattr(config, "num_channels", None), own.inputs.get("pixel_values", ((), None))
    if len(shape) == 3 and channels not in (None, shape[0]):
        raise UserError(
            f"model.source: {model.source!r} takes images of {channels} channels, and its image processor "
            f"{type(loaded).__name__} makes {shape[0]} of an RGB image; choose another model"
        )
    return own


def _arguments(config: Any, model: Model) -> Collection[str]:
    """Names that the model's forward takes."""
    mapping = transformers.AutoModelForImageClassification._model_mapping
    if type(config) not in mapping:
        raise UserError(f"model.source: {model.source!r}: transformers has no image classifier of {config.model_type}")
    config.architectures = config.architectures or []  # it goes through them where there are several classes
    return inspect.signature(_get_model_class(config, mapping).forward).parameters
