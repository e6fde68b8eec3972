"""Every mode of Pillow, and files of more than 8 bits: converted by their range, or refused by name; upright."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.image_utils import load_image

from launcher.data.decoding import decode
from launcher.errors import DataError

LEVELS = np.array([[0, 1, 20, 60, 127, 128], [129, 180, 200, 254, 255, 90]], np.uint8)
"""As 8-bit grey."""
COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
ORDINARY = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
"""Whose pixels are transformers' and datasets' own."""
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
SIGNED, FLOAT = 2, 3


def grey(image: Image.Image) -> np.ndarray:
    bands = np.asarray(image)
    assert image.mode == "RGB"
    assert (bands == bands[..., :1]).all()
    return bands[..., 0]


def tiff(levels: np.ndarray, *, order: str = "<", sample_format: int = 1, white_is_zero: bool = False) -> bytes:
    """A TIFF of one strip, [height, width] or [height, width, 3], written by hand."""
    levels = levels.astype(levels.dtype.newbyteorder(order))
    height, width, channels = (*levels.shape, 1)[:3]
    photometric = 2 if channels == 3 else 0 if white_is_zero else 1
    bits = levels.dtype.itemsize * 8
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: channels, 278: height,
            279: levels.nbytes, 339: sample_format}  # fmt: skip
    pixels = levels.tobytes()
    after = 8 + len(pixels)
    entries = b""
    for tag, value in tags.items():
        count = channels if tag in (258, 339) else 1
        if count == 3:  # three shorts take more than an entry's four bytes: they stand behind the directory
            behind = after + 2 + 12 * len(tags) + 4 + (0 if tag == 258 else 6)
            entries += struct.pack(f"{order}HHLL", tag, 3, 3, behind)
        else:
            entries += struct.pack(f"{order}HHLL", tag, 4, 1, value)
    shorts = struct.pack(f"{order}6H", bits, bits, bits, *[sample_format] * 3) if channels == 3 else b""
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, after)
    return header + pixels + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}L", 0) + shorts


def png(levels: np.ndarray) -> bytes:
    """16 bits a sample, 1 to 4 channels, written by hand."""
    height, width, channels = (*levels.shape, 1)[:3]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in levels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    header = struct.pack(">LLBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def read_by_transformers(encoded: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of palettes with transparency
        image: Image.Image = load_image(Image.open(io.BytesIO(encoded)))
    return image


def saved(image: Image.Image, format_: str, **settings: Any) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, format_, **settings)
    return encoded.getvalue()


# --- every mode -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ORDINARY)
def test_an_ordinary_mode_is_transformers_own_image(mode: str) -> None:
    image = Image.fromarray(COLOURS, "RGBA").convert(mode if mode not in ("PA", "HSV", "YCbCr") else "RGB")
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert image.mode == mode
    assert np.array_equal(decode(image, "a"), load_image(image))


def test_all_other_modes_have_a_rule() -> None:
    known = {*ORDINARY, *DEEP, "La", "RGBa", "LAB", "I", "F"}
    assert set(Image.MODES) | {"La", "RGBa", "RGBX", "I;16L", "I;16N"} == known


@pytest.mark.parametrize(("mode", "through"), [("La", "LA"), ("RGBa", "RGBA")])
def test_colours_multiplied_by_alpha(mode: str, through: str) -> None:
    image = Image.fromarray(COLOURS, "RGBA").convert(through).convert(mode)
    assert np.array_equal(decode(image, "a"), image.convert(through).convert("RGB"))


def test_lab_is_converted_or_refused() -> None:
    image = Image.frombytes("LAB", (1, 1), bytes([255, 0, 0]))
    try:
        expected = image.convert("RGB")
    except ValueError:  # Pillow before 12
        with pytest.raises(DataError, match="image of row a cannot be read"):
            decode(image, "a")
    else:
        assert np.array_equal(decode(image, "a"), expected)
        assert np.asarray(decode(image, "a")).min() >= 254


@pytest.mark.parametrize("mode", DEEP)
def test_sixteen_bits(mode: str) -> None:
    deep = LEVELS.astype(np.uint16) * 257
    image = Image.frombytes(mode, (6, 2), deep.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert np.array_equal(grey(decode(image, "a")), LEVELS)


def test_integers_without_a_file() -> None:
    with pytest.raises(DataError, match=r"row 7 \(.*\): its grey levels are integers \(mode I\), .*save it as 8-bit"):
        decode(Image.fromarray(LEVELS.astype(np.int32)), "7")


# --- files ------------------------------------------------------------------------------------------------------------
DEEP_LEVELS = LEVELS.astype(np.uint16) * 257
PALETTE = Image.fromarray(COLOURS, "RGBA").convert("RGB").quantize(16)
ORDINARY_FILES = {
    "grey": saved(Image.fromarray(LEVELS), "PNG"),
    "palette": saved(PALETTE, "PNG"),
    "palette with one clear colour": saved(PALETTE, "PNG", transparency=3),
    "palette with alpha": saved(PALETTE, "PNG", transparency=bytes(range(0, 160, 10))),
    "grey with alpha": saved(Image.fromarray(COLOURS, "RGBA").convert("LA"), "PNG"),
    "colour with alpha": saved(Image.fromarray(COLOURS, "RGBA"), "PNG"),
    "one bit": saved(Image.fromarray(LEVELS).convert("1"), "TIFF"),
    "one bit, white is zero": saved(Image.fromarray(LEVELS).convert("1"), "TIFF", tiffinfo={262: 0}),
    "print": saved(Image.fromarray(COLOURS, "CMYK"), "JPEG"),
    "tiff print": saved(Image.fromarray(COLOURS, "CMYK"), "TIFF"),
    "jpeg": saved(Image.fromarray(COLOURS[..., :3]), "JPEG"),
    "first of two frames": saved(
        PALETTE, "GIF", save_all=True, append_images=[Image.new("RGB", PALETTE.size, (9, 200, 3))]
    ),
    "first of two pages": saved(
        Image.fromarray(LEVELS), "TIFF", save_all=True, append_images=[Image.new("L", (6, 2), 5)]
    ),
    "webp": saved(Image.fromarray(COLOURS, "RGBA"), "WEBP"),
    "bmp": saved(Image.fromarray(LEVELS).convert("1"), "BMP"),
    "pgm": saved(Image.fromarray(LEVELS), "PPM"),
}


@pytest.mark.parametrize("name", ORDINARY_FILES)
def test_an_ordinary_file_is_what_transformers_and_datasets_read(name: str, tmp_path: Path) -> None:
    encoded = ORDINARY_FILES[name]
    (tmp_path / "a").write_bytes(encoded)
    ours = decode(tmp_path / "a", "a")
    assert np.array_equal(ours, read_by_transformers(encoded))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = datasets.Image().decode_example({"path": None, "bytes": encoded}).convert("RGB")
    assert np.array_equal(ours, theirs)
    for value in (encoded, {"bytes": encoded, "path": None}, str(tmp_path / "a")):
        assert np.array_equal(ours, decode(value, "a"))


GREY_FILES = {
    "png": png(DEEP_LEVELS),
    "png by pillow": saved(Image.fromarray(DEEP_LEVELS), "PNG"),
    "png with alpha": png(np.stack([DEEP_LEVELS, DEEP_LEVELS[::-1]], -1)),
    "png in colour": png(np.stack([DEEP_LEVELS] * 3, -1)),
    "png in colour with alpha": png(np.stack([DEEP_LEVELS] * 3 + [DEEP_LEVELS[::-1]], -1)),
    "tiff": tiff(DEEP_LEVELS),
    "tiff, big endian": tiff(DEEP_LEVELS, order=">"),
    "tiff by pillow": saved(Image.fromarray(DEEP_LEVELS), "TIFF", compression="tiff_lzw"),
    "tiff, white is zero": tiff(65535 - DEEP_LEVELS, white_is_zero=True),
    "tiff in colour": tiff(np.stack([DEEP_LEVELS] * 3, -1)),
    "tiff in colour, big endian": tiff(np.stack([DEEP_LEVELS] * 3, -1), order=">"),
    "tiff of floats": tiff((LEVELS / 255).astype(np.float32), sample_format=FLOAT),
    "tiff of floats, big endian": tiff((LEVELS / 255).astype(np.float32), order=">", sample_format=FLOAT),
    "tiff of floats, white is zero": tiff(
        (1 - LEVELS / 255).astype(np.float32), sample_format=FLOAT, white_is_zero=True
    ),
    "pgm": b"P5 6 2 65535\n" + DEEP_LEVELS.astype(">u2").tobytes(),
    "pgm of 10 bits": b"P5 6 2 1020\n" + (LEVELS.astype(np.uint16) * 4).astype(">u2").tobytes(),
    "jpeg 2000": saved(Image.fromarray(DEEP_LEVELS), "JPEG2000", irreversible=False),
}


@pytest.mark.parametrize("name", GREY_FILES)
def test_more_than_8_bits_are_divided_by_their_range(name: str) -> None:
    assert np.array_equal(grey(decode(GREY_FILES[name], "a")), LEVELS)


REFUSED = {
    "signed": (tiff(LEVELS.astype(np.int16), sample_format=SIGNED), "signed integers of 16 bits"),
    "32 bits": (tiff(LEVELS.astype(np.uint32)), "its grey levels are integers of 32 bits"),
    "32 bits by pillow": (saved(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"), "signed integers of 32 bits"),
    "floats to 255": (tiff(LEVELS.astype(np.float32), sample_format=FLOAT), "lie between 0 and 255; floats must lie"),
    "floats below 0": (tiff(LEVELS.astype(np.float32) / 255 - 0.5, sample_format=FLOAT), "lie between -0.5 and 0.5"),
    "no number": (tiff(np.full((2, 2), np.nan, np.float32), sample_format=FLOAT), "lie between nan and nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unknown_range_is_refused_by_the_files_name(name: str, tmp_path: Path) -> None:
    encoded, said = REFUSED[name]
    path = tmp_path / "cell.tif"
    path.write_bytes(encoded)
    with pytest.raises(DataError) as caught:
        decode(str(path), "healthy/cell.tif")
    assert str(caught.value).startswith(f"image of row healthy/cell.tif ({path}): its grey levels ")
    assert said in str(caught.value)
    assert str(caught.value).endswith("; save it as 8-bit grey or RGB")


# --- orientation ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "16 bits"])
def test_images_are_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = np.add.outer(np.arange(0, 64, 2), np.arange(0, 192, 4)).astype(np.uint8)
    image = Image.fromarray(smooth.astype(np.uint16) * 257 if kind == "16 bits" else smooth)
    encoded = saved(image if kind == "16 bits" else image.convert("RGB"), kind.replace("16 bits", "PNG"), exif=exif)
    ours = np.asarray(decode(encoded, "a"))
    assert ours.shape[:2] == ((48, 32) if orientation >= 5 else (32, 48))
    if kind == "16 bits":
        assert np.array_equal(ours[..., 0], ImageOps.exif_transpose(_tagged(smooth, exif)))
    else:
        assert np.array_equal(ours, read_by_transformers(encoded))
        assert np.array_equal(ours, datasets.Image().decode_example({"path": None, "bytes": encoded}))


def _tagged(pixels: np.ndarray, exif: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(saved(Image.fromarray(pixels), "PNG", exif=exif)))


# --- what is no image -------------------------------------------------------------------------------------------------
def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"row dog/a\.png cannot be read \(.*a\.png\): .*; repair it"):
        decode(str(path), "dog/a.png")
    for value, says in {b"": "it is empty", b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull"}.items():
        path.write_bytes(value)
        for given in (str(path), value):
            with pytest.raises(DataError, match=says):
                decode(given, "5")
    with pytest.raises(DataError, match="does not exist; a table's paths start from the table's own folder"):
        decode(str(tmp_path / "b.png"), "5")
    with pytest.raises(DataError, match=r"image of row 5 cannot be read \(NoneType\)"):
        decode(None, "5")


@pytest.mark.parametrize("name", [*ORDINARY_FILES, *GREY_FILES])
def test_damage_raises_nothing_else(name: str) -> None:
    whole = (ORDINARY_FILES | GREY_FILES)[name]
    draw = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(whole[: draw.integers(0, len(whole))] if draw.random() < 0.3 else whole)
        for place in draw.integers(0, max(1, len(damaged)), 4):
            if len(damaged) > place:
                damaged[place] = draw.integers(0, 256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                decode(bytes(damaged), "5")
            except DataError as error:
                assert str(error).startswith("image of row 5")  # noqa: PT017
