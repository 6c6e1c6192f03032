"""Copies of the keys and values of the beginnings of texts, in pieces (prefix caching, Kwon et al. 2023).

A piece is found by a hash of all tokens up to its end, so texts that begin alike share the pieces of the beginning.
Knows no rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor

from finetale.server.engines.pages import chained

SIZE = 64
"""Tokens per piece."""
Pairs = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, (1, heads, tokens, width)."""


class Prefixes:
    """Pieces of texts, least recently used first. Each text has a kind; texts of different kinds share nothing.

    Attributes:
        num_bytes: memory of the pieces, in bytes.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._pieces: OrderedDict[bytes, Pairs] = OrderedDict()

    def find(self, kind: int, ids: Sequence[int]) -> list[Pairs]:
        """Return the pieces that a text begins with."""
        known = []
        for key in _keys(kind, ids):
            if key not in self._pieces:
                break
            known.append(key)
        self._touch(known)
        return [self._pieces[key] for key in known]

    def keep(self, kind: int, ids: Sequence[int], first: int, read: Callable[[int, int], Pairs], limit: int) -> None:
        """Keep the whole pieces of a text from number `first` on, as far as `limit` bytes of all pieces allow.

        Args:
            read: returns views of the keys and values from one token to before another.
        """
        keys = _keys(kind, ids)
        for number, key in enumerate(keys[first:], start=first):
            if key in self._pieces:
                continue
            if number and keys[number - 1] not in self._pieces:  # of no use without it
                break
            views = read(number * SIZE, (number + 1) * SIZE)
            size, before = _bytes(views), set(keys[:number])
            while self._pieces and self.num_bytes + size > limit and next(iter(self._pieces)) not in before:
                self._drop_oldest()
            if self.num_bytes + size > limit:
                break
            self._pieces[key] = [(key_states.clone(), value_states.clone()) for key_states, value_states in views]
            self.num_bytes += size
        self._touch([key for key in keys if key in self._pieces])

    def shrink(self, limit: int) -> None:
        """Drop pieces until they take at most this many bytes."""
        while self._pieces and self.num_bytes > limit:
            self._drop_oldest()

    def _touch(self, keys: Sequence[bytes]) -> None:
        """Count pieces as used now. The end of a text is dropped before its beginning: it is of no use without it."""
        for key in reversed(keys):
            self._pieces.move_to_end(key)

    def _drop_oldest(self) -> None:
        _, pairs = self._pieces.popitem(last=False)
        self.num_bytes -= _bytes(pairs)


def _keys(kind: int, ids: Sequence[int]) -> list[bytes]:
    """Return the keys of the whole pieces of a text."""
    found, key = [], kind.to_bytes(8, "little")
    for stop in range(SIZE, len(ids) + 1, SIZE):
        key = chained(key, ids[stop - SIZE : stop])
        found.append(key)
    return found


def _bytes(pairs: Pairs) -> int:
    return sum(tensor.numel() * tensor.element_size() for pair in pairs for tensor in pair)
