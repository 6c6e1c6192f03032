"""Find documents that occurred before, exactly or nearly, and their splits. Knows nothing of files."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetale.text.documents import SPLITS, Split
from finetale.text.key_table import KeyStore, KeyTable, occurs_twice
from finetale.text.near import MAX_DOCUMENTS, NearIndex, Sketches, sketches_of
from finetale.text.splits import Candidate

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

    def shares_split(self, document: Candidate) -> bool:
        """Return whether one of them is in the same split."""
        return bool(self.marks & _mark_of(document))

    def leaks(self, document: Candidate) -> frozenset[Split]:
        """Return the splits from which a document must be dropped, so that no held-out text is trained on."""
        # The same text is cut at the same places, except mixed text. Separate held-out sources are read first.
        cut, train = (CUT, TRAIN) if self.similarity < 1 or document.beside is not None else (0, 0)
        against = {split: (HELD_OUT if split == "train" else train) | cut for split in SPLITS}
        return frozenset(split for split, _, _ in document.parts if self.marks & against[split])


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
        self._source = ""  # of the last document
        self._source_bits = 0
        self._near = NearIndex() if near else None
        self._new: list[bytes] = []  # digests of the batch, not in the table yet
        self._known: list[int] = []  # by place in the batch: number of the same text in earlier batches, or -1
        self._sketches: Sketches | None = None
        self._rows: NDArray[np.int64] = np.zeros(0, np.int64)  # by place in the batch: row of the sketch, or -1

    @property
    def crowded(self) -> int:
        """Number of documents that were not compared with all of their many candidates."""
        return self._near.crowded if self._near is not None else 0

    @property
    def limit(self) -> int | None:
        """Number of documents that later ones were compared with for near repeats. None if with all."""
        return MAX_DOCUMENTS if self._near is not None and self._near.is_full else None

    def prepare(self, batch: Sequence[Candidate]) -> list[bool]:
        """Look up a batch. Return for each document whether it may repeat an earlier one, in the batch or before it."""
        self._add_to_table()
        digests = np.frombuffer(b"".join([document.digest for document in batch]), "<u8").reshape(-1, 2)
        first, other = np.ascontiguousarray(digests[:, 0]), digests[:, 1]
        known = self._table.find(first)
        there = np.flatnonzero(known >= 0)
        known[there[self._other_halves.array[known[there]] != other[there]]] = -1
        may_repeat = (known >= 0) | occurs_twice(first)
        if self._near is not None:
            self._sketches, rows = sketches_of([document.own_text or document.text for document in batch])
            shared = self._near.prepare(self._sketches)
            may_repeat |= (rows >= 0) & np.append(shared, False)[rows]
            self._rows = rows
        self._known = known.tolist()
        flags: list[bool] = may_repeat.tolist()
        return flags

    def find(self, document: Candidate, at: int) -> Found:
        """Return the earlier documents that a document repeats. `at` is its position in the batch."""
        number: int | None = self._known[at]
        if number == -1:
            number = self._recent.get(document.digest)
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

    def remember(self, document: Candidate, found: Found) -> None:
        """Add a document that is used. Call `find` before."""
        number = found.number
        if number is None:
            number = self._take_in([document])
            if found.group is not None:
                self._groups[number] = found.group
            self._recent[document.digest] = number
            if found.group is not None:
                self._has_others[found.group] = 1
            elif found.sketch is not None and self._near is not None:
                self._near.add(found.sketch, number)
        mark = _mark_of(document)
        self._marks[number] |= mark
        self._group_marks[self._groups[number]] |= mark

    def remember_new(self, documents: Sequence[Candidate], at: int) -> None:
        """Add consecutive documents that are used and for which `prepare` returned False.

        Args:
            documents: some documents of the batch.
            at: the position of the first one in the batch.
        """
        first = self._take_in(documents)
        marks = bytes(map(_mark_of, documents))
        self._marks[first:] = marks
        self._group_marks[first:] = marks
        if self._near is not None and self._sketches is not None:
            rows = self._rows[at : at + len(documents)]
            long_enough = np.flatnonzero(rows >= 0)
            self._near.add_lonely(self._sketches[rows[long_enough]], first + long_enough)

    def _take_in(self, documents: Sequence[Candidate]) -> int:
        """Add documents without marks, each as a separate group. Return the number of the first."""
        first, number = len(self._marks), len(documents)
        for document in documents:
            if document.source is not self._source:
                self._source = document.source
                index = self._sources.setdefault(document.source, len(self._names))
                if index == len(self._names):
                    self._names.append(document.source)
                self._source_bits = index << LINE_BITS
            self._places.append(self._source_bits | document.line)
        self._new += [document.digest for document in documents]
        self._groups.extend(range(first, first + number))
        for each in (self._marks, self._group_marks, self._has_others):
            each.extend(bytes(number))
        return first

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


def _mark_of(document: Candidate) -> int:
    """Return the splits of a document as bits. Mixed text is cut into passages that are all training text."""
    return CUT if document.cuts and document.beside is None else _MARKS[document.split]
