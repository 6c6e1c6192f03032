"""Find the earlier document that a text nearly repeats: MinHash and banded look-up. Knows nothing of splits.

The similarity of two texts is the share of their passages of three words that both have (the Jaccard index). It is
estimated from 64 minima of hashes (Broder 1997). Only texts that agree in a band of four minima are compared (Indyk and
Motwani 1998). This misses 1% of the pairs with a similarity of 70%, and one in 5,000 of those with 80%. The time is
linear in the text.

A sketch is one row of 16 keys of 64 bits. A key holds the four minima of a band, 16 bits of each. Two different minima
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
from finetale.text.words import SYLLABLES

SIMILAR = 0.6
"""Minimum similarity of near repeats. It allows about 7 changed words in 100."""
MIN_WORDS = 5
"""Minimum number of words of a document to compare. Shorter documents are often similar by chance."""
MAX_DOCUMENTS = 1_000_000
"""Maximum number of documents that later ones are compared with. Each takes about 270 bytes of memory."""

_MINIMA = 64
_BANDS = 16
_SEED = 1
_PASSAGE = 3
_CHARACTERS_AT_ONCE = 100_000
_MAX_CANDIDATES = 1_000
_APOSTROPHES = re.compile("['’]")
_LIKE_ASCII = (("’", "'"), ("“", " "), ("”", " "), ("—", " "), ("–", " "), ("…", " "), ("\u00a0", " "))
_WORD = re.compile(rf"[{SYLLABLES}]|[^\W_{SYLLABLES}]+")
_BETWEEN_WORDS = re.compile(rf"\s|[{SYLLABLES}]")
_ASCII_WORDS = bytes(code if chr(code).isalnum() else 32 for code in range(128)).lower() + bytes(128)
# The salts differ, so that equal minima in two bands give two keys.
_SALTS = np.random.default_rng(_SEED).integers(1, 1 << 63, _BANDS, np.uint64)

Sketches = NDArray[np.uint64]


class NearIndex:
    """An index of the sketches of earlier documents, for a search by similarity.

    `prepare` looks up many sketches at once. A document that shares no band with any other needs no further look-up.

    Attributes:
        crowded: number of documents with more than a thousand candidates, of which only a thousand were compared.
    """

    def __init__(self) -> None:
        self._keys = KeyStore()  # by document and band
        self._table = KeyTable(self._keys)  # for each key, the first document that has it
        self._later: dict[int, array[int]] = {}  # by index of that first key: the other documents that have the key
        self._numbers = array("Q")
        self._lonely: list[int] = []  # documents without a shared band, not in the table yet
        self.crowded = 0
        self._is_crowded = False

    @property
    def is_full(self) -> bool:
        """Whether the index accepts no more documents."""
        return len(self._numbers) >= MAX_DOCUMENTS

    def prepare(self, sketches: Sketches) -> NDArray[np.bool_]:
        """Return, for each sketch, whether it shares a band with an earlier document or another of these sketches.

        For a sketch that shares none, `find` would return None. Add it with `add_lonely` before the next call.
        """
        self._add_to_table()
        keys = sketches.reshape(-1)
        shared = (self._table.find(keys) >= 0) | occurs_twice(keys)
        return np.asarray(shared.reshape(-1, _BANDS).any(axis=1))

    def find(self, sketch: Sketches) -> tuple[int, float] | None:
        """Return (number, similarity) of the most similar document, the earliest at a tie. None if none is similar."""
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
        """Add the document of the last `find`, under a number that the caller chooses.

        A document with more than a thousand candidates, such as a filled-in form, is not added, because each one would
        slow down all later searches.
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

    def add_lonely(self, sketches: Sketches, numbers: NDArray[np.int64]) -> None:
        """Add documents for which `prepare` returned False, shapes (documents, 16) and (documents,)."""
        room = MAX_DOCUMENTS - len(self._numbers)
        sketches, numbers = sketches[:room], numbers[:room]
        first = len(self._numbers)
        self._keys.extend(sketches.reshape(-1))
        self._numbers.extend(numbers.tolist())
        self._lonely.extend(range(first, len(self._numbers)))

    def _add_to_table(self) -> None:
        if self._lonely:
            starts = np.array(self._lonely, np.int64) * _BANDS
            self._table.add((starts[:, None] + np.arange(_BANDS)).reshape(-1))
            self._lonely.clear()


def sketches_of(texts: Sequence[str]) -> tuple[Sketches, NDArray[np.int64]]:
    """Compute the sketches of texts.

    Returns:
        (sketches, index): one row per text that is long enough, and the row number of each text, -1 if it is too short.
    """
    rows: list[list[int]] = []
    passages: list[list[str]] = []
    index = np.full(len(texts), -1, np.int64)
    for number, text in enumerate(texts):
        if len(text) <= _CHARACTERS_AT_ONCE:
            words = _words(text)
            if len(words) >= MIN_WORDS:
                index[number] = len(passages)
                passages.append(_passages(words))
    rows = RMinHash.digests_from_token_sets(passages, _MINIMA, _SEED) if passages else []
    for number, text in enumerate(texts):
        if len(text) > _CHARACTERS_AT_ONCE and (minima := _minima_of_long(text)) is not None:
            index[number] = len(rows)
            rows.append(minima)
    bits = np.array(rows, np.uint32).reshape(-1, _MINIMA).astype(np.uint16)
    return bits.view(np.uint64) ^ _SALTS, index


def _minima(sketches: Sketches) -> NDArray[np.uint16]:
    """Return the minima of each row, 16 bits each, shape (rows, 64)."""
    minima: NDArray[np.uint16] = (sketches ^ _SALTS).view(np.uint16)
    return minima


def _minima_of_long(text: str) -> list[int] | None:
    """Return the minima of a long text. It is processed piece by piece, so that its words are never all in memory."""
    sketch = RMinHash(_MINIMA, _SEED)
    before: list[str] = []
    number = 0
    for piece in _pieces(text):
        words = _words(piece)
        number += len(words)
        before += words
        sketch.update(_passages(before))
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


def _passages(words: list[str]) -> list[str]:
    """Return each run of _PASSAGE words, joined by spaces."""
    return [f"{first} {second} {third}" for first, second, third in zip(words, words[1:], words[2:], strict=False)]


def _words(text: str) -> list[str]:
    """Return the words in lower case, without apostrophes. The fast path for ASCII gives the same as the pattern."""
    if not text.isascii():
        for mark, same in _LIKE_ASCII:
            text = text.replace(mark, same)
    if text.isascii():
        return text.encode().translate(_ASCII_WORDS, b"'").decode().split()
    return _WORD.findall(_APOSTROPHES.sub("", text).lower())
