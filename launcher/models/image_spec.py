"""How a model wants its images: one description for transformers' processors and torchvision's weights.

Owns the dataclass and how to read it off either library's object. Imports neither library: it reads attributes.
`models` produces it, `tasks` applies it, and it is written to the export of a torchvision model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher.errors import UserError

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""PIL's number -> torchvision's name."""


@dataclass(frozen=True)
class ImageSpec:
    """Resize, centre crop, scale to floats, normalise: in this order, to [3, height, width]."""

    size: int | tuple[int, int] | None
    """Pixels: an int is the shorter side (the other in proportion), a pair is (height, width); None: no resize."""
    crop: tuple[int, int] | None
    """(height, width) of the centre crop; None: no crop."""
    mean: tuple[float, ...]
    """Per channel, after scaling."""
    std: tuple[float, ...]
    """Per channel, after scaling."""
    interpolation: str = "bilinear"
    """``nearest``, ``bilinear``, ``bicubic``, ``lanczos``, ``box`` or ``hamming``; always antialiased."""
    scale: float = 1 / 255
    """Factor from a byte to a float."""
    input_name: str = "pixel_values"
    """Name of the model's argument: transformers' vision models say ``pixel_values``, torchvision's ``x``."""

    def with_size(self, side: int) -> ImageSpec:
        """The same for square images of ``side`` pixels: the shorter side is resized to it, the longer one cropped."""
        return replace(self, size=side, crop=(side, side))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def from_dict(values: Mapping[str, Any]) -> ImageSpec:
    """The inverse of `ImageSpec.as_dict`."""
    restored: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return ImageSpec(**restored)


def from_torchvision(transforms: Any) -> ImageSpec:
    """Read the preset that ``weights.transforms()`` of a torchvision classifier returns."""
    size = transforms.resize_size
    return ImageSpec(
        size=size[0] if len(size) == 1 else (size[0], size[1]),
        crop=_pair(transforms.crop_size),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
        input_name="x",
    )


def from_transformers(processor: Any) -> ImageSpec:
    """Read a transformers image processor.

    Raises:
        UserError: it does something that resize, crop, scale and normalise cannot say.
    """
    size: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    if _does(processor, "do_resize", "size"):
        size = _size(processor)
        # ConvNeXt: below 384 pixels the image is resized larger by 1 / crop_pct, then cropped.
        if isinstance(size, int) and getattr(processor, "crop_pct", None) is not None:
            side = size
            size, crop = (int(side / processor.crop_pct), (side, side)) if side < 384 else ((side, side), None)
    if _does(processor, "do_center_crop", "crop_size"):
        crop = _pair([processor.crop_size["height"], processor.crop_size["width"]])
    normalises = _does(processor, "do_normalize", "image_mean")
    scale = float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0
    return ImageSpec(
        size=size,
        crop=crop,
        mean=tuple(float(m) for m in processor.image_mean) if normalises else (0.0, 0.0, 0.0),
        std=tuple(float(s) for s in processor.image_std) if normalises else (1.0, 1.0, 1.0),
        interpolation=_interpolation(getattr(processor, "resample", None)),
        scale=scale,
    )


def _does(processor: Any, switch: str, value: str) -> bool:
    return bool(getattr(processor, switch, False)) and getattr(processor, value, None) is not None


def _size(processor: Any) -> int | tuple[int, int]:
    size = {name: pixels for name, pixels in dict(processor.size).items() if pixels is not None}
    if size.keys() == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    if size.keys() == {"shortest_edge"}:
        return int(size["shortest_edge"])
    raise UserError(
        f"image processor {type(processor).__name__}: size {size} is neither height and width nor shortest_edge; "
        "set task.image_size to the side of the square image in pixels"
    )


def _interpolation(resample: Any) -> str:
    if resample is None:
        return "bilinear"
    value = getattr(resample, "value", resample)
    return value if isinstance(value, str) else INTERPOLATIONS[int(value)]


def _pair(sides: Any) -> tuple[int, int]:
    return (int(sides[0]), int(sides[0])) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
