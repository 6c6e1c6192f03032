"""Events on their way to a listener: the callback, and short forms for the commonest events."""

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
    """Report what is being done now, and how much of it is done."""
    notify(StageEvent(message=message, done=done, total=total, unit=unit))


def warn(notify: Notify, message: str) -> None:
    """Report something that a person should know."""
    notify(WarningEvent(message=message))


def counted(items: Iterable[T], progress: Callable[[int], None]) -> Iterator[T]:
    """Yield the items; call `progress` with the number so far at every thousandth."""
    for number, item in enumerate(items, 1):
        yield item
        if number % 1000 == 0:
            progress(number)


def note(notify: Notify, message: str) -> None:
    """Tell a listener something that a person may want to know."""
    notify(NoteEvent(message=message))
