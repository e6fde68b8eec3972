"""Tokenizers and image processors of transformers models.

Owns the padding token and the size of images, which the recipe may set. Called by `models`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.auto_factory import _get_model_class

from launcher.errors import UserError
from launcher.models.own_processor import OwnProcessor, own_processor
from launcher.models.transformers_source import explained, gguf_arguments, locate, original_configuration
from launcher.recipe import ImageClassification, Model, Task

log = logging.getLogger(__name__)


def tokenizer(model: Model, recipe_dir: Path) -> Any:
    """The model's tokenizer, with a padding token.

    Raises:
        UserError: there is none, or it has neither a padding nor an end token.
        EnvironmentProblem: the hub cannot be reached.
    """
    with explained(model):
        loaded = transformers.AutoTokenizer.from_pretrained(
            locate(model, recipe_dir), revision=model.revision, trust_remote_code=False, **gguf_arguments(model)
        )
    if loaded.pad_token is None:
        if loaded.eos_token is None:
            raise UserError(f"model.source: the tokenizer of {model.source} has neither a padding nor an end token")
        loaded.pad_token = loaded.eos_token
        log.info("%s: no padding token; %r pads, and is masked out", model.source, loaded.eos_token)
    return loaded


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
