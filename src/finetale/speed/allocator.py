"""Keep memory that every step frees and allocates again in the process.

glibc returns large arrays to the system as soon as they are freed, and the system clears each page when it is touched
again. This takes over a fifth of a training step's time on a CPU (docs/performance.md).
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
    """Keep freed memory inside the context, and return it to the system at the end. May be nested.

    Applies to the whole process, and only with glibc. Does nothing if environment variables configure malloc.
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
