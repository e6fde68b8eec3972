"""Which media files were found sound before, so that they are decoded once and not at every start.

Owns ``media.sqlite`` in the cache folder. It holds digests alone: of a file's path, size and time of change, or of
encoded bytes, with Pillow's version. What is damaged is not kept, and looked at each time. The file may be deleted
whenever nobody uses it. Called by `media_check`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from launcher.cache_folder import cache_folder

log = logging.getLogger(__name__)
VERSION = 1
"""Of what "sound" means; another forgets all files."""
LOCKED_S = 20.0
"""How long another process may write meanwhile."""
AT_ONCE = 500
"""Variables that a query takes."""


def key_of_file(path: str) -> bytes:
    """Of a file as it is now.

    Raises: OSError when there is none.
    """
    about = os.stat(path)
    return _digest(f"{os.path.abspath(path)}\0{about.st_size}\0{about.st_mtime_ns}".encode("utf-8", "surrogateescape"))


def key_of_bytes(content: bytes) -> bytes:
    """Of an encoded image that lies in a table."""
    return _digest(hashlib.sha256(content).digest())


def _digest(content: bytes) -> bytes:
    from PIL import __version__

    return hashlib.blake2b(f"{VERSION} {__version__} ".encode() + content, digest_size=16).digest()


class MediaCache:
    """The keys of sound files. One that cannot be read or written is empty, which costs time alone and is logged."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / "media.sqlite"
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> MediaCache:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=LOCKED_S)
            self._connection.execute("CREATE TABLE IF NOT EXISTS sound (key BLOB PRIMARY KEY) WITHOUT ROWID")
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of ``keys`` that were found sound before."""
        found: set[bytes] = set()
        for begin in range(0, len(keys), AT_ONCE):
            some = keys[begin : begin + AT_ONCE]
            if self._connection is None:
                break
            try:
                query = f"SELECT key FROM sound WHERE key IN ({','.join('?' * len(some))})"
                found.update(row[0] for row in self._connection.execute(query, some))
            except sqlite3.Error as error:
                self._give_up(error)
        return found

    def add(self, keys: Iterable[bytes]) -> None:
        """Remember these."""
        if self._connection is None:
            return
        try:
            with self._connection:
                self._connection.executemany("INSERT OR IGNORE INTO sound VALUES (?)", [(key,) for key in keys])
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("%s cannot be used, so media files are checked at every start: %s", self._path, error)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
