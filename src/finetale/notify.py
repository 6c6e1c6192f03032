"""Send events to a listener: the callback type, and short functions for the most common events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from finetale.schema import Event, NoteEvent, StageEvent, WarningEvent

T = TypeVar("T")
Notify = Callable[[Event], None]
"""A listener: receives events."""


def stage(
    notify: Notify, message: str, *, done: int | None = None, total: int | None = None, unit: str | None = None
) -> None:
    """Report the current stage of the work, and its progress."""
    notify(StageEvent(message=message, done=done, total=total, unit=unit))


def warn(notify: Notify, message: str) -> None:
    """Send a warning."""
    notify(WarningEvent(message=message))


def counted(items: Iterable[T], progress: Callable[[int], None]) -> Iterator[T]:
    """Yield the items; call `progress` with the number so far at every thousandth."""
    for number, item in enumerate(items, 1):
        yield item
        if number % 1000 == 0:
            progress(number)


def note(notify: Notify, message: str) -> None:
    """Send a piece of information."""
    notify(NoteEvent(message=message))
