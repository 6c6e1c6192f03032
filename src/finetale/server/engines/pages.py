"""Pages of a key/value cache: which page holds which tokens of which row. Knows no tensors.

Rows whose texts begin alike share the pages of the beginning, and a page stays usable after its rows have left, until
its memory is needed (prefix caching, Kwon et al. 2023). A page is found by a hash of all tokens up to its end, so equal
tokens after different beginnings never share a page.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from finetale.server.engines import NoRoom

_START = b""


@dataclass(slots=True)
class _Row:
    pages: list[int] = field(default_factory=list)
    length: int = 0
    key: bytes = _START  # of the last full page
    tail: list[int] = field(default_factory=list)  # tokens after the last full page


class PageTable:
    """Hands out pages to rows.

    Args:
        size: tokens per page.
        limit: maximum number of pages.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        self.rows: list[_Row] = []
        self._num_pages = 0
        self._free: list[int] = []  # a heap: low numbers first, so that little memory is needed
        self._users: dict[int, int] = {}  # number of rows by page
        self._pages: dict[bytes, int] = {}  # full pages by key
        self._keys: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # full pages without a row, least recently used first

    def join(self, ids: Sequence[int] = ()) -> int:
        """Add a row that begins with the pages that have the first tokens of `ids`; return the number of these tokens.

        At least the last token is left to read.
        """
        row = _Row()
        for start in range(0, max(0, len(ids) - 1) // self.size * self.size, self.size):
            key = chained(row.key, ids[start : start + self.size])
            page = self._pages.get(key)
            if page is None:
                break
            self._use(page)
            row.pages.append(page)
            row.key = key
            row.length += self.size
        self.rows.append(row)
        return row.length

    def copy(self, number: int) -> list[tuple[int, int]]:
        """Add a copy of a row; return which pages to copy, as (from, to): the last one if it is not full.

        Raises:
            NoRoom: no page is left.
        """
        row = self.rows[number]
        full = len(row.pages) - (1 if row.tail else 0)
        new = self._take(len(row.pages) - full)
        for page in row.pages[:full]:
            self._use(page)
        self.rows.append(_Row([*row.pages[:full], *new], row.length, row.key, list(row.tail)))
        return list(zip(row.pages[full:], new, strict=True))

    def leave(self, number: int) -> None:
        """Remove a row; the last row takes its number."""
        # The end of a text is forgotten before its beginning: it is of no use without it.
        for page in reversed(self.rows[number].pages):
            self._release(page)
        last = self.rows.pop()
        if number < len(self.rows):
            self.rows[number] = last

    def reserve(self, numbers: Sequence[int], counts: Sequence[int]) -> None:
        """Give rows the pages for this many more tokens each.

        Raises:
            NoRoom: there are not enough pages. No row has changed.
        """
        rows = [self.rows[number] for number in numbers]
        needs = [
            max(0, -(-(row.length + count) // self.size) - len(row.pages))
            for row, count in zip(rows, counts, strict=True)
        ]
        new = self._take(sum(needs))
        for row, need in zip(rows, needs, strict=True):
            row.pages += new[:need]
            del new[:need]

    def fill(self, number: int, ids: Sequence[int]) -> None:
        """Record the tokens that were read into a row's pages."""
        row = self.rows[number]
        row.length += len(ids)
        row.tail += ids
        while len(row.tail) >= self.size:
            row.key = chained(row.key, row.tail[: self.size])
            page = row.pages[(row.length - len(row.tail)) // self.size]
            del row.tail[: self.size]
            if row.key not in self._pages:
                self._pages[row.key] = page
                self._keys[page] = row.key

    def clear(self) -> None:
        """Forget all pages. Only without rows."""
        assert not self.rows, "a row is in use"
        self._num_pages = 0
        self._free.clear()
        self._unused.clear()
        self._pages.clear()
        self._keys.clear()

    def _take(self, count: int) -> list[int]:
        """Return pages that no row uses. New memory comes before old texts while these take less than half."""
        if count > len(self._free) + len(self._unused) + self.limit - self._num_pages:
            raise NoRoom
        taken = []
        for _ in range(count):
            if self._free:
                page = heapq.heappop(self._free)
            elif self._unused and (2 * len(self._unused) > self._num_pages or self._num_pages >= self.limit):
                page, _ = self._unused.popitem(last=False)
                del self._pages[self._keys.pop(page)]
            else:
                page, self._num_pages = self._num_pages, self._num_pages + 1
            self._users[page] = 1
            taken.append(page)
        return taken

    def _use(self, page: int) -> None:
        self._users[page] = self._users.get(page, 0) + 1
        self._unused.pop(page, None)

    def _release(self, page: int) -> None:
        self._users[page] -= 1
        if self._users[page]:
            return
        del self._users[page]
        if page in self._keys:
            self._unused[page] = None
        else:
            heapq.heappush(self._free, page)


def chained(before: bytes, ids: Sequence[int]) -> bytes:
    """Return the key of tokens that follow the tokens with the key `before`."""
    return hashlib.blake2b(before + np.asarray(ids, np.int32).tobytes(), digest_size=16).digest()
