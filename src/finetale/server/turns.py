"""A bounded fair queue: clients take turns, and so do the users of a client. Knows no requests and no threads."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_Client = OrderedDict[str, deque[T]]  # by user, in the order of their turns


class Turns(Generic[T]):
    """The queue.

    Args:
        max_length: maximum length. For a client with nothing in the queue it is a quarter more, so that no client can
            lock out the others by filling the queue.
    """

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._extra = -(-max_length // 4)
        self._clients: OrderedDict[str, _Client[T]] = OrderedDict()  # in the order of their turns
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for users in self._clients.values():
            for waiting in users.values():
                yield from waiting

    def has_room(self, client: str, soon: int = 0) -> bool:
        """Return whether a client may add an item. `soon` items of the queue are about to leave it and do not count."""
        return self._count - soon < self._max_length + (0 if client in self._clients else self._extra)

    def put(self, item: T, client: str, user: str = "") -> None:
        """Add an item behind the others of its client's user."""
        self._clients.setdefault(client, OrderedDict()).setdefault(user, deque()).append(item)
        self._count += 1

    def first(self) -> T | None:
        """Return the next item, None if the queue is empty."""
        for users in self._clients.values():
            for waiting in users.values():
                return waiting[0]
        return None

    def pass_on(self, *, done: bool) -> None:
        """End the turn of the next item. A done item leaves the queue; others stay first among their user's items."""
        client, users = next(iter(self._clients.items()))
        user, waiting = next(iter(users.items()))
        if done:
            waiting.popleft()
            self._count -= 1
        if waiting:
            users.move_to_end(user)
        else:
            del users[user]
        if users:
            self._clients.move_to_end(client)
        else:
            del self._clients[client]

    def remove(self, item: T) -> None:
        """Remove an item; do nothing if it is not in the queue."""
        for client, users in self._clients.items():
            for user, waiting in users.items():
                if item in waiting:
                    waiting.remove(item)
                    self._count -= 1
                    if not waiting:
                        del users[user]
                    if not users:
                        del self._clients[client]
                    return

    def clear(self) -> None:
        """Remove all items."""
        self._clients.clear()
        self._count = 0
