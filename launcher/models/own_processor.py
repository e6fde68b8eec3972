"""A model's own image processor of transformers: what it makes of an image is what the model trains on.

Owns the call, so that training, evaluation, prediction and the export see the same pixels whatever the processor does
(flip channels, crop before it resizes, cut into patches, quantize colours …); nothing of it is expressed anew. Refuses,
by its name, a processor whose images make no batch or that makes what the model does not take. Called by
`transformers_processors` and `export`, applied by `tasks`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import SizeDict

from launcher.errors import DataError, UserError

TRIED = ((160, 120), (90, 120), (33, 27))
"""Width and height of the images that a processor is tried on: upright, lying, and smaller than what it makes."""
PIXEL_KEYS = ("size", "crop_size", "pad_size", "resize_short")
"""Settings of transformers' processors that are pixels of what they make."""

Shape = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True, eq=False)
class OwnProcessor:
    """Makes a model's inputs of one image at a time, as ``transformers.pipeline`` does."""

    processor: Any
    """transformers' own."""
    inputs: Mapping[str, Shape]
    """Argument of the model -> shape, without the batch, and dtype; the same for every image."""

    def encode(self, image: Image.Image, row_id: str) -> dict[str, Tensor]:
        """Each input of the model for one RGB image, without the batch.

        Raises:
            DataError: the processor fails on an image of this shape.
        """
        try:
            made = _made(self.processor, image)
        except Exception as error:  # each of a hundred processors has its own
            raise DataError(f"{self._on(image, row_id)}: {_line(error)}; leave the image out") from error
        if _facts(made) != dict(self.inputs):
            raise DataError(
                f"{self._on(image, row_id)}: it makes {_told(_facts(made))} of it, and {_told(self.inputs)} of others; "
                "leave the image out"
            )
        return made

    def zeros(self, batch_size: int) -> dict[str, Tensor]:
        """A batch of the right shapes and dtypes."""
        return {name: torch.zeros(batch_size, *shape, dtype=dtype) for name, (shape, dtype) in self.inputs.items()}

    def save_pretrained(self, folder: Path) -> None:
        """Write ``preprocessor_config.json``, from which transformers makes the same processor."""
        self.processor.save_pretrained(folder)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnProcessor) and self.processor.to_dict() == other.processor.to_dict()

    def __hash__(self) -> int:
        return hash(type(self.processor))

    def _on(self, image: Image.Image, row_id: str) -> str:
        name = type(self.processor).__name__
        return f"image of row {row_id}: image processor {name} fails on {image.width} x {image.height} pixels"


def own_processor(processor: Any, accepted: Collection[str], side: int | None = None) -> OwnProcessor:
    """Try a transformers image processor, and set it to images of ``side`` x ``side`` where one is given.

    The processor keeps its way: all its sizes change by one factor, so that the same part of the image is seen.

    Args:
        accepted: arguments of the model.

    Raises:
        UserError: its images make no batch, the model does not take them, or they cannot have this size.
    """
    processor = _resized(processor, side) if side is not None else processor
    name = type(processor).__name__
    try:
        tried = [_facts(_made(processor, Image.new("RGB", size, (90, 120, 200)))) for size in TRIED]
    except Exception as error:  # each of a hundred processors has its own
        raise UserError(f"image processor {name} fails on an image: {_line(error)}; choose another model") from error
    if unknown := sorted({key for facts in tried for key in facts} - set(accepted)):
        raise UserError(
            f"image processor {name} makes {', '.join(unknown)}, which the model does not take; choose another model"
        )
    if any(facts != tried[0] for facts in tried):
        shapes = " and ".join(dict.fromkeys(_told(facts) for facts in tried))
        hint = "choose another model" if side else "set task.image_size to the side of the square image in pixels"
        raise UserError(
            f"image processor {name} makes images of different shapes, {shapes}, which make no batch; {hint}"
        )
    own = OwnProcessor(processor, tried[0])
    if side is not None and _height_and_width(own.inputs) != (side, side):
        raise UserError(
            f"task.image_size: {side}: image processor {name} then makes {_told(own.inputs)}; remove the key"
        )
    return own


def _made(processor: Any, image: Image.Image) -> dict[str, Tensor]:
    """The model's inputs, without the batch; bytes are floats, since no layer of a model computes with bytes."""
    batch = dict(processor(images=image, return_tensors="pt"))
    for name, value in batch.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != 1:
            what = f"a tensor {_shape(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"of one image it makes {what} as {name}, which is not one row of a batch")
    return {
        name: value[0].float() if value.is_floating_point() or value.dtype is torch.uint8 else value[0]
        for name, value in batch.items()
    }


def _facts(inputs: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()}


def _told(facts: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {_shape(shape)}" for name, (shape, _) in facts.items())


def _shape(shape: Collection[int]) -> str:
    return " x ".join(map(str, shape)) or "of one number"


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


# --- another size -----------------------------------------------------------------------------------------------------
def _resized(processor: Any, side: int) -> Any:
    """A copy whose images are ``side`` x ``side``; the processor itself where its settings do not lead there."""
    for settings in _settings_for(processor, side):
        changed = copy.deepcopy(processor)
        for key, value in settings.items():
            setattr(changed, key, value)
        if _sizes(changed) == {(side, side)}:
            return changed
    return processor


def _settings_for(processor: Any, side: int) -> Iterator[dict[str, Any]]:
    """In order of preference: its own way at another scale; the middle of the image; the whole image, squeezed."""
    own = _sizes(processor)
    if len(own) == 1 and None not in own and getattr(processor, "do_resize", True):
        scales = [side / pixels for pixels in own.pop() or ()]
        yield {key: _scaled(getattr(processor, key, None), *scales) for key in PIXEL_KEYS if hasattr(processor, key)}
        return
    square = {"height": side, "width": side}
    middle = {"do_center_crop": True, "crop_size": SizeDict(**square)}
    yield {"do_resize": True, "size": SizeDict(shortest_edge=side), **middle}
    yield {"do_resize": True, "size": SizeDict(**square)}


def _scaled(size: Any, vertical: float, horizontal: float) -> Any:
    """A processor's setting in pixels, a number or a `SizeDict`, times a factor."""
    factors = {"height": vertical, "max_height": vertical, "width": horizontal, "max_width": horizontal}
    either = max(vertical, horizontal)
    if isinstance(size, int):
        return round(size * either)
    if not isinstance(size, SizeDict):
        return size
    return SizeDict(**{edge: round(pixels * factors.get(edge, either)) for edge, pixels in size})


def _sizes(processor: Any) -> set[tuple[int, int] | None]:
    """Height and width of what it makes of the images it is tried on; None for what has none, or fails."""
    try:
        return {_height_and_width(_facts(_made(processor, Image.new("RGB", size)))) for size in TRIED}
    except Exception:  # which is told when the processor itself is tried
        return {None}


def _height_and_width(facts: Mapping[str, Shape]) -> tuple[int, int] | None:
    shape, _ = facts.get("pixel_values", ((), None))
    return (shape[1], shape[2]) if len(shape) == 3 else None
