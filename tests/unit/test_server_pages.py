"""Pages of a key/value cache are shared by equal beginnings of texts only, and never by two rows that write."""

from __future__ import annotations

import random

import pytest

from finetale.server.engines import NoRoom
from finetale.server.engines.pages import PageTable

SIZE = 4


class Memory:
    """Pages with the tokens that were written to them, to check what a row would read."""

    def __init__(self, limit: int) -> None:
        self.table = PageTable(SIZE, limit)
        self.pages: dict[int, list[int]] = {}

    def read(self, number: int, ids: list[int]) -> None:
        self.table.reserve([number], [len(ids)])
        row = self.table.rows[number]
        for at, token in enumerate(ids, start=row.length):
            page = self.pages.setdefault(row.pages[at // SIZE], [0] * SIZE)
            page[at % SIZE] = token
        self.table.fill(number, ids)

    def copy(self, number: int) -> None:
        for old, new in self.table.copy(number):
            self.pages[new] = list(self.pages[old])

    def text(self, number: int) -> list[int]:
        row = self.table.rows[number]
        return [token for page in row.pages for token in self.pages.get(page, [])][: row.length]


@pytest.mark.parametrize("seed", range(20))
def test_rows_read_their_own_text_whatever_joins_and_leaves(seed: int) -> None:
    drawn = random.Random(seed)
    memory = Memory(limit=12)
    texts: list[list[int]] = []  # by row
    reused = refused = 0
    for _ in range(400):
        action = drawn.choice(["join", "read", "read", "copy", "leave"])
        number = drawn.randrange(len(texts)) if texts else None
        if action == "join" and len(texts) < 6:
            ids = [drawn.randrange(2) for _ in range(drawn.randrange(1, 14))]
            had = memory.table.join(ids)
            assert had % SIZE == 0
            assert had < len(ids)
            reused += had
            texts.append(ids[:had])
        elif number is None:
            continue
        elif action == "read":
            more = [drawn.randrange(2) for _ in range(drawn.randrange(1, 6))]
            try:
                memory.read(number, more)
                texts[number] += more
            except NoRoom:
                refused += 1
        elif action == "copy" and len(texts) < 6:
            try:
                memory.copy(number)
                texts.append(list(texts[number]))
            except NoRoom:
                refused += 1
        elif action == "leave":
            memory.table.leave(number)
            last = texts.pop()
            if number < len(texts):
                texts[number] = last
        assert [memory.text(row) for row in range(len(texts))] == texts
    assert reused > 0
    assert refused > 0
    for _ in range(len(texts)):
        memory.table.leave(0)
    memory.table.join()
    memory.read(0, list(range(12 * SIZE)))  # all pages are there


def test_a_text_that_left_is_found_again_until_its_pages_are_needed() -> None:
    memory = Memory(limit=4)
    ids = list(range(9))
    assert memory.table.join(ids) == 0
    memory.read(0, ids)
    memory.table.leave(0)
    assert memory.table.join(ids) == 8
    memory.table.leave(0)
    assert memory.table.join([*ids[:4], 99, *ids[5:]]) == 4
    memory.table.leave(0)
    assert memory.table.join([99, *ids[1:]]) == 0, "equal tokens after another beginning"
    memory.read(0, [7] * 16)
    memory.table.leave(0)
    assert memory.table.join(ids) == 0


def test_a_pass_without_enough_pages_changes_nothing() -> None:
    memory = Memory(limit=4)
    for _ in range(3):
        memory.table.join()
    memory.read(0, [1] * 9)
    with pytest.raises(NoRoom):
        memory.table.reserve([1, 2], [4, 1])
    memory.read(1, [2] * 4)
    assert [memory.text(row) for row in range(3)] == [[1] * 9, [2] * 4, []]
