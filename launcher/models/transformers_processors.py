"""Tokenizers and image processors of transformers models.

Owns the padding token and the size of images, which the recipe may set. Called by `models` and `export`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import transformers

from launcher.errors import UserError
from launcher.models import image_spec
from launcher.models.image_spec import ImageSpec
from launcher.models.transformers_source import explained, gguf_arguments, locate
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


def image_processor(model: Model, recipe_dir: Path) -> Any:
    """transformers' own image processor of the model.

    Raises:
        UserError: the model's folder holds none.
        EnvironmentProblem: the hub cannot be reached.
    """
    with explained(model):
        return transformers.AutoImageProcessor.from_pretrained(
            locate(model, recipe_dir), revision=model.revision, trust_remote_code=False
        )


def image_spec_of(model: Model, task: Task, recipe_dir: Path) -> ImageSpec:
    """How the model wants its images; ``task.image_size`` overrides the size."""
    spec = image_spec.from_transformers(image_processor(model, recipe_dir))
    side = task.image_size if isinstance(task, ImageClassification) else None
    return spec.with_size(side) if side else spec


def set_image_size(processor: Any, spec: ImageSpec) -> None:
    """Make transformers' processor resize and crop as ``spec`` does, so that the export is used as it was trained."""
    if image_spec.from_transformers(processor) == spec:
        return
    processor.do_resize = spec.size is not None
    if spec.size is not None:
        height_width = spec.size
        processor.size = (
            {"shortest_edge": height_width}
            if isinstance(height_width, int)
            else {"height": height_width[0], "width": height_width[1]}
        )
    processor.do_center_crop = spec.crop is not None
    if spec.crop is not None:
        processor.crop_size = {"height": spec.crop[0], "width": spec.crop[1]}
