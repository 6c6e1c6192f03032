"""Which earlier document a text nearly repeats: MinHash and banded look-up, linear in the text. Knows nothing of splits.

Two texts are as similar as the share of their passages of three words that both have (the Jaccard index). It is
estimated from 64 minima of hashes (Broder 1997), and only texts that agree in a band of four minima are compared (Indyk
and Motwani 1998): of pairs with 70% in common 1% is missed, of pairs with 80% one in 5,000.

A sketch is one row of 16 keys of 64 bits: a key holds the four minima of a band, 16 bits of each. Two different minima
agree in these bits with a probability of 1 in 65,536, far below the error of the estimate.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from finetale.text.key_table import KeyStore, KeyTable, occurs_twice
from finetale.text.words import SYLLABLES, grams

SIMILAR = 0.6
"""Least share of passages in common of near repeats: about 7 changed words in 100."""
MIN_WORDS = 5
"""Fewest words of a document that is compared; two shorter ones are alike too easily."""
MAX_DOCUMENTS = 1_000_000
"""Most documents that later ones are compared with, about 270 bytes of memory each."""

_MINIMA = 64
_BANDS = 16
_SEED = 1
_PASSAGE = 3
_CHARACTERS_AT_ONCE = 100_000
_MAX_CANDIDATES = 1_000
_APOSTROPHES = re.compile("['’]")
_WORD = re.compile(rf"[{SYLLABLES}]|[^\W_{SYLLABLES}]+")
_BETWEEN_WORDS = re.compile(rf"\s|[{SYLLABLES}]")
_ASCII_WORDS = bytes(code if chr(code).isalnum() else 32 for code in range(128)).lower() + bytes(128)
# Different for each band, so that equal minima of two bands are two keys.
_SALTS = np.random.default_rng(_SEED).integers(1, 1 << 63, _BANDS, np.uint64)

Sketches = NDArray[np.uint64]


class NearIndex:
    """The sketches of documents that were read, to be found again by similarity.

    `prepare` looks up many sketches at once: a document whose bands no other has needs no look-up of its own.

    Attributes:
        crowded: documents that were compared with a thousand of those they are like in part, and not with all.
    """

    def __init__(self) -> None:
        self._keys = KeyStore()  # by document and band
        self._table = KeyTable(self._keys)  # of each key, the first document that has it
        self._later: dict[
            int, array[int]
        ] = {}  # by place of that first one: the other documents, as indices of `_keys`
        self._numbers = array("Q")
        self._lonely: list[int] = []  # documents that `prepare` said no other is like, not in the table yet
        self.crowded = 0
        self._is_crowded = False

    @property
    def is_full(self) -> bool:
        """Whether no more documents are taken in."""
        return len(self._numbers) >= MAX_DOCUMENTS

    def prepare(self, sketches: Sketches) -> NDArray[np.bool_]:
        """Say of each sketch whether it has a band in common with an earlier document or another of these sketches.

        Those without can be added with `add_lonely` until the next call, and `find` would find nothing for them.
        """
        self._add_to_table()
        keys = sketches.reshape(-1)
        shared = (self._table.find(keys) >= 0) | occurs_twice(keys)
        return np.asarray(shared.reshape(-1, _BANDS).any(axis=1))

    def find(self, sketch: Sketches) -> tuple[int, float] | None:
        """(number, similarity) of the most similar document, the earliest of these; None if none is similar enough."""
        first = self._table.find(sketch)
        candidates: set[int] = set()
        for entry in first[first >= 0].tolist():
            candidates.add(entry // _BANDS)
            candidates.update(self._later.get(entry, ()))
        self._is_crowded = len(candidates) > _MAX_CANDIDATES
        self.crowded += self._is_crowded
        if not candidates:
            return None
        chosen = np.array(sorted(candidates)[:_MAX_CANDIDATES])
        rows = self._keys.array.reshape(-1, _BANDS)[chosen]
        alike = (_minima(rows) == _minima(sketch[None])).mean(axis=1)
        best = int(alike.argmax())
        return (self._numbers[chosen[best]], float(alike[best])) if alike[best] >= SIMILAR else None

    def add(self, sketch: Sketches, number: int) -> None:
        """Remember a document, the one that was looked for last, under a number of the caller's.

        A document that is like a thousand others in part, as filled-in forms are, is left out: each more would cost all
        later ones time.
        """
        if self.is_full or self._is_crowded:
            return
        document = len(self._numbers)
        first = self._table.find(sketch)
        start = self._keys.extend(sketch)
        self._numbers.append(number)
        for entry in first[first >= 0].tolist():
            self._later.setdefault(entry, array("i")).append(document)
        self._table.add(start + np.flatnonzero(first < 0))

    def add_lonely(self, sketch: Sketches, number: int) -> None:
        """Remember a document that `prepare` said no other is like."""
        if not self.is_full:
            self._keys.extend(sketch)
            self._lonely.append(len(self._numbers))
            self._numbers.append(number)

    def _add_to_table(self) -> None:
        if self._lonely:
            starts = np.array(self._lonely, np.int64) * _BANDS
            self._table.add((starts[:, None] + np.arange(_BANDS)).reshape(-1))
            self._lonely.clear()


def sketches_of(texts: Sequence[str]) -> tuple[Sketches, NDArray[np.int64]]:
    """Compute the sketches of texts.

    Returns:
        (sketches, index): one row of each text that is long enough, and the row of each text, -1 for those that are too
        short.
    """
    rows: list[list[int]] = []
    passages: list[list[str]] = []
    index = np.full(len(texts), -1, np.int64)
    for number, text in enumerate(texts):
        if len(text) <= _CHARACTERS_AT_ONCE:
            words = _words(text)
            if len(words) >= MIN_WORDS:
                index[number] = len(passages)
                passages.append(list(map(" ".join, grams(words, _PASSAGE))))
    rows = RMinHash.digests_from_token_sets(passages, _MINIMA, _SEED) if passages else []
    for number, text in enumerate(texts):
        if len(text) > _CHARACTERS_AT_ONCE and (minima := _minima_of_long(text)) is not None:
            index[number] = len(rows)
            rows.append(minima)
    bits = np.array(rows, np.uint32).reshape(-1, _MINIMA).astype(np.uint16)
    return bits.view(np.uint64) ^ _SALTS, index


def sketch_of(text: str) -> Sketches | None:
    """Compute the sketch of one text, shape (16,); None if it is too short."""
    sketches, index = sketches_of([text])
    return sketches[0] if index[0] >= 0 else None


def _minima(sketches: Sketches) -> NDArray[np.uint16]:
    """The minima of each row, 16 bits each, shape (rows, 64)."""
    minima: NDArray[np.uint16] = (sketches ^ _SALTS).view(np.uint16)
    return minima


def _minima_of_long(text: str) -> list[int] | None:
    """The minima of a text that is worked through piece by piece, so that its words are never all in memory."""
    sketch = RMinHash(_MINIMA, _SEED)
    before: list[str] = []
    number = 0
    for piece in _pieces(text):
        words = _words(piece)
        number += len(words)
        before += words
        sketch.update(list(map(" ".join, grams(before, _PASSAGE))))
        del before[: 1 - _PASSAGE]
    return list(sketch.digest()) if number >= MIN_WORDS else None


def _pieces(text: str) -> Iterator[str]:
    """Cut a text between words."""
    start = 0
    while start < len(text):
        cut = _BETWEEN_WORDS.search(text, start + _CHARACTERS_AT_ONCE)
        stop = cut.start() if cut else len(text)
        yield text[start:stop]
        start = stop


def _words(text: str) -> list[str]:
    """Words in lower case, apostrophes left out; the quick way for ASCII finds the same as the pattern."""
    if text.isascii():
        return text.encode().translate(_ASCII_WORDS, b"'").decode().split()
    return _WORD.findall(_APOSTROPHES.sub("", text).lower())
