"""How this process asks the system for memory: big, kept, in huge pages.

A training step frees and takes the same large blocks again and again. As glibc and torch come, each of them goes back
to the kernel and returns as thousands of zeroed pages of 4 KiB (docs/performance.md has what that costs). Must be
called before torch allocates anything. Changes where tensors lie, never what is in them.
"""

from __future__ import annotations

import ctypes
import os
import sys

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
"""What glibc accepts on 64 bits; larger blocks are mapped each time, as huge pages then."""


def keep_freed_blocks() -> None:
    """Have malloc keep what is freed, and torch ask for huge pages; a user's own settings in the environment stay."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # c10/core/impl/alloc_cpu.cpp
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
