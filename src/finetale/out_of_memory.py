"""Recognise failures that mean that memory ran out, and report them in one sentence.

Each library has its own exception for this, and most hide it in the text of a RuntimeError. torch is not imported here.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Iterator

from finetale.environment import address_space_limit
from finetale.errors import FinetaleError, MemoryLimitError

_TEXTS = re.compile(
    r"out of memory|not enough memory|(can't|cannot|could not|couldn't|unable to|failed to) allocate|bad_alloc"
    r"|_ALLOC_FAILED|failed to map segment|os error 12\b|can't start new thread|insufficient memory"
    # oneDNN reports every failed allocation like this; a primitive descriptor fails for other reasons.
    r"|could not (create|execute) a primitive(?! descriptor)|could not create a memory",
    re.IGNORECASE,
)
_NOT_MEMORY = re.compile(r"static TLS block", re.IGNORECASE)
LEAST_ADDRESS_SPACE = 2 * 2**30
"""Bytes of address space below which loading PyTorch and transformers fails (measured: 1.83 GiB on Linux)."""
_HINT = (
    "Close other programs, or choose a smaller --micro-batch-size, --block-size or model, or --gradient-checkpointing."
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out: main memory or an accelerator's, in any library."""
    if isinstance(error, MemoryError):  # also numpy's and pyarrow's
        return True
    if isinstance(error, FinetaleError):
        return isinstance(error, MemoryLimitError)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # torch.OutOfMemoryError is a RuntimeError with "out of memory" in its text, unless a program makes one by itself.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, getattr(torch, "OutOfMemoryError", ())):
        return True
    known = isinstance(error, RuntimeError | OSError | ImportError) or type(error).__name__ == "SafetensorError"
    return known and bool(_TEXTS.search(str(error))) and not _NOT_MEMORY.search(str(error))


def memory_limit_error(error: BaseException) -> MemoryLimitError:
    """Return the sentence and hint for a failure that `is_out_of_memory` recognises."""
    if isinstance(error, MemoryLimitError):
        return error
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    limit = address_space_limit()
    hint = _HINT if limit is None else f"Raise the limit on this process's address space (`ulimit -v`), or: {_HINT}"
    within = "" if limit is None else f" within {limit / 2**30:.1f} GiB of address space"
    return MemoryLimitError(f"Memory ran out{within}: {first.rstrip('.')}.", hint)


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


def check_address_space() -> None:
    """Refuse a limit on the address space (`ulimit -v`) within which PyTorch can't be loaded.

    Below it libraries end the process without an exception, or wait forever for memory.

    Raises:
        MemoryLimitError: names the limit and what is needed.
    """
    limit = address_space_limit()
    if limit is not None and limit < LEAST_ADDRESS_SPACE:
        raise MemoryLimitError(
            f"Memory would run out: this process may use {limit / 2**30:.1f} GiB of address space, and loading PyTorch"
            f" takes {LEAST_ADDRESS_SPACE / 2**30:.0f} GiB.",
            "Raise the limit with `ulimit -v`, or remove it with `ulimit -v unlimited`.",
        )
