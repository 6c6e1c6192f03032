"""Keep freed memory in the process, because every training step allocates the same arrays again.

By default, glibc returns a large array to the system as soon as it is freed. The system then clears each page when the
next array touches it. This takes more than a fifth of a training step on a CPU (docs/performance.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from functools import cache

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)
_AFTERWARDS = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 64 * 2**20))
"""Values to restore. glibc raises its thresholds to these once a program has freed large arrays."""
_UNLIMITED = 2**31 - 1  # the largest value that mallopt accepts, a C int
_depth = 0
_CACHED_VALUES = 2**17
"""fp32 values per thread that are computed together, so that they stay in a processor's cache; half a MiB."""
_TEMPORARY_BYTES = 32 * 2**20
"""Size up to which `temporary` keeps an array."""
_arrays = threading.local()


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
        if _depth == 0:
            vars(_arrays).clear()
            release()


def temporary(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return an array with undefined values, on the CPU. Inside `kept_memory` the same memory is used again and again.

    New memory costs more than most operations on it: the system clears each page when it is first written.

    Args:
        name: names the use. The next call with this name, in this thread, may return the same memory.
    """
    size = 1
    for length in shape:
        size *= length
    if not _depth or size * dtype.itemsize > _TEMPORARY_BYTES:
        return torch.empty(shape, dtype=dtype)
    key = f"{name} {dtype}"
    array: torch.Tensor | None = vars(_arrays).get(key)
    if array is None or len(array) < size:
        array = torch.empty(size, dtype=dtype)
        setattr(_arrays, key, array)
    return array[:size].view(shape)


def cached_values() -> int:
    """Return the number of fp32 values to compute together, so that they stay in the caches of all threads."""
    return _CACHED_VALUES * torch.get_num_threads()


def cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Return a tensor in another type. A copy is a `temporary` of this name, in the order of the tensor's memory."""
    if tensor.dtype == dtype:
        return tensor
    if not tensor.is_contiguous():
        return tensor.to(dtype)
    return temporary(name, tuple(tensor.shape), dtype).copy_(tensor)


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
