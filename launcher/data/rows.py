"""Rows in memory: an Arrow table that hands out rows as plain dictionaries.

Owns one small type. `datasets.Dataset` would do the same, but importing it takes a second on every rank and it writes
cache files that ranks race for; only the hub source needs it. Called by `data` (makes them) and `batches` (takes them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Rows:
    """An immutable sequence of rows; a row is a dictionary by the task's column names, and ``id``."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.take([index])[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at ``indices``, in that order. Raises IndexError outside the table."""
        rows: list[dict[str, Any]] = self.table.take(pa.array(np.asarray(indices, dtype=np.int64))).to_pylist()
        return rows

    def name(self, index: int) -> str:
        """What a row is called in a message."""
        return str(self.table["id"][index].as_py())

    def without(self, indices: Sequence[int]) -> Rows:
        """The other rows, in their order."""
        if not indices:
            return self
        kept = np.delete(np.arange(len(self)), np.array(indices, np.int64))
        return Rows(self.table.take(pa.array(kept)))

    def digest(self) -> str:
        """sha256 of all values in their order, in hex; of images that lie in files, of what the rows are called.

        Equal on every machine and whatever the table's chunks, so that other data is noticed when a run goes on.
        """
        digest = hashlib.sha256()
        for name in self.table.column_names:
            column = self.table[name]
            if name == "image" and is_text(column.type):
                continue  # a path, which may be another one tomorrow
            lengths, content = hashlib.sha256(), hashlib.sha256()
            for chunk in column.chunks:
                _feed(lengths, content, chunk)
            digest.update(f"{name} {len(column)} {lengths.hexdigest()} {content.hexdigest()} ".encode())
        return digest.hexdigest()

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.column_names)


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def is_bytes(type_: pa.DataType) -> bool:
    """Whether a column of this type holds bytes."""
    kinds = pa.types
    return bool(kinds.is_binary(type_) or kinds.is_large_binary(type_) or kinds.is_fixed_size_binary(type_))


def _feed(lengths: hashlib._Hash, content: hashlib._Hash, values: pa.Array) -> None:
    """Add values: lengths and bytes of what varies in length, the elements of what does not.

    Of images, a struct of ``bytes`` and ``path``, the bytes.
    """
    type_ = values.type
    if pa.types.is_struct(type_):
        for index in range(type_.num_fields):
            if type_.field(index).name != "path":
                _feed(lengths, content, pc.struct_field(values, index))
    elif pa.types.is_integer(type_) or pa.types.is_floating(type_):
        content.update(values.fill_null(0).to_numpy(zero_copy_only=False).tobytes())
    else:
        is_bytes = pa.types.is_binary(type_) or pa.types.is_large_binary(type_)
        text = values if is_bytes else values.cast(pa.large_string())
        binary = text.cast(pa.large_binary()).fill_null(b"")
        _, offsets, data = binary.buffers()
        ends = np.frombuffer(offsets, np.int64)[binary.offset : binary.offset + len(binary) + 1]
        lengths.update(np.diff(ends).tobytes())
        if data is not None:
            content.update(memoryview(data)[ends[0] : ends[-1]])
