"""From the lines of a PDF file, in columns, to paragraphs."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from finetale.text.formats.pdf.hyphens import HYPHENS, NO_SPACE, hyphenates, joined, words_of
from finetale.text.formats.pdf.pieces import SAME_PLACE, Page, Piece

_Begins = Literal["paragraph", "line", "nothing"]
_FEW = 25
"""Number of lines below which a document is too short to see what is usual in it."""
_RAGGED = 0.12
"""Programs that don't justify lines leave up to this share of the width free even where the next word would fit."""
_MIN_HANGING, _MAX_HANGING = 3, 5
"""Number of items that show a hanging indent without marks, and the largest indent of items, in heights of a line."""
_ITEM = re.compile(r"(?:[•·◦▪‣–—*-]|\(?(?:\d{1,3}|[A-Za-z]|[ivxlc]{1,5})[.)]|\[\d{1,3}\])\s")
"""The mark that starts an item of a list."""
_SPEAKER_CHANGES = re.compile(r"”“$|»«$|[.!?…]\"\"$|」「$")
"""One speech ends and another one begins. So the second one is a new paragraph."""


@dataclass(slots=True)
class Paragraph:
    """A paragraph, the page it starts on (from 1), and the baseline of its first line."""

    text: str
    page: int
    base: float


@dataclass(slots=True)
class _Style:
    """What is usual in the document: height and spacing of lines, indents, edges of lines by parity of the page.

    Attributes:
        hanging: those of the indents that all lines of an item but its first have.
        ragged: 0 if most lines reach the right edge, else the share of the width by which lines may fall short of it.
    """

    height: float
    spacing: float
    lefts: dict[int, list[float]]
    rights: dict[tuple[int, float], float]
    indents: set[float]
    ragged: float = 0.0
    hanging: set[float] = field(default_factory=set)


def paragraphs_of(pages: Sequence[Page], height: float) -> Iterator[Paragraph]:
    """Yield the paragraphs of a document.

    Args:
        pages: its pages, with their columns.
        height: the usual height of a line, in points.
    """
    style = _style(pages, height)
    columns = [column for page in pages for column in page.columns]
    words = words_of(line.text for column in columns for line in column)
    is_hyphenated = hyphenates(columns, words)
    current: list[str] = []
    start: tuple[int, float] = (0, 0.0)
    first: Piece | None = None  # line of the current paragraph
    above: Piece | None = None
    parity = 0
    for page in pages:
        for column in page.columns:
            for index, line in enumerate(column):
                begins: _Begins = "paragraph"
                if above is not None and first is not None:
                    begins = _begins(first, above, parity, line, page.number % 2, style, same_column=index > 0)
                if begins == "paragraph":
                    if current:
                        yield Paragraph(joined(current, words, hyphenates=is_hyphenated), *start)
                    current, start, first = [], (page.number, line.base), line
                current.append(("\n" if begins == "line" else "") + line.text)
                above, parity = line, page.number % 2
    if current:
        yield Paragraph(joined(current, words, hyphenates=is_hyphenated), *start)


def _style(pages: Sequence[Page], height: float) -> _Style:
    """Measure what is usual in a document."""
    spacings: Counter[float] = Counter()
    lefts: dict[int, Counter[int]] = {0: Counter(), 1: Counter()}
    lines = [(page.number % 2, line) for page in pages for column in page.columns for line in column]
    for page in pages:
        for column in page.columns:
            for above, line in pairwise(column):
                if abs(above.height - height) < 0.12 * height and abs(line.height - height) < 0.12 * height:
                    spacings[round(above.base - line.base, 0)] += 1
    for parity, line in lines:
        lefts[parity][round(line.left)] += 1
    common: dict[int, list[float]] = {}
    for parity, counted in lefts.items():
        total = counted.total()
        least = max(1 if total < _FEW else 2, 0.08 * total)
        common[parity] = sorted(left for left in counted if sum(counted[left + near] for near in (-1, 0, 1)) >= least)
    style = _Style(height, spacings.most_common(1)[0][0] if spacings else 1.2 * height, common, {}, set())
    reached: dict[tuple[int, float], Counter[int]] = {}
    indents: Counter[float] = Counter()
    for parity, line in lines:
        margin = _margin(style, parity, line.left)
        reached.setdefault((parity, margin), Counter())[round(line.right)] += 1
        if 0.5 * height < line.left - margin < 4 * height:
            indents[round(line.left - margin)] += 1
    for key, rights in reached.items():
        often = [right for right in rights if sum(rights[right + near] for near in (-1, 0, 1)) >= 2]
        style.rights[key] = max(often, default=max(rights))
    at_edge = sum(line.right > style.rights[parity, _margin(style, parity, line.left)] - 3 for parity, line in lines)
    style.ragged = 0.0 if at_edge >= 0.4 * len(lines) and len(lines) >= _FEW else _RAGGED
    style.indents = {indent for indent, times in indents.items() if times >= max(2, 0.02 * len(lines))}
    style.hanging = _hanging_indents(pages, style)
    return style


