"""Memory that is freed and asked for again in every step stays with the process.

glibc gives large arrays back to the system as soon as they are freed, and the system clears each page anew when it is next
touched: over a fifth of a training step's time on a CPU (docs/performance.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # names of mallopt(3)
_AFTERWARDS = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 64 * 2**20))
"""Where glibc's thresholds, which move as a program goes on, end after it has freed large arrays."""
_MOST = 2**31 - 1
_depth = 0


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """While inside, freed memory is kept for the next step; at the end it goes back to the system. May be nested.

    For the whole process, and with glibc only; elsewhere, or where the environment sets malloc up, nothing happens.
    """
    global _depth
    libc = _glibc()
    _depth += 1
    if libc is not None and _depth == 1:
        libc.malloc_trim(0)  # of what was freed before
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        _depth -= 1
        if libc is not None and _depth == 0:
            for name, value in _AFTERWARDS:
                libc.mallopt(name, value)
            libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    own = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or own:
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
