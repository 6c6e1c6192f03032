"""Who is next: a bounded queue in which clients take turns, and of one client its users. Knows no requests and no threads."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_Client = OrderedDict[str, deque[T]]  # by user, whose turn it is first


class Turns(Generic[T]):
    """Things that wait.

    Args:
        most: how many may wait. A client of whom nothing waits finds a quarter more, so that nobody can keep the others
            out by filling the queue.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._extra = -(-most // 4)
        self._clients: OrderedDict[str, _Client[T]] = OrderedDict()  # whose turn it is first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for users in self._clients.values():
            for waiting in users.values():
                yield from waiting

    def has_room(self, client: str, soon: int = 0) -> bool:
        """Whether something of a client may wait, where so many of those that wait will not for long."""
        return self._count - soon < self._most + (0 if client in self._clients else self._extra)

    def put(self, thing: T, client: str, user: str = "") -> None:
        """Let a thing wait behind those of its client's user."""
        self._clients.setdefault(client, OrderedDict()).setdefault(user, deque()).append(thing)
        self._count += 1

    def first(self) -> T | None:
        """The thing whose turn it is."""
        for users in self._clients.values():
            for waiting in users.values():
                return waiting[0]
        return None

    def pass_on(self, *, done: bool) -> None:
        """The first thing had its turn, and it is others'; it has left if it is done, else it keeps its place among its user's."""
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

    def remove(self, thing: T) -> None:
        """It does not wait any more; passed over if it did not."""
        for client, users in self._clients.items():
            for user, waiting in users.items():
                if thing in waiting:
                    waiting.remove(thing)
                    self._count -= 1
                    if not waiting:
                        del users[user]
                    if not users:
                        del self._clients[client]
                    return

    def clear(self) -> None:
        """Nothing waits any more."""
        self._clients.clear()
        self._count = 0
