"""Split a text into words, to count and compare passages without regard to case and punctuation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

SYLLABLES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Japanese and Chinese write no spaces: a character is a word
_CHARACTERS_AT_ONCE = 1 << 20
WORD = re.compile(rf"[{SYLLABLES}]|[^\W{SYLLABLES}]+(?:['’][^\W{SYLLABLES}]+)*")
_SYLLABLE = re.compile(rf"[{SYLLABLES}]")
_LETTER = re.compile(r"[^\W\d_]")
_UNSPACED = re.compile(
    "["
    "\u0e00-\u0fff"  # Thai, Lao, Tibetan
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"  # Tai Le, New Tai Lue, Tai Tham, Balinese
    "\u3040-\u312f\u31a0-\u31ff\uff66-\uff9f"  # kana, bopomofo
    "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\ua000-\ua4cf\ua980-\ua9df\uaa00-\uaa7f"  # Yi, Javanese, Cham and the extensions of Burmese
    "]"
)


def count_words(text: str) -> int:
    """Count the words between white space. A long text is counted in pieces, because a list of all words is large."""
    if len(text) <= _CHARACTERS_AT_ONCE:
        return len(text.split())
    number = 0
    for start in range(0, len(text), _CHARACTERS_AT_ONCE):
        piece = text[start : start + _CHARACTERS_AT_ONCE]
        goes_on = start > 0 and not piece[0].isspace() and not text[start - 1].isspace()
        number += len(piece.split()) - goes_on
    return number


def unit_of(text: str) -> str:
    """Return the unit of `words_of` for a text: "character" if most of its words are single characters, else "word"."""
    words = WORD.findall(text)
    characters = sum(_SYLLABLE.match(word) is not None for word in words)
    return "character" if 2 * characters > len(words) else "word"


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def grams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """Return each run of n words."""
    return zip(*(words[shift:] for shift in range(n)), strict=False)


def spaces_separate_words(texts: Iterable[str]) -> bool:
    """Return whether white space separates the words of texts, so that it can be used to count words.

    It does not if a tenth or more of the letters belong to scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer,
    Burmese, Tibetan and others). It does not if the text has more than 20 characters per white space on average, as if
    its spaces had been removed. The first rule does not apply to texts without letters.
    """
    letters = unspaced = characters = stretches = 0
    for text in texts:
        letters += len(_LETTER.findall(text))
        unspaced += len(_UNSPACED.findall(text))
        parts = text.split()
        characters += sum(map(len, parts))
        stretches += len(parts)
    return 10 * unspaced < max(1, letters) and characters <= 20 * stretches
