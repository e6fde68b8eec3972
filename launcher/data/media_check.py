"""Every image is opened once before training, so that a damaged one is found in minutes and not after hours.

Owns the pass over a split's images: each is decoded whole, by the very function that training decodes with, in as many
threads as there are cores (Pillow decodes without holding the interpreter's lock). What was sound before and has not
changed is not decoded again: `media_cache`. Imports no torch. Called by `checking`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from launcher.data.decoding import decode
from launcher.data.media_cache import MediaCache, key_of_bytes, key_of_file
from launcher.data.rows import Rows
from launcher.errors import DataError
from launcher.plan.data_facts import SkippedRow

log = logging.getLogger(__name__)
AT_ONCE = 512
"""Rows that are handed to the threads together; encoded images of so many lie in memory as Python's bytes."""
MOST_THREADS = 16
"""A large image takes hundreds of MB while it is decoded."""
TELL_EVERY_S = 10.0


def damaged(splits: Mapping[str, Rows]) -> list[SkippedRow]:
    """The rows whose ``image`` cannot be decoded, in the order of splits and rows; ``index`` counts in their split."""
    num_rows = sum(len(rows) for rows in splits.values())
    progress = _Progress(num_rows)
    found: list[SkippedRow] = []
    with MediaCache() as cache, ThreadPoolExecutor(_num_threads()) as pool:
        for split, rows in splits.items():
            for begin, values, ids in _portions(rows):
                for place, why in _checked(values, ids, cache, pool).items():
                    found.append(SkippedRow(split=split, index=begin + place, row=ids[place], why=why))
                progress.add(len(values), len(found))
    return found


def damaged_values(values: Sequence[Any], ids: Sequence[str]) -> dict[int, str]:
    """Position -> what is wrong, of images that are in no split, such as a prediction's; they are not remembered."""
    with ThreadPoolExecutor(_num_threads()) as pool:
        problems = list(pool.map(_problem, values, ids))
    return {place: problem for place, problem in enumerate(problems) if problem is not None}


def _num_threads() -> int:
    return min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _portions(rows: Rows) -> Iterator[tuple[int, list[Any], list[str]]]:
    """(position of the first, images, what the rows are called)."""
    for begin in range(0, len(rows), AT_ONCE):
        part = rows.table.slice(begin, AT_ONCE)
        yield begin, part["image"].to_pylist(), part["id"].to_pylist()


def _checked(values: list[Any], ids: list[str], cache: MediaCache, pool: ThreadPoolExecutor) -> dict[int, str]:
    keys = list(pool.map(_key, values))
    known = cache.known([key for key in keys if key is not None])
    new = [place for place, key in enumerate(keys) if key is None or key not in known]
    problems = list(pool.map(lambda place: _problem(values[place], ids[place]), new))
    sound = [key for place, problem in zip(new, problems, strict=True) if problem is None and (key := keys[place])]
    cache.add(sound)
    return {place: problem for place, problem in zip(new, problems, strict=True) if problem is not None}


def _key(value: Any) -> bytes | None:
    """None: nothing that could be found again."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return key_of_bytes(value)
    try:
        return key_of_file(value) if isinstance(value, str) else None
    except (OSError, ValueError):
        return None


def _problem(value: Any, row: str) -> str | None:
    try:
        decode(value, row)
    except DataError as error:
        return str(error).removeprefix(f"image of row {row}").lstrip(": ").removesuffix("; repair it")
    return None


class _Progress:
    """Says how far the check is where it takes long: on a terminal, or in the log."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows, self._done = num_rows, 0
        self._next = time.monotonic() + TELL_EVERY_S

    def add(self, count: int, num_bad: int) -> None:
        self._done += count
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TELL_EVERY_S
        text = f"checking images before training: {self._done:,} of {self._num_rows:,}, {num_bad:,} damaged"
        if sys.stderr.isatty():
            print(f"thawline: {text}", file=sys.stderr, flush=True)
        else:
            log.info("%s", text)
