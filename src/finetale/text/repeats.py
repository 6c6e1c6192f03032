"""Find documents that occurred before, exactly or nearly, and their splits. Knows nothing of files."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetale.text.documents import SPLITS, Split
from finetale.text.key_table import KeyStore, KeyTable, occurs_twice
from finetale.text.near import MAX_DOCUMENTS, NearIndex, Sketches, sketches_of
from finetale.text.splits import Placed

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "nearly a duplicate"
OVERLAP = "also in validation or test"
NEAR_OVERLAP = "nearly the same in training and in validation or test"
"""The reasons why documents are dropped, as in the report."""

LINE_BITS = 40
TRAIN, VALIDATION, TEST, CUT = (1 << number for number in range(4))
HELD_OUT = VALIDATION | TEST
_MARKS: dict[Split, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@dataclass(frozen=True, slots=True)
class Earlier:
    """Earlier documents with the same text, or nearly the same.

    Attributes:
        place: place of the first of them, as file:line.
        marks: the splits that they are in, as bits.
        similarity: 1 if the text is the same, else the estimated share of passages in common.
    """

    place: str
    marks: int
    similarity: float = 1.0

    def shares_split(self, placed: Placed) -> bool:
        """Return whether one of them is in the same split."""
        return bool(self.marks & _mark_of(placed))

    def leaks(self, placed: Placed) -> frozenset[Split]:
        """Return the splits from which a document must be dropped, so that no held-out text is trained on."""
        # The same text is cut at the same places, and held-out text from its own source is read first.
        cut, train = (CUT, TRAIN) if self.similarity < 1 else (0, 0)
        against = {split: (HELD_OUT if split == "train" else train) | cut for split in SPLITS}
        return frozenset(split for split, _ in placed.parts if self.marks & against[split])


@dataclass(frozen=True, slots=True)
class Found:
    """The result of `Repeats.find`: earlier documents, and the values that `Repeats.remember` needs."""

    exact: Earlier | None
    near: Earlier | None
    number: int | None
    group: int | None
    sketch: Sketches | None


class Repeats:
    """An index of documents. Each takes about 60 bytes, and 270 bytes more if near repeats are searched for.

    Documents come in batches. `prepare` looks up a whole batch at once and returns which documents may repeat another.
    Then call, in the order of the documents, `find` and `remember` for these, and `remember_new` for the others.

    Similar documents form a group. Later documents are compared with its first document only, because a thousand copies
    would give a million pairs.
    """

    def __init__(self, *, near: bool) -> None:
        self._halves = KeyStore()  # by number: first half of the digest
        self._other_halves = KeyStore()
        self._table = KeyTable(self._halves)
        self._recent: dict[bytes, int] = {}  # number of each document of the batch that others may repeat
        self._places = array("Q")  # by number: source and line
        self._groups = array("I")  # by number: number of the first document of the group
        self._marks = bytearray()  # by number: splits of this text
        self._group_marks = bytearray()  # by number of the first document: splits of its group
        self._has_others = bytearray()  # by number of the first document: whether its group has other texts
        self._names: list[str] = []
        self._sources: dict[str, int] = {}
        self._source = 0  # of the last document, as an index of the names
        self._near = NearIndex() if near else None
        self._new: list[bytes] = []  # digests of the batch, not in the table yet
        self._known: list[int] = []  # by place in the batch: number of the same text in earlier batches, or -1
        self._sketches: Sketches | None = None
        self._rows: list[int] = []  # by place in the batch: row of the sketch, or -1

    @property
    def crowded(self) -> int:
        """Number of documents that were not compared with all of their many candidates."""
        return self._near.crowded if self._near is not None else 0

    @property
    def limit(self) -> int | None:
        """Number of documents that later ones were compared with for near repeats. None if with all."""
        return MAX_DOCUMENTS if self._near is not None and self._near.is_full else None

    def prepare(self, batch: Sequence[Placed]) -> list[bool]:
        """Look up a batch. Return for each document whether it may repeat an earlier one, in the batch or before it."""
        self._add_to_table()
        digests = np.frombuffer(b"".join([placed.candidate.digest for placed in batch]), "<u8").reshape(-1, 2)
        first, other = np.ascontiguousarray(digests[:, 0]), digests[:, 1]
        known = self._table.find(first)
        there = np.flatnonzero(known >= 0)
        known[there[self._other_halves.array[known[there]] != other[there]]] = -1
        may_repeat = (known >= 0) | occurs_twice(first)
        if self._near is not None:
            self._sketches, rows = sketches_of([placed.candidate.document.text for placed in batch])
            shared = self._near.prepare(self._sketches)
            may_repeat |= (rows >= 0) & np.append(shared, False)[rows]
            self._rows = rows.tolist()
        self._known = known.tolist()
        flags: list[bool] = may_repeat.tolist()
        return flags

    def find(self, placed: Placed, at: int) -> Found:
        """Return the earlier documents that a document repeats. `at` is its position in the batch."""
        number: int | None = self._known[at]
        if number == -1:
            number = self._recent.get(placed.candidate.digest)
        if number is not None:
            exact, group = Earlier(self._place(number), self._marks[number]), self._groups[number]
            has_others = self._near is not None and bool(self._has_others[group])
            near = Earlier(self._place(group), self._group_marks[group], 0.999) if has_others else None
            return Found(exact, near, number, group, None)
        if self._near is None or self._sketches is None or self._rows[at] < 0:
            return Found(None, None, None, None, None)
        sketch: Sketches = self._sketches[self._rows[at]]
        if (alike := self._near.find(sketch)) is None:
            return Found(None, None, None, None, sketch)
        group, similarity = alike
        near = Earlier(self._place(group), self._group_marks[group], min(similarity, 0.999))
        return Found(None, near, None, group, sketch)

    def remember(self, placed: Placed, found: Found) -> None:
        """Add a document that is used. Call `find` before."""
        number = found.number
        if number is None:
            number = self._take_in(placed, found.group)
            self._recent[placed.candidate.digest] = number
            if found.group is not None:
                self._has_others[found.group] = 1
            elif found.sketch is not None and self._near is not None:
                self._near.add(found.sketch, number)
        mark = _mark_of(placed)
        self._marks[number] |= mark
        self._group_marks[self._groups[number]] |= mark

    def remember_new(self, placed: Placed, at: int) -> None:
        """Add a document that is used and for which `prepare` returned False."""
        number = self._take_in(placed, None)
        self._marks[number] = self._group_marks[number] = _mark_of(placed)
        if self._near is not None and self._sketches is not None and self._rows[at] >= 0:
            self._near.add_lonely(self._sketches[self._rows[at]], number)

    def _take_in(self, placed: Placed, group: int | None) -> int:
        number = len(self._marks)
        document = placed.candidate.document
        if not self._names or document.source != self._names[self._source]:
            self._source = self._sources.setdefault(document.source, len(self._names))
            if self._source == len(self._names):
                self._names.append(document.source)
        self._new.append(placed.candidate.digest)
        self._places.append(self._source << LINE_BITS | document.line)
        self._groups.append(number if group is None else group)
        self._marks.append(0)
        self._group_marks.append(0)
        self._has_others.append(0)
        return number

    def _add_to_table(self) -> None:
        """Add the digests of the last batch to the table."""
        self._recent.clear()
        if self._new:
            digests = np.frombuffer(b"".join(self._new), "<u8").reshape(-1, 2)
            start = self._halves.extend(digests[:, 0])
            self._other_halves.extend(digests[:, 1])
            self._table.add(np.arange(start, start + len(digests)))
            self._new.clear()

    def _place(self, number: int) -> str:
        place = self._places[number]
        return f"{self._names[place >> LINE_BITS]}:{place & ((1 << LINE_BITS) - 1)}"


def _mark_of(placed: Placed) -> int:
    return CUT if len(placed.parts) > 1 else _MARKS[placed.parts[0][0]]
