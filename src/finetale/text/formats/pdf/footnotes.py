"""Remove footnotes and their marks from the columns of a PDF file."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from finetale.text.formats.pdf.pages import LOWERED, RAISED
from finetale.text.formats.pdf.pieces import Page, Piece

_MARK = re.compile(f"{RAISED}[ ]?(?P<raised>[^{LOWERED}]{{1,4}}?)[ ]?{LOWERED}")
_NOTE_START = re.compile(rf"(?:{_MARK.pattern}|(?P<plain>[*†‡§¶]{{1,3}}|\d{{1,3}}(?=[ .)])))")


def remove_footnotes(pages: Iterable[Page], height: float, leave_out: Callable[[str, int], None]) -> None:
    """Remove the notes at the foot of columns, and their marks in the text.

    Notes are lines in smaller print that start with a mark, or lines of which `_first_large_note` returns the first.
    """
    number = 0
    open_note = False  # whether the last note of the page before may continue
    for page in pages:
        marks: set[str] = set()
        led_to = {match["raised"] for column in page.columns for line in column for match in _marks_within(line.text)}
        for column in page.columns:
            start = len(column)
            while start and column[start - 1].height <= 0.93 * height:
                start -= 1
            if start == len(column) and led_to:
                start = _first_large_note(column, led_to)
            if not 0 < start < len(column) and not (open_note and start == 0 and column):
                continue
            found = [_NOTE_START.match(line.text) for line in column[start:]]
            if found[0] is None and not open_note:
                continue
            marks |= {match["raised"] or match["plain"] for match in found if match}
            number += sum(match is not None for match in found)
            del column[start:]
        open_note = bool(marks)
        for column in page.columns if marks else ():
            for line in column:
                line.text = _without_marks(line.text, marks)
    leave_out("footnote", number)
    for page in pages:
        for column in page.columns:
            for line in column:
                line.text = line.text.replace(RAISED, "").replace(LOWERED, "").strip()


def _first_large_note(column: Sequence[Piece], led_to: set[str]) -> int:
    """Return the first line of notes that are as large as the text. The number of lines if there are none.

    They are set off from the text above, and each starts with a raised mark that is raised in the text, too.

    Args:
        led_to: the raised marks within the lines of the page.
    """
    usual = statistics.median([above.base - line.base for above, line in pairwise(column)] or [0.0])
    first = len(column)
    for index in range(len(column) - 1, 0, -1):
        mark = _MARK.match(column[index].text)
        if mark and mark["raised"] not in led_to:
            break
        if mark and column[index - 1].base - column[index].base > 1.3 * usual:
            first = index
    return first


def _marks_within(text: str) -> Iterator[re.Match[str]]:
    return (match for match in _MARK.finditer(text) if match.start() > 0)


def _without_marks(text: str, marks: set[str]) -> str:
    return _MARK.sub(lambda match: "" if match["raised"] in marks else match[0], text)
