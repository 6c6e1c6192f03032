"""Recognise failures that mean that memory ran out, and report them in one sentence.

Each library has its own exception for this, and most hide it in the text of a RuntimeError. torch is not imported here.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from finetale.environment import address_space, address_space_limit
from finetale.errors import FinetaleError, InterruptedRun, MemoryLimitError, RankError

_TEXTS = re.compile(
    r"out of memory|not enough memory|(can't|cannot|could not|couldn't|unable to|failed to) allocate|bad_alloc"
    r"|_ALLOC_FAILED|failed to map segment|os error 12\b|can't start new thread|insufficient memory"
    # oneDNN reports every failed allocation like this; a primitive descriptor fails for other reasons.
    r"|could not (create|execute) a primitive(?! descriptor)|could not create a memory",
    re.IGNORECASE,
)
# torch's parser of arguments fails like this when its tables could not be allocated.
_TEXTS_UNDER_A_LIMIT = re.compile(r"unknown parameter type")
_NOT_MEMORY = re.compile(r"static TLS block", re.IGNORECASE)
_LIBRARIES, _HEADROOM = 7 * 2**28, 2**28
"""Bytes of address space that PyTorch and transformers take (1.73 GiB on Linux), and that a command needs."""
_RESERVED_BYTES = 8 * 2**20
_reserve: list[bytes] = []
_SMALLER = "choose a smaller --micro-batch-size, --block-size or model, or --gradient-checkpointing"
T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out: main memory or an accelerator's, in any library."""
    return _failure(error) is not None


def memory_limit_error(error: BaseException, when: str = "") -> MemoryLimitError:
    """Return the sentence and hint for a failure that `is_out_of_memory` recognises.

    Args:
        when: what was being done, such as "with one sequence of 64 tokens".
    """
    failure = _failure(error) or error
    if isinstance(failure, MemoryLimitError):
        return failure
    first = next(iter(str(failure).splitlines()), "") or type(failure).__name__
    limit = address_space_limit()
    within = "" if limit is None else f"within {limit / 2**30:.1f} GiB of address space"
    what = " ".join(filter(None, ("Memory ran out", when, within)))
    first_step = "Close other programs" if limit is None else "Raise the limit on the address space (`ulimit -v`)"
    return MemoryLimitError(f"{what}: {first.rstrip('.')}.", f"{first_step}, or {_SMALLER}.")


def _failure(error: BaseException) -> BaseException | None:
    """Return the exception for exhausted memory: this one, or one in its chain of causes."""
    if isinstance(error, MemoryError | MemoryLimitError):  # also numpy's and pyarrow's
        return error
    if isinstance(error, InterruptedRun | RankError):
        return None
    if isinstance(error, FinetaleError):  # such as "the weights can't be read", raised for a failed mmap
        reason = error.__cause__ or error.__context__
        return None if reason is None else _failure(reason)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return error
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, getattr(torch, "OutOfMemoryError", ())):
        return error
    known = isinstance(error, RuntimeError | OSError | ImportError) or type(error).__name__ == "SafetensorError"
    if not known:
        return None
    text = str(error)
    found = bool(_TEXTS.search(text)) and not _NOT_MEMORY.search(text)
    if not found and address_space_limit() is not None:
        found = bool(_TEXTS_UNDER_A_LIMIT.search(text))
    return error if found else None


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn failures that mean that memory ran out into MemoryLimitError. Works as a decorator too.

    Raises:
        MemoryLimitError: memory ran out inside.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        limit = memory_limit_error(error)
        if limit is error:
            raise
        raise limit from error


def fit_batches(
    work: Callable[[int], T],
    batch_size: int,
    block_size: int,
    *,
    clean_up: Callable[[], None] = lambda: None,
    notify_halved: Callable[[int], None] = lambda batch_size: None,
) -> T:
    """Return `work(batch_size)`. While memory runs out, halve the batch size and try again.

    Args:
        work: takes the number of sequences per pass.
        batch_size: the first number of sequences per pass.
        block_size: tokens per sequence, for the message.
        clean_up: called after each failure, when the failed attempt no longer holds memory.
        notify_halved: called with each smaller batch size before it is tried.

    Raises:
        MemoryLimitError: one sequence per pass does not fit.
    """
    while True:
        try:
            return work(batch_size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            limit = memory_limit_error(error, f"with one sequence of {block_size} tokens")
        clean_up()
        if batch_size == 1:
            raise limit
        batch_size //= 2
        notify_halved(batch_size)


def check_address_space() -> None:
    """Refuse to begin within a limit on the address space (`ulimit -v`) that leaves too little.

    Without this check libraries written in C++ and Rust end the process without an exception, or wait forever.

    Raises:
        MemoryLimitError: names the limit and what is needed.
    """
    limit = address_space_limit()
    if limit is None:
        return
    _reserve_small_objects()
    needed, what = (_HEADROOM, "to begin") if "torch" in sys.modules else (_LIBRARIES + _HEADROOM, "to load PyTorch")
    free = limit - address_space()
    if free < needed:
        raise MemoryLimitError(
            f"Memory would run out: {max(0, free) >> 20:,} of {limit >> 20:,} MiB of address space are free, and"
            f" Finetale needs {needed >> 20:,} MiB {what}.",
            "Raise the limit with `ulimit -v`, or remove it with `ulimit -v unlimited`.",
        )


def _reserve_small_objects() -> None:
    """Leave Python room for small objects when nothing else is left.

    Python 3.11 loops forever if it has no memory for the integer that it needs to enter a `finally` block. Its
    allocator keeps an arena (1 MiB) as long as one object lives in it, and uses the emptiest arena last.
    """
    if not _reserve:
        objects = [bytes(200) for _ in range(_RESERVED_BYTES // 240)]
        _reserve.extend(objects[:: 2**19 // 240])