def _margin(style: _Style, parity: int, left: float) -> float:
    """Return the left edge of the column of a line: the first common edge within four heights, else its own."""
    edges = style.lefts[parity]
    index = bisect_left(edges, left - 4 * style.height)
    return edges[index] if index < len(edges) and edges[index] <= left + SAME_PLACE else round(left)


def _begins(
    first: Piece, above: Piece, parity: int, line: Piece, line_parity: int, style: _Style, *, same_column: bool
) -> _Begins:
    """Return what a line begins: a paragraph, a line of verse, or nothing if it continues the line above.

    Args:
        first: the first line of the paragraph above.
        above: the line above.
        parity, line_parity: whether the pages of the two lines have odd numbers.
        same_column: whether both lines are in one column.
    """
    larger = max(above.height, line.height)
    if larger > 1.14 * min(above.height, line.height):
        return "paragraph"
    if same_column:
        space = above.base - line.base
        if space < 0 or space > 1.3 * style.spacing * max(1.0, larger / style.height) + 0.5:
            return "paragraph"
        if line.height > 1.14 * style.height:  # lines of a heading may be centred
            return "nothing"
        if above.cells > 1 and line.cells > 1:  # rows of a table
            return "paragraph"
    if above.text.endswith(HYPHENS) and line.text[0].islower():
        return "nothing"
    margin_above, margin = _margin(style, parity, above.left), _margin(style, line_parity, line.left)
    indent_above, indent = above.left - margin_above, line.left - margin
    room = _room(above, parity, line, style)
    width = style.rights.get((parity, margin_above), above.right) - margin_above
    ends_early = room > style.ragged * width
    if same_column and (begins := _in_hanging(first, line, indent_above, indent, style, ends_early=ends_early)):
        return begins
    if indent > indent_above + 0.8 * style.height or _is_near(indent, style.indents):
        return "paragraph"
    if not ends_early:
        return "paragraph" if not same_column and _SPEAKER_CHANGES.search(above.text + line.text[0]) else "nothing"
    if same_column and line.text[0].islower() and above.text[-1] not in ".!?:":
        return "line" if room > _RAGGED * width else "nothing"
    return "paragraph"


def _in_hanging(
    first: Piece, line: Piece, indent_above: float, indent: float, style: _Style, *, ends_early: bool
) -> _Begins | None:
    """Return what a line begins next to a hanging indent: all lines of an item but its first are indented.

    Items start with a mark, such as "•" or "2.", or the indents of the document show that they are hanging. None if
    other rules decide.
    """
    depth = line.left - first.left
    if _ITEM.match(first.text):
        if _ITEM.match(line.text) and abs(depth) <= SAME_PLACE:
            return "paragraph"
        is_item = 0.5 * style.height < depth < _MAX_HANGING * style.height
    else:
        if indent <= SAME_PLACE and _is_near(indent_above, style.hanging):
            return "paragraph"
        is_item = indent > SAME_PLACE and _is_near(indent, style.hanging)
    return "nothing" if is_item and not ends_early else None


def _hanging_indents(pages: Sequence[Page], style: _Style) -> set[float]:
    """Return the indents that are hanging: the line above is full, and the line before the next item is not.

    Where the first lines of paragraphs are indented, it is the other way round.
    """
    into: dict[float, list[bool]] = {indent: [] for indent in style.indents}  # whether the line above is full
    back: dict[float, list[bool]] = {indent: [] for indent in style.indents}
    for page in pages:
        parity = page.number % 2
        for above, line in (pair for column in page.columns for pair in pairwise(column)):
            margin = _margin(style, parity, above.left)
            width = style.rights.get((parity, margin), above.right) - margin
            is_full = _room(above, parity, line, style) <= style.ragged * width
            for indent in style.indents:
                before, after = (abs(each.left - margin - indent) <= 1.5 for each in (above, line))
                if after and abs(above.left - margin) <= SAME_PLACE:
                    into[indent].append(is_full)
                elif before and abs(line.left - margin) <= SAME_PLACE:
                    back[indent].append(is_full)
    return {
        indent
        for indent in style.indents
        if len(into[indent]) >= _MIN_HANGING
        and sum(into[indent]) >= 0.9 * len(into[indent])
        and sum(back[indent]) <= 0.5 * len(back[indent])
    }


def _room(above: Piece, parity: int, line: Piece, style: _Style) -> float:
    """Return the width that would be left in the line above after the first word of the next line."""
    right = style.rights.get((parity, _margin(style, parity, above.left)), above.right)
    first = _first_word(line.text)
    return right - above.right - 0.3 * style.height - (line.right - line.left) * len(first) / len(line.text)


def _is_near(value: float, usual: set[float]) -> bool:
    return any(abs(value - each) <= 1.5 for each in usual)


def _first_word(text: str) -> str:
    if NO_SPACE.search(text[:3]):
        return text[:4]  # marks may not start or end a line, so up to four characters move together
    return text.split(" ", 1)[0]
