"""Events on their way to a listener: the callback, and the event that names the stage of the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
Notify = Callable[[dict[str, Any]], None]


def stage(notify: Notify, message: str, **values: Any) -> None:
    """Tell a listener what is being done now."""
    notify({"event": "stage", "message": message} | values)


def counted(items: Iterable[T], progress: Callable[[int], None]) -> Iterator[T]:
    """The items, with the number of those so far told at every thousandth."""
    for number, item in enumerate(items, 1):
        yield item
        if number % 1000 == 0:
            progress(number)
