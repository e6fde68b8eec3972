"""One image file -> 8-bit RGB pixels, upright.

Owns what each Pillow mode means: grey levels of more than 8 bits are divided by the range of their file format, floats
must lie in 0 to 1, an alpha channel is dropped, and the orientation in the EXIF data is applied. For all ordinary files
the pixels are those of ``transformers.image_utils.load_image``. Refuses, by name, what cannot be opened or has no range
that is sure. Knows no torch. Called by `tasks`, and by whoever checks the files before training.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from launcher.errors import DataError

Levels = npt.NDArray[np.float64]

GREY_FORMATS = frozenset({"JPEG2000", "PNG", "PPM"})
"""Formats whose grey levels of more than 8 bits Pillow gives in the range 0 to 65535, whatever their number of bits."""
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF 6.0."""
WHITE_IS_ZERO, UNSIGNED = 0, 1
THROUGH = {"La": "LA", "RGBa": "RGBA", "P": "RGBA"}
"""Modes that go to RGB by way of another: Pillow does not know the direct way of the first two, and warns of a palette
with transparency."""
GIT_LFS = b"version https://git-lfs"
TOLERANCE = 1e-6
"""By which a float may miss 0 and 1."""


def decode(value: Any, name: str) -> Image.Image:
    """An RGB image from a path, encoded bytes, the hub's ``{bytes, path}`` or an opened image; of several frames the
    first.

    Args:
        name: what the row is called in a message; a path is named besides.

    Raises:
        DataError: no image is there, it is damaged, or its grey levels have no known range.
    """
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    shown = str(value) if isinstance(value, str | Path) else type(value).__name__
    try:
        if isinstance(value, Image.Image):
            return _rgb(value)
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else Path(value)) as image:
            return _rgb(image)
    except FileNotFoundError as error:
        where = "; a table's paths start from the table's own folder, or the recipe's"
        raise DataError(f"image of row {name}: {shown} does not exist{where}") from error
    except _NoRange as error:
        raise DataError(f"image of row {name} ({shown}): {error}; save it as 8-bit grey or RGB") from error
    except Exception as error:  # a damaged file brings out any: OSError, SyntaxError, struct.error, IndexError …
        what = _known(value) or str(error) or type(error).__name__
        raise DataError(f"image of row {name} cannot be read ({shown}): {what}; repair it") from error


def _known(value: Any) -> str | None:
    """What stands in place of an image, where that is sure."""
    try:
        begins = value[: len(GIT_LFS)] if isinstance(value, bytes) else _first_bytes(value)
    except Exception:  # the reading failed before, and that is told
        return None
    if not begins:
        return "it is empty"
    return "it is a pointer of Git LFS; fetch the images with `git lfs pull`" if begins == GIT_LFS else None


def _first_bytes(path: Any) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(GIT_LFS))


class _NoRange(Exception):
    """It is not known which value is white."""


def _rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode == "I" or image.mode.startswith("I;"):
        white = 1.0 if image.mode == "F" else _white(image)
        return _grey(np.asarray(upright, np.float64), white, image).convert("RGB")
    upright = upright.convert(THROUGH[upright.mode]) if upright.mode in THROUGH else upright
    return upright.convert("RGB")


def _white(image: Image.Image) -> float:
    """The largest grey level that integers of the image's format can have; 0 is black."""
    if image.format in GREY_FORMATS or (image.format is None and image.mode != "I"):
        return 65535.0
    if isinstance(image, TiffImageFile):
        bits, format_ = (image.tag_v2.get(tag, (1,)) for tag in (BITS_PER_SAMPLE, SAMPLE_FORMAT))
        if format_[0] == UNSIGNED and bits[0] <= 16:
            return float(2 ** bits[0] - 1)
        signed = "" if format_[0] == UNSIGNED else "signed "
        raise _NoRange(
            f"its grey levels are {signed}integers of {bits[0]} bits, of which it is not known what is white"
        )
    raise _NoRange(f"its grey levels are integers (mode {image.mode}), of which it is not known what is white")


def _grey(levels: Levels, white: float, image: Image.Image) -> Image.Image:
    """8-bit grey from levels between 0 and ``white``, to the nearest."""
    low, high = float(levels.min()), float(levels.max())
    if not (-TOLERANCE * white <= low and high <= (1 + TOLERANCE) * white):  # NaN is outside too
        raise _NoRange(
            f"its grey levels lie between {low:g} and {high:g}; floats must lie between 0 (black) and 1 (white)"
        )
    levels = levels / white
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = 1 - levels  # which Pillow heeds up to 8 bits alone
    return Image.fromarray((levels.clip(0, 1) * 255).round().astype(np.uint8))
