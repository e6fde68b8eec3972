"""Images -> tensors as the model's processor wants them, and the augmentation of training images.

All randomness comes from the seed that is handed in. torchvision's own random transforms draw from the global
generator, which the loop's dropout uses at the same time from another thread; so the choices are made here and only the
operations are torchvision's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from launcher.data.decoding import decode
from launcher.errors import UserError
from launcher.models.image_spec import ImageSpec
from launcher.models.own_processor import OwnProcessor

Augment = Literal["none", "flip", "randaugment"]
Encoded = dict[str, Tensor]
"""Argument of the model -> its part for one image."""

RANDAUGMENT_OPERATIONS = 2
RANDAUGMENT_LEVEL = 9 / 30
"""Magnitude 9 of 31 bins: torchvision's default, and about the paper's for small models."""


class Images(Protocol):
    """Rows -> a batch of the model's image inputs."""

    def encode(self, value: Any, row_id: str, seed: int | None) -> Encoded:
        """One image; ``seed`` None: no augmentation."""

    def inputs(self, images: Sequence[Encoded]) -> dict[str, Tensor]:
        """Encoded images -> arguments of the model; the first dimension of each is their number."""


def images_for(processor: ImageSpec | OwnProcessor, augment: Augment) -> Images:
    """What prepares images for the model whose processor this is.

    Raises:
        UserError: they would make no batch.
    """
    if isinstance(processor, OwnProcessor):
        return ProcessedImages(processor, augment)
    return SpecifiedImages(processor, augment)


class ProcessedImages:
    """Decodes and augments an image, and leaves all else to the model's own processor."""

    def __init__(self, processor: OwnProcessor, augment: Augment) -> None:
        self._processor, self._augment = processor, augment

    def encode(self, value: Any, row_id: str, seed: int | None) -> Encoded:
        """As the processor makes them, one image alone: nothing depends on its neighbours in the batch."""
        image = decode(value, row_id)
        if seed is not None:
            image = augmented(image, self._augment, random.Random(seed))
        return self._processor.encode(image, row_id)

    def inputs(self, images: Sequence[Encoded]) -> dict[str, Tensor]:
        """Stacked."""
        return {name: torch.stack([image[name] for image in images]) for name in images[0]}


class SpecifiedImages:
    """Decodes, resizes, crops and augments one image at a time; scales and normalises a batch at a time."""

    def __init__(self, spec: ImageSpec, augment: Augment) -> None:
        if spec.crop is None and not isinstance(spec.size, tuple):
            raise UserError(
                "the model's processor leaves images of different shapes, which make no batch; "
                "set task.image_size to the side of the square image in pixels"
            )
        self._spec, self._augment = spec, augment
        self._interpolation = InterpolationMode(spec.interpolation)

    def encode(self, value: Any, row_id: str, seed: int | None) -> Encoded:
        """uint8 [3, height, width]."""
        image = decode(value, row_id)
        spec = self._spec
        if spec.size is not None:
            size = [spec.size] if isinstance(spec.size, int) else list(spec.size)
            image = F.resize(image, size, interpolation=self._interpolation, antialias=True)
        if spec.crop is not None:
            image = F.center_crop(image, list(spec.crop))
        if seed is not None:
            image = augmented(image, self._augment, random.Random(seed))
        return {spec.input_name: F.pil_to_tensor(image)}

    def inputs(self, images: Sequence[Encoded]) -> dict[str, Tensor]:
        """float32 [B, 3, height, width] under the model's own name for it."""
        name = self._spec.input_name
        # divided, as torchvision's presets do
        floats = torch.stack([image[name] for image in images]).float() / (1 / self._spec.scale)
        return {name: F.normalize(floats, list(self._spec.mean), list(self._spec.std))}


# --- augmentation -----------------------------------------------------------------------------------------------------
def augmented(image: Image.Image, augment: Augment, draw: random.Random) -> Image.Image:
    """``flip``: mirrored left to right, half of the time. ``randaugment``: two operations at a fixed strength."""
    if augment == "flip":
        return F.horizontal_flip(image) if draw.random() < 0.5 else image
    if augment == "randaugment":
        for _ in range(RANDAUGMENT_OPERATIONS):
            name = draw.choice(list(OPERATIONS))
            sign = 1.0 if draw.random() < 0.5 else -1.0
            image = OPERATIONS[name](image, sign * RANDAUGMENT_LEVEL)
    return image


def _sheared(image: Image.Image, x: float, y: float) -> Image.Image:
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    sheared: Image.Image = F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])
    return sheared


def _translated(image: Image.Image, x: float, y: float) -> Image.Image:
    moved: Image.Image = F.affine(image, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0])
    return moved


OPERATIONS: Mapping[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, level: image,
    "shear_x": lambda image, level: _sheared(image, 0.3 * level, 0.0),
    "shear_y": lambda image, level: _sheared(image, 0.0, 0.3 * level),
    "translate_x": lambda image, level: _translated(image, 150 / 331 * image.width * level, 0.0),
    "translate_y": lambda image, level: _translated(image, 0.0, 150 / 331 * image.height * level),
    "rotate": lambda image, level: F.rotate(image, 30.0 * level),
    "brightness": lambda image, level: F.adjust_brightness(image, 1 + 0.9 * level),
    "color": lambda image, level: F.adjust_saturation(image, 1 + 0.9 * level),
    "contrast": lambda image, level: F.adjust_contrast(image, 1 + 0.9 * level),
    "sharpness": lambda image, level: F.adjust_sharpness(image, 1 + 0.9 * level),
    "posterize": lambda image, level: F.posterize(image, round(8 - 4 * abs(level))),
    "solarize": lambda image, level: F.solarize(image, 255.0 * (1 - abs(level))),
    "auto_contrast": lambda image, level: F.autocontrast(image),
    "equalize": lambda image, level: F.equalize(image),
}
"""The operations of RandAugment (Cubuk et al., 2020, table 6 without Cutout), at a level from -1 to 1."""
