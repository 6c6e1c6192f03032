"""Which documents stand in the text already, exactly or nearly, and in which split. Knows nothing of files."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from rensa import RMinHash

from finetale.text.documents import SPLITS, Split
from finetale.text.near import MOST_DOCUMENTS, NearIndex, sketch_of
from finetale.text.splits import Placed

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "nearly a duplicate"
OVERLAP = "also in validation or test"
NEAR_OVERLAP = "nearly the same in training and in validation or test"
"""Why documents are dropped, as the report says it."""

LINE_BITS = 40
TRAIN, VALIDATION, TEST, CUT = (1 << number for number in range(4))
HELD_OUT = VALIDATION | TEST
_MARKS: dict[Split, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@dataclass(frozen=True, slots=True)
class Earlier:
    """Earlier documents with the same text, or nearly the same.

    Attributes:
        place: where the first of them stands, as file:line.
        marks: the splits in which they stand.
        similarity: 1 if the text is the very same, else the estimated share of passages in common.
    """

    place: str
    marks: int
    similarity: float = 1.0

    def stands_beside(self, placed: Placed) -> bool:
        """Whether one of them is in the same split."""
        return bool(self.marks & _mark_of(placed))

    def leaks(self, placed: Placed) -> frozenset[Split]:
        """The splits of a document that would have to go so that nothing held out is trained on."""
        # The very same text gets cut in the same places, and held-out text of a source of its own is read first.
        cut, train = (CUT, TRAIN) if self.similarity < 1 else (0, 0)
        against = {split: (HELD_OUT if split == "train" else train) | cut for split in SPLITS}
        return frozenset(split for split, _ in placed.parts if self.marks & against[split])


@dataclass(frozen=True, slots=True)
class Found:
    """What `Repeats.find` found: the same text, texts that are alike, and what it needs to remember the document."""

    exact: Earlier | None
    near: Earlier | None
    number: int | None
    group: int | None
    sketch: RMinHash | None


class Repeats:
    """Remembers documents in about 150 bytes each, and 1.8 kB more where near repeats are looked for.

    Documents that are alike form a group, and only its first is compared with, or a thousand copies would be a million
    pairs.
    """

    def __init__(self, *, near: bool) -> None:
        self._exact: dict[bytes, int] = {}  # digest -> number
        self._places = array("Q")  # by number: source and line
        self._groups = array("Q")  # by number: number of the first that is alike
        self._marks = bytearray()  # by number: of this very text
        self._group_marks = bytearray()  # by number of the first: of all that are alike
        self._has_others = (
            bytearray()
        )  # by number of the first: whether there are texts that are alike, but not the same
        self._names: list[str] = []
        self._sources: dict[str, int] = {}
        self._near = NearIndex() if near else None

    @property
    def crowded(self) -> int:
        """Documents that are like so many others in part that they were not compared with all of these."""
        return self._near.crowded if self._near is not None else 0

    @property
    def limit(self) -> int | None:
        """How many documents later ones were compared with for being alike, if not with all."""
        return MOST_DOCUMENTS if self._near is not None and self._near.is_full else None

    def find(self, placed: Placed) -> Found:
        """The earlier documents that this one repeats."""
        candidate = placed.candidate
        number = self._exact.get(candidate.digest)
        if number is not None:
            exact, group = Earlier(self._place(number), self._marks[number]), self._groups[number]
            has_others = self._near is not None and bool(self._has_others[group])
            near = Earlier(self._place(group), self._group_marks[group], 0.999) if has_others else None
            return Found(exact, near, number, group, None)
        if self._near is None or (sketch := sketch_of(candidate.document.text)) is None:
            return Found(None, None, None, None, None)
        if (alike := self._near.find(sketch)) is None:
            return Found(None, None, None, None, sketch)
        group, similarity = alike
        near = Earlier(self._place(group), self._group_marks[group], min(similarity, 0.999))
        return Found(None, near, None, group, sketch)

    def remember(self, placed: Placed, found: Found) -> None:
        """Take in a document that is used."""
        mark = _mark_of(placed)
        number = found.number
        if number is None:
            number = len(self._marks)
            document = placed.candidate.document
            source = self._sources.setdefault(document.source, len(self._names))
            if source == len(self._names):
                self._names.append(document.source)
            self._exact[placed.candidate.digest] = number
            self._places.append(source << LINE_BITS | document.line)
            self._groups.append(number if found.group is None else found.group)
            self._marks.append(0)
            self._group_marks.append(0)
            self._has_others.append(0)
            if found.group is not None:
                self._has_others[found.group] = 1
            if found.group is None and found.sketch is not None and self._near is not None:
                self._near.add(found.sketch, number)
        self._marks[number] |= mark
        self._group_marks[self._groups[number]] |= mark

    def _place(self, number: int) -> str:
        place = self._places[number]
        return f"{self._names[place >> LINE_BITS]}:{place & ((1 << LINE_BITS) - 1)}"


def _mark_of(placed: Placed) -> int:
    return CUT if len(placed.parts) > 1 else _MARKS[placed.parts[0][0]]
