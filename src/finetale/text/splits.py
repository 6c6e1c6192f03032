"""Assign documents to splits. Knows nothing of the documents' origin.

A hash of its text alone decides the split of a document, so adding a document never moves another. A long document is
cut into contiguous parts, one per split. So that no wanted split is empty, documents are held back until each split has
one. If the text ends before that, exceptions are made. `Splitter.rule` describes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal

from finetale.text.documents import SPLITS, Document, Split

BUFFER_BYTES = 64 << 20
HELD_BYTES = 500  # approximate size of the objects around a text
FEW_DOCUMENTS = 20
BORDERS = ("\n\n", "\n", " ")
CUT: Literal["cut"] = "cut"
Cut = tuple[Split, int, int]
_NOT_SPACE = re.compile(r"\S")


@dataclass(slots=True)
class Candidate(Document):
    """A document, the measurements of its text, and its place.

    Attributes:
        digest: `digest_of` its text.
        num_words: number of its words.
        num_bytes: number of its bytes in UTF-8.
        is_record: whether it is a record, so that its line ends are not those of the file.
        dropped: the reason why it is not used. None if it is used.
        personal: (start, stop) of personal data that was found and not masked.
        split: the split of a document that is not cut.
        cuts: (split, start, stop) of each part of a document that is cut.
        context: (start, stop) of the characters of an example that are read and not learned, ascending.
        is_example: whether it is an example, which is never cut.
        own_text: the text of an example without its system message, which many can share. None if it has none.
        beside: the number of its source, from 0, if it is mixed or watched text. None for text of the user's own.
    """

    digest: bytes
    num_words: int
    num_bytes: int
    is_record: bool
    dropped: str | None = None
    personal: tuple[tuple[int, int], ...] = ()
    split: Split = "train"
    cuts: tuple[Cut, ...] = ()
    context: tuple[tuple[int, int], ...] = ()
    is_example: bool = False
    own_text: str | None = None
    beside: int | None = None

    @property
    def parts(self) -> tuple[Cut, ...]:
        """(split, start, stop) of each part. A document that is not cut has one part."""
        return self.cuts or ((self.split, 0, len(self.text)),)


def first_digest(fraction: float) -> bytes:
    """Return the threshold below which a share of `fraction` of all hashes lies, by their first 48 bits."""
    return math.ceil(fraction * (1 << 48)).to_bytes(6, "big") if fraction <= 1 - 2**-48 else b"\xff" * 17


def cut(text: str, validation: float, test: float) -> tuple[Cut, ...]:
    """Return (split, start, stop) of contiguous parts of a text for training, validation and test, in this order.

    Each cut is at the border of a paragraph, else a line, else a word, that is nearest to the exact share. No text is
    lost. If a part would be empty or blank, the whole text goes to training.
    """
    size = len(text)
    shares: dict[Split, float] = {"train": 1 - validation - test, "validation": validation, "test": test}
    wanted = [(split, share) for split, share in shares.items() if share > 0]
    reach = int(size * min(share for _, share in wanted) / 2)
    parts: list[Cut] = []
    start, total = 0, 0.0
    for split, share in wanted[:-1]:
        total += share
        end = _border(text, round(size * total), reach)
        parts.append((split, start, end))
        start = end
    parts.append((wanted[-1][0], start, size))
    has_text = all(_NOT_SPACE.search(text, start, stop) for _, start, stop in parts)
    return tuple(parts) if has_text else (("train", 0, size),)


def cut_evenly(text: str, longest: int, split: Split) -> tuple[Cut, ...]:
    """Return (split, start, stop) of contiguous parts of a text, of about `longest` characters at most.

    Each cut is at the border of a paragraph, else a line, else a word. A text that is short enough has no cuts.
    """
    number = -(-len(text) // longest)
    reach = len(text) // max(1, number) // 4
    borders = [0, *(_border(text, len(text) * at // number, reach) for at in range(1, number)), len(text)]
    parts = [(start, stop) for start, stop in pairwise(borders) if stop > start]
    has_text = all(_NOT_SPACE.search(text, start, stop) for start, stop in parts)
    return tuple((split, start, stop) for start, stop in parts) if has_text and len(parts) > 1 else ()


def _border(text: str, target: int, reach: int) -> int:
    """Return the position after the border nearest to the target, within reach. The target if there is no border."""
    for border in BORDERS:
        before = text.rfind(border, max(0, target - reach), target)
        after = text.find(border, target, target + reach)
        ends = [place + len(border) for place in (before, after) if place >= 0]
        if ends:
            return min(ends, key=lambda end: abs(end - target))
    return target


class Splitter:
    """Assigns documents to splits.

    Args:
        validation: share of the text for validation, 0 for none.
        test: share of the text for the test, 0 for none.
        long_document: maximum number of characters of a document that is not cut.
    """

    def __init__(self, validation: float, test: float, long_document: int) -> None:
        self._validation = validation
        self._test = test
        self._long = long_document
        self._first_of_validation, self._first_of_training = first_digest(test), first_digest(test + validation)
        self._exceptions: dict[bytes, Split | Literal["cut"]] = {}  # by digest, against the rule of the hash
        self._shares = {"validation": validation, "test": test}
        held_out = [f"{share:.3g} for {name}" for name, share in self._shares.items() if share > 0]
        self.rule = f"Each document goes to a split by a hash of its text ({', '.join(held_out)})"
        self.rule += (
            f"; documents of more than {long_document:,} characters are cut into contiguous parts, one per split."
        )

    def place(self, chunks: Iterable[list[Candidate]]) -> Iterator[list[Candidate]]:
        """Set the split or the cuts of every document. Yield the documents in the given order."""
        chunks = iter(chunks)
        held: list[Candidate] = []
        rest: list[Candidate] = []
        texts: set[bytes] = set()
        size = 0
        empty: set[Split] = {"train", *(split for split in SPLITS if self._shares.get(split, 0) > 0)}
        is_enough = False
        while not is_enough and (rest := next(chunks, [])):
            rest.reverse()
            while rest and not is_enough:
                held.append(rest.pop())
                size += held[-1].num_bytes + HELD_BYTES
                if held[-1].dropped is None:
                    self._place(held[-1])
                    empty -= {split for split, _, _ in held[-1].parts}
                    texts.add(held[-1].digest)
                is_enough = (not empty and len(texts) >= FEW_DOCUMENTS) or size > BUFFER_BYTES
        rest.reverse()
        if empty or len(texts) < FEW_DOCUMENTS:
            self._fill(empty, [candidate for candidate in held if candidate.dropped is None])
        for chunk in chain([held, rest], chunks):
            for candidate in chunk:
                self._place(candidate)
                del candidate  # so that memory does not hold a long document while the next one is read
            yield chunk

    def _place(self, candidate: Candidate) -> None:
        if candidate.dropped is not None:
            return
        exception = self._exceptions.get(candidate.digest) if self._exceptions else None
        if (len(candidate.text) > self._long and not candidate.is_example) or exception == CUT:
            parts = cut(candidate.text, self._validation, self._test)
            candidate.split, candidate.cuts = "train", parts if len(parts) > 1 else ()
        else:
            candidate.split = exception or self._by_hash(candidate.digest)

    def _by_hash(self, digest: bytes) -> Split:
        if digest < self._first_of_validation:
            return "test"
        return "validation" if digest < self._first_of_training else "train"

    def _fill(self, empty: set[Split], held: list[Candidate]) -> None:
        """Make exceptions to the hash rule, so that no wanted split stays empty."""
        digests = {candidate.digest for candidate in held}
        if not digests:
            return
        if any(candidate.is_example for candidate in held):
            self._hold_out_examples(sorted(digests), empty)
            return
        if len(digests) < FEW_DOCUMENTS:
            self._exceptions = dict.fromkeys(digests, CUT)
            if len(digests) == 1:
                self.rule = "The one document is cut into contiguous parts, one per split."
            else:
                self.rule = (
                    f"There are only {len(digests)} documents, so each is cut into contiguous parts, one per split."
                )
            return
        whole = {candidate.digest for candidate in held if len(candidate.text) <= self._long}
        moved = []
        for split in sorted(empty):
            share = self._shares.get(split, 0.0)
            movable = sorted(
                d for d in whole if d not in self._exceptions and (share == 0 or self._by_hash(d) == "train")
            )
            count = max(1, round(share * len(digests)))
            chosen = movable[:count] if share else movable[-1:]  # training takes the largest hash
            self._exceptions |= dict.fromkeys(chosen, split)
            extreme = "smallest" if share else "largest"
            moved.append(f"{split}, which would have stayed empty, got the {len(chosen)} with the {extreme} hash")
        self.rule = f"{self.rule.rstrip('.')}; {'; '.join(moved)}."

    def _hold_out_examples(self, digests: list[bytes], empty: set[Split]) -> None:
        """Give each empty split the examples with the smallest hashes, because an example is never cut."""
        taken: list[str] = []
        free = [digest for digest in digests if self._by_hash(digest) == "train"]
        if not free:
            self._exceptions[digests[-1]] = "train"
        for split in SPLITS[1:]:
            count = max(1, round(self._shares[split] * len(digests)))
            if split not in empty or len(free) <= count:  # training keeps at least one
                continue
            self._exceptions |= dict.fromkeys(free[:count], split)
            free = free[count:]
            taken.append(f"{split}, which would have stayed empty, got the {count} with the smallest hash")
        if taken:
            self.rule = f"{self.rule.rstrip('.')}; {'; '.join(taken)}."
