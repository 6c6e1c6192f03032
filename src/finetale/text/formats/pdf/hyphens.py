"""Join the lines of a paragraph. Undo the hyphens at line ends where they are not part of the word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from finetale.text.formats.pdf.pieces import Piece

_WORD = re.compile(r"[^\W\d_]+(?:[-’'][^\W\d_]+)*")
_LAST_HALF = re.compile(r"(?P<word>[^\W\d_]+(?:-[^\W\d_]+)*)[-\xad‐]$")
HYPHENS = ("-", "\xad", "‐")
NO_SPACE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef]")
_ALSO_WIDE = "“”‘’…—·"
"""Marks that are Chinese beside Chinese characters."""
_HANGUL = re.compile(r"[\uac00-\ud7a3]")
_TENS = {"twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"}
_ONES = {
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
}  # fmt: skip


def words_of(lines: Iterable[str]) -> Counter[str]:
    """Count the words of lines in lower case, without those that are cut by a hyphen at a line end."""
    words: Counter[str] = Counter()
    cut = False
    for line in lines:
        here = _WORD.findall(line)
        ends_cut = line[-1:] in HYPHENS
        words.update(word.lower() for word in here[cut : -1 if ends_cut else None])
        cut = ends_cut
    return words


def joined(lines: Sequence[str], words: Counter[str], *, hyphenates: bool) -> str:
    """Return lines as one text. Hyphens at line ends are undone."""
    text = [lines[0]]
    for before, line in pairwise(lines):
        last, first = before[-1:], line[:1]
        if first == "\n":
            text.append(line)
        elif last in HYPHENS and (half := _LAST_HALF.search(before)) and (other := _WORD.match(line)):
            text[-1] = text[-1][:-1]
            kept = _keeps_hyphen(half["word"], other[0], words)
            text.append(("-" if kept or (kept is None and not hyphenates) else "") + line)
        else:
            at_dash = (last in ("—", "–") and not before.endswith((" —", " –"))) or (
                first in ("—", "–") and not line.startswith(("— ", "– "))
            )
            wide = [bool(NO_SPACE.match(each)) for each in (last, first)]
            is_wide = any(wide) and all(
                yes or each in _ALSO_WIDE for yes, each in zip(wide, (last, first), strict=True)
            )
            is_wide = is_wide and not _HANGUL.match(first)
            text.append(line if at_dash or is_wide or last == "-" else " " + line)
    return re.sub("\xad(?=.)", "", "".join(text)).replace("\xad", "-")


def _keeps_hyphen(half: str, other: str, words: Counter[str]) -> bool | None:
    """Whether a hyphen at a line end belongs to the word. None if the document doesn't decide it.

    If the word occurs elsewhere in the document with or without the hyphen, the more frequent form decides. The hyphen
    also belongs to the word if its second half does not start in lower case, if the first half has a hyphen too, or if
    it joins two words that both occur elsewhere.
    """
    small, joined = half.lower(), (half + other).lower()
    with_hyphen, without = words[f"{small}-{other.lower()}"], words[joined]
    if with_hyphen != without:
        return with_hyphen > without
    if not other[0].islower() or "-" in half or (small in _TENS and other in _ONES):
        return True
    if min(len(half), len(other)) > 2 and words[small] and words[other]:
        return True
    return None


def hyphenates(columns: Iterable[list[Piece]], words: Counter[str]) -> bool:
    """Whether the document breaks words at line ends. Without evidence, it is assumed."""
    decided: Counter[bool | None] = Counter()
    for column in columns:
        for above, line in pairwise(column):
            half, other = _LAST_HALF.search(above.text), _WORD.match(line.text)
            if half and other:
                decided[_keeps_hyphen(half["word"], other[0], words)] += 1
    return decided[False] >= decided[True] or decided[False] >= 5
