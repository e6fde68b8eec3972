"""How a torchvision model wants its images.

Owns the dataclass and how to read it off the weights' preset. Does not import the library: it reads attributes. Models
of transformers bring a processor of their own instead (`own_processor`). `models` produces it, `tasks` applies it, and
it is written to the export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


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
    input_name: str = "x"
    """Name of the model's argument."""

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
    )


def _pair(sides: Any) -> tuple[int, int]:
    return (int(sides[0]), int(sides[0])) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
