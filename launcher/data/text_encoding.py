"""The bytes of a text file -> UTF-8, and its lines.

Owns ``data.encoding`` and what ends a line: ``\\n``, ``\\r\\n`` or ``\\r``, as in Python's own text files, and nothing
else (a form feed, U+0085 and U+2028 are characters of a text). Refuses a file that is not what it is said to be. Called
by the readers of csv, json and text.
"""

from __future__ import annotations

import codecs
import logging
import re
from pathlib import Path

from launcher.errors import DataError

log = logging.getLogger(__name__)
LINE_END = re.compile("\r\n|\r|\n")
_OTHER_ENCODING = "data.encoding: latin-1 (or cp1252) reads most Western files that are not UTF-8"
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\x1f\x8b": "gzip", b"PK": "zip", b"\x28\xb5": "zstd"}
"""How a file that is no UTF-8 may begin -> what it then is."""
_LOOKED_AT = 1000
"""Bytes at a file's beginning that tell UTF-16 from UTF-8."""


def utf8(path: Path, encoding: str) -> bytes:
    """The file's text as UTF-8, without byte order mark.

    Raises:
        DataError: with the first byte that ``encoding`` cannot read and its line.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise DataError(f"data.encoding: {encoding!r} is unknown; such as utf-8, latin-1, cp1252, utf-16") from None
    except UnicodeDecodeError as error:
        where = f"{path}: byte 0x{raw[error.start]:02x} at position {error.start} (line {line_of(raw, error.start)})"
        raise DataError(f"{where} is not {encoding}; {_advice(raw)}") from error
    except ValueError as error:  # of those codecs that are not for files, such as punycode
        raise DataError(f"{path} is not {encoding} (data.encoding): {error}; {_OTHER_ENCODING}") from error
    _warn_of_utf8(path, raw, encoding)
    _refuse_hidden_utf16(path, text[:_LOOKED_AT], encoding)
    try:
        return text.removeprefix("\ufeff").encode("utf-8")
    except UnicodeEncodeError as error:  # utf-7 and the like make halves of surrogate pairs
        raise DataError(f"{path} is not {encoding} (data.encoding): {error}; {_OTHER_ENCODING}") from error


def line_of(content: bytes, position: int) -> int:
    """The line, counted from 1, in which a byte stands."""
    return 1 + num_line_ends(content, 0, position)


def num_line_ends(content: bytes, begin: int, end: int) -> int:
    """Ends of lines between two positions; ``\\r\\n`` is one."""
    return content.count(b"\n", begin, end) + content.count(b"\r", begin, end) - content.count(b"\r\n", begin, end)


def _advice(raw: bytes) -> str:
    kind = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), None)
    if kind is None:
        return _OTHER_ENCODING
    return f"set data.encoding: {kind}" if kind == "utf-16" else f"it looks compressed ({kind}): unpack it"


def _warn_of_utf8(path: Path, raw: bytes, encoding: str) -> None:
    """Latin-1 and its like read any bytes: UTF-8 too, whose accents then become two characters each."""
    if raw.isascii() or codecs.lookup(encoding).name.startswith("utf"):
        return
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return
    log.warning("%s looks like UTF-8 and is read as %s; take data.encoding out unless it is right", path, encoding)


def _refuse_hidden_utf16(path: Path, begin: str, encoding: str) -> None:
    """Every other character of such a file is U+0000 when it is read as anything of one byte a character."""
    if len(begin) > 3 and begin.count("\0") * 3 > len(begin):
        order = "le" if begin[0] != "\0" else "be"
        raise DataError(
            f"{path} read as {encoding} has U+0000 in every other place, so it is UTF-16; set data.encoding: "
            f"utf-16-{order}"
        )
