"""Keep freed memory in the process, because every training step allocates the same arrays again.

By default, glibc returns a large array to the system as soon as it is freed. The system then clears each page when the
next array touches it. This takes more than a fifth of a training step on a CPU (docs/performance.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)
_AFTERWARDS = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 64 * 2**20))
"""Values to restore. glibc raises its thresholds to these once a program has freed large arrays."""
_UNLIMITED = 2**31 - 1  # the largest value that mallopt accepts, a C int
_depth = 0


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory in the process inside the context, and return it to the system at the end. May be nested.

    Affects the whole process. Does nothing without glibc, or if environment variables configure malloc.
    """
    global _depth
    libc = _glibc()
    _depth += 1
    if libc is not None and _depth == 1:
        libc.malloc_trim(0)  # return memory that was freed before
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, _UNLIMITED)
    try:
        yield
    finally:
        _depth -= 1
        if libc is not None and _depth == 0:
            for name, value in _AFTERWARDS:
                libc.mallopt(name, value)
            libc.malloc_trim(0)


def release_holes() -> None:
    """Return free memory between arrays in use to the system, inside `kept_memory`.

    The temporary arrays of a forward pass leave holes between those that it keeps. Call this before arrays that do not
    fit into the holes.
    """
    if _depth:
        release()


def release() -> None:
    """Return free memory to the system. glibc keeps freed arrays of less than 32 MB by default."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    own = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or own:
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
