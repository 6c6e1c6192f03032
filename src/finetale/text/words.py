"""A text as words, for counting and comparing passages without regard to case and punctuation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

SYLLABLES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Japanese and Chinese write no spaces: a character is a word
WORD = re.compile(rf"[{SYLLABLES}]|[^\W{SYLLABLES}]+(?:['’][^\W{SYLLABLES}]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def grams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """Each run of n words."""
    return zip(*(words[shift:] for shift in range(n)), strict=False)
