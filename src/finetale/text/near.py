"""Which earlier document a text nearly repeats: MinHash and banded look-up, linear in the text. Knows nothing of splits.

Two texts are as similar as the share of their passages of three words that both have (the Jaccard index). It is
estimated from 64 minima of hashes (Broder 1997), and only texts that agree in a band of four minima are compared (Indyk
and Motwani 1998): of pairs with 70% in common 1% is missed so, of pairs with 80% one in 5,000.
"""

from __future__ import annotations

import re
from array import array

import numpy as np
from rensa import RMinHash, RMinHashLSH

from finetale.text.words import SYLLABLES, grams

SIMILAR = 0.6
"""Share of passages in common from which on a document nearly repeats another: about 7 changed words in 100."""
SHORTEST = 5
"""Words of a document that is looked at; two shorter ones are alike too easily."""
MOST_DOCUMENTS = 1_000_000
"""Documents that later ones are compared with, about 1.8 kB of memory each."""

_MINIMA = 64
_BANDS = 16
_SEED = 1
_PASSAGE = 3
_WORDS_AT_ONCE = 20_000
_MOST_CANDIDATES = 1_000
_APOSTROPHES = re.compile("['’]")
_WORD = re.compile(rf"[{SYLLABLES}]|[^\W_{SYLLABLES}]+")
_ASCII_WORDS = bytes(code if chr(code).isalnum() else 32 for code in range(128)).lower() + bytes(128)


class NearIndex:
    """The sketches of documents that were read, to be found again by similarity.

    Attributes:
        crowded: documents that were compared with a thousand of those they are like in part, and not with all.
    """

    def __init__(self) -> None:
        self._bands = RMinHashLSH(SIMILAR, _MINIMA, _BANDS)
        self._minima = array("I")
        self._numbers = array("Q")
        self.crowded = 0
        self._is_crowded = False

    @property
    def is_full(self) -> bool:
        """Whether no more documents are taken in."""
        return len(self._numbers) >= MOST_DOCUMENTS

    def find(self, sketch: RMinHash) -> tuple[int, float] | None:
        """(number, similarity) of the most similar document, the earliest of these; None if none is similar enough."""
        candidates = self._bands.query(sketch)
        self._is_crowded = len(candidates) > _MOST_CANDIDATES
        self.crowded += self._is_crowded
        if not candidates:
            return None
        candidates.sort()
        del candidates[_MOST_CANDIDATES:]
        table = np.frombuffer(self._minima, np.uint32).reshape(-1, _MINIMA)
        alike = (table[candidates] == np.array(sketch.digest(), np.uint32)).mean(axis=1)
        del table  # an array that is looked at can't grow
        best = int(alike.argmax())
        return (self._numbers[candidates[best]], float(alike[best])) if alike[best] >= SIMILAR else None

    def add(self, sketch: RMinHash, number: int) -> None:
        """Remember a document, the one that was looked for last, under a number of the caller's.

        One that is like a thousand others in part, as filled-in forms are, is not: there each more would cost all later
        ones time.
        """
        if not self.is_full and not self._is_crowded:
            self._bands.insert(len(self._numbers), sketch)
            self._minima.extend(sketch.digest())
            self._numbers.append(number)


def sketch_of(text: str) -> RMinHash | None:
    """The minima of a text; None if it is too short."""
    words = _words(text)
    if len(words) < SHORTEST:
        return None
    sketch = RMinHash(_MINIMA, _SEED)
    for start in range(0, len(words), _WORDS_AT_ONCE):
        chunk = words[start : start + _WORDS_AT_ONCE + _PASSAGE - 1]
        sketch.update(list(map(" ".join, grams(chunk, _PASSAGE))))
    return sketch


def _words(text: str) -> list[str]:
    """Words in lower case, apostrophes left out; the quick way for ASCII finds the same as the pattern."""
    if text.isascii():
        return text.encode().translate(_ASCII_WORDS, b"'").decode().split()
    return _WORD.findall(_APOSTROPHES.sub("", text).lower())
