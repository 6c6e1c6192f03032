"""From the pieces of text on the pages of a PDF file to paragraphs in reading order. Knows no PDF and no files.

The rules are stated in docs/formats.md.
"""

from __future__ import annotations

import re
import statistics
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from finetale.text.formats.pdf.pages import COLUMN_GAP, LOWERED, RAISED

_Begins = Literal["paragraph", "line", "nothing"]
SAME_PLACE = 2.0
"""Points by which two baselines or edges may differ and count as the same."""

_BINS = 200
_FEW = 25
"""Number of lines below which a document is too short to see what is usual in it."""
_RAGGED = 0.12
"""Programs that don't justify lines leave up to this share of the width free even where the next word would fit."""
_MIN_IN_COLUMN = 3
_MARK = re.compile(f"{RAISED}[ ]?(?P<raised>[^{LOWERED}]{{1,4}}?)[ ]?{LOWERED}")
_NOTE_START = re.compile(rf"(?:{_MARK.pattern}|(?P<plain>[*†‡§¶]{{1,3}}|\d{{1,3}}(?=[ .)])))")
_NUMBER = re.compile(r"(?<![\w.,])\d{1,5}(?![\w,]|\.\d)")
_ROMAN = re.compile(r"[ivxlc]+|[IVXLC]+")
_WORD = re.compile(r"[^\W\d_]+(?:[-’'][^\W\d_]+)*")
_LAST_HALF = re.compile(r"(?P<word>[^\W\d_]+(?:-[^\W\d_]+)*)[-\xad‐]$")
_FIRST_HALF = re.compile(r"[^\W\d_]+(?:[-’'][^\W\d_]+)*")
_HYPHENS = ("-", "\xad", "‐")
_NO_SPACE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef]")
_ALSO_WIDE = "“”‘’…—·"
"""Marks that are Chinese beside Chinese characters."""
_HANGUL = re.compile(r"[\uac00-\ud7a3]")
_SPEAKER_CHANGES = re.compile(r"”“$|»«$|[.!?…]\"\"$|」「$")
"""One speech ends and another one begins. So the second one is a new paragraph."""
_TENS = {"twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"}
_ONES = {
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
}  # fmt: skip
_LIGATURES = {
    "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st",
}  # fmt: skip
_TEX = {
    "\x10": "“", "\x11": "”", "\x12": "„", "\x13": "«", "\x14": "»", "\x15": "–", "\x16": "—",
    "\x1b": "ff", "\x1c": "fi", "\x1d": "fl", "\x1e": "ffi", "\x1f": "ffl",
}  # fmt: skip
"""Control characters that stand for these in TeX's T1 encoding. Its bitmap fonts don't say what they hold."""
_ACCENTS = dict(zip("`´ˆ˜¨˙˚ˇ˘¯˝", "\u0300\u0301\u0302\u0303\u0308\u0307\u030a\u030c\u0306\u0304\u030b", strict=True))
_ACCENT = re.compile(f"([{''.join(_ACCENTS)}]) ?([A-Za-zıȷ])|([cCsStT]) ?¸")
"""An accent that TeX draws as a character of its own, before its letter, or a cedilla after it."""
_AS_TEXT = str.maketrans(_LIGATURES | {"\u00a0": " "})
_AS_TEX_TEXT = _AS_TEXT | str.maketrans(_TEX)


@dataclass(slots=True)
class Piece:
    """A piece of a line, or a line: its text, left edge, right edge, baseline and height in points, number of cells."""

    text: str
    left: float
    right: float
    base: float
    height: float
    cells: int = 1


@dataclass(slots=True)
class Page:
    """A page.

    Attributes:
        number: from 1.
        pieces: its pieces of text.
        is_empty: whether nothing is drawn on it.
        is_damaged: whether it can't be read.
        columns: its lines, by column in reading order; set by `read_layout`.
    """

    number: int
    pieces: list[Piece]
    is_empty: bool = False
    is_damaged: bool = False
    columns: list[list[Piece]] = field(default_factory=list)


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
        ragged: 0 if most lines reach the right edge, else the share of the width by which lines may fall short of it.
    """

    height: float
    spacing: float
    lefts: dict[int, list[float]]
    rights: dict[tuple[int, float], float]
    indents: set[float]
    ragged: float = 0.0


def read_layout(pages: list[Page], leave_out: Callable[[str, int], None], *, tex: bool = False) -> list[Paragraph]:
    """Return the paragraphs of a document.

    Args:
        pages: all pages. They are changed.
        leave_out: receives kinds and numbers of what is left out: "running head", "page number", "footnote".
        tex: whether TeX made the document. Its bitmap fonts have control characters for ligatures and quotes.
    """
    heights: Counter[float] = Counter()
    for page in pages:
        for piece in page.pieces:
            piece.text = piece.text.translate(_AS_TEXT)
            if tex:
                piece.text = _ACCENT.sub(_accented, piece.text.translate(_AS_TEX_TEXT))
            heights[round(piece.height, 1)] += len(piece.text)
    if not heights:
        return []
    height = heights.most_common(1)[0][0] or 1.0
    _remove_heads(pages, height, leave_out)
    for page in pages:
        _join_drop_caps(page, height)
        page.columns = [_lines(group) for group in _in_order(page.pieces)]
        page.pieces = []
    _remove_footnotes(pages, height, leave_out)
    style = _style(pages, height)
    words = _words(line.text for page in pages for column in page.columns for line in column)
    return list(_paragraphs(pages, style, words))


def _words(lines: Iterable[str]) -> Counter[str]:
    """Count the words of lines in lower case, without those that are cut by a hyphen at a line end."""
    words: Counter[str] = Counter()
    cut = False
    for line in lines:
        here = _WORD.findall(line)
        ends_cut = line[-1:] in _HYPHENS
        words.update(word.lower() for word in here[cut : -1 if ends_cut else None])
        cut = ends_cut
    return words


def _accented(match: re.Match[str]) -> str:
    accent, letter, before = match.groups()
    dotted = {"ı": "i", "ȷ": "j"}.get(letter, letter)
    composed = unicodedata.normalize("NFC", before + "\u0327" if before else dotted + _ACCENTS[accent])
    return composed if len(composed) == 1 else match[0]


# -- running heads and page numbers


def _rows(page: Page) -> list[list[Piece]]:
    """Return the pieces of a page by baseline, from top to bottom."""
    rows: list[list[Piece]] = []
    for piece in sorted(page.pieces, key=lambda piece: -piece.base):
        if rows and rows[-1][0].base - piece.base <= SAME_PLACE:
            rows[-1].append(piece)
        else:
            rows.append([piece])
    return rows


@dataclass(slots=True)
class _Edge:
    """A row at the top or the bottom of a page."""

    page: Page
    row: list[Piece]
    place: tuple[str, int]
    text: str
    gap: float
    first: bool
    number: int | None = None
    kind: str = ""


def _remove_heads(pages: Sequence[Page], height: float, leave_out: Callable[[str, int], None]) -> None:
    """Remove running heads and page numbers from the first and last two rows of each page."""
    edges: list[_Edge] = []
    gaps: Counter[int] = Counter()
    rows_of = [_rows(page) for page in pages]
    middle = statistics.median([row[0].base for rows in rows_of for row in (rows[:1] + rows[-1:] if rows else [])])
    for page, rows in zip(pages, rows_of, strict=True):
        gaps.update(round(above[0].base - below[0].base) for above, below in pairwise(rows))
        for zone, ordered in (("top", rows), ("bottom", rows[::-1])):
            is_here = len(rows) > 1 or bool(rows and (rows[0][0].base > middle) == (zone == "top"))
            for index, row in enumerate(ordered[:2] if is_here else ()):
                following = ordered[index + 1][0].base if index + 1 < len(ordered) else row[0].base + 100 * height
                text = " ".join(piece.text for piece in sorted(row, key=lambda piece: piece.left))
                gap = abs(row[0].base - following)
                edges.append(_Edge(page, row, (zone, round(row[0].base / 3)), text, gap, index == 0))
    often = max(gaps.values(), default=0) / 2
    usual = min((gap for gap, times in gaps.items() if times >= often and gap > 0), default=height)
    apart = 1.3 * usual  # heads are set off from the text
    numbered = {zone: _page_numbers(edges, zone, height, len(pages)) for zone in ("top", "bottom")}
    anywhere = numbered["top"] | numbered["bottom"]
    texts: Counter[tuple[str, str]] = Counter()
    for edge in edges:
        for found in _NUMBER.finditer(edge.text):
            alone = edge.first and edge.gap > apart and found[0] == edge.text.strip(" -–—")
            if int(found[0]) - edge.page.number in (anywhere if alone else numbered[edge.place[0]]):
                edge.text = edge.text[: found.start()] + "#" + edge.text[found.end() :]
                break
        bare = re.sub(r"[\W_]+", " ", edge.text.replace("#", "\x00")).strip().casefold()
        is_roman = _ROMAN.fullmatch(edge.text.strip(" -–—")) and edge.first and edge.gap > apart
        if is_roman or (not bare.strip("\x00 ") and "#" in edge.text):
            edge.kind = "page number"
        edge.text = bare
        texts[edge.place[0], bare] += 1
    for edge in edges:
        is_small = edge.row[0].height < 1.3 * height  # a heading is larger
        repeated = texts[edge.place[0], edge.text] >= 3 and (edge.gap > apart or "\x00" in edge.text)
        if not edge.kind and repeated and re.search(r"\w\w", edge.text) and is_small:
            edge.kind = "running head"
    places = Counter(edge.place for edge in edges if edge.kind)
    enough = max(3, len(pages) * 3 // 10)
    for edge in edges:  # a head that occurs once, such as that of a short chapter
        zone, at = edge.place
        number = sum(places[zone, near] for near in (at - 1, at, at + 1))
        if not edge.kind and edge.first and number >= enough and edge.gap > apart and edge.row[0].height < 1.3 * height:
            edge.kind = "running head"
    removed: Counter[str] = Counter()
    outer: set[tuple[int, str]] = set()  # a second row is a head only if the row outside of it is
    for edge in edges:
        if edge.kind and (edge.first or (edge.page.number, edge.place[0]) in outer):
            outer.add((edge.page.number, edge.place[0]))
            removed[edge.kind] += 1
            gone = set(map(id, edge.row))
            edge.page.pieces = [piece for piece in edge.page.pieces if id(piece) not in gone]
    for kind, number in removed.items():
        leave_out(kind, number)


def _page_numbers(edges: Iterable[_Edge], zone: str, height: float, num_pages: int) -> set[int]:
    """Return the differences between the page numbers that are printed and those of the file."""
    found = {
        (int(number) - edge.page.number, edge.page.number)
        for edge in edges
        if edge.place[0] == zone and edge.row[0].height < 1.15 * height
        for number in _NUMBER.findall(edge.text)
    }
    offsets = Counter(offset for offset, _ in found)
    enough = max(2, num_pages // 5)
    common = {offset for offset, times in offsets.most_common(1) if times >= enough}
    common |= {offset for offset, times in offsets.items() if times >= max(3, num_pages // 3)}
    return common or ({0} & offsets.keys() if num_pages < 3 else set())


# -- columns and lines


def _in_order(pieces: list[Piece], depth: int = 0) -> Iterator[list[Piece]]:
    """Yield groups of pieces in reading order. A piece across the gap of two columns starts a new group below both."""
    gap = _gap_between_columns(pieces) if depth < 4 else None
    if gap is None:
        if pieces:
            yield pieces
        return
    across = [piece for piece in pieces if piece.left < gap - 1 and piece.right > gap + 1]
    rest = [piece for piece in pieces if not (piece.left < gap - 1 and piece.right > gap + 1)]
    group: list[Piece] = []

    def sides(above: float, below: float) -> Iterator[list[Piece]]:
        within = [piece for piece in rest if below < piece.base <= above]
        yield from _in_order([piece for piece in within if piece.right <= gap + 1], depth + 1)
        yield from _in_order([piece for piece in within if piece.right > gap + 1], depth + 1)

    above = float("inf")
    for piece in sorted(across, key=lambda piece: -piece.base):
        if any(piece.base < each.base <= above for each in rest if each.base < above and abs(each.base - above) > 1):
            if group:
                yield group
            group = []
            yield from sides(above, piece.base)
        group.append(piece)
        above = piece.base
    if group:
        yield group
    yield from sides(above, -float("inf"))


def _gap_between_columns(pieces: list[Piece]) -> float | None:
    """Return the middle of the gap between two columns of text. None if there is only one column."""
    if len(pieces) < 2 * _MIN_IN_COLUMN:
        return None
    start, end = min(piece.left for piece in pieces), max(piece.right for piece in pieces)
    width = (end - start) / _BINS
    if width <= 0:
        return None
    changes = [0] * (_BINS + 2)
    for piece in pieces:
        changes[max(0, int((piece.left - start) / width))] += 1
        changes[min(_BINS, int((piece.right - start) / width) + 1)] -= 1
    covers: list[int] = []
    for change in changes[:_BINS]:
        covers.append((covers[-1] if covers else 0) + change)
    inner = range(_BINS * 15 // 100, _BINS * 85 // 100)
    least = min(covers[number] for number in inner)
    if least > len(pieces) // 5:
        return None
    best = min((number for number in inner if covers[number] == least), key=lambda number: abs(number - _BINS / 2))
    first = last = best
    while first > 0 and covers[first - 1] == least:
        first -= 1
    while last < _BINS - 1 and covers[last + 1] == least:
        last += 1
    gap = start + (first + last + 1) / 2 * width
    left = [piece for piece in pieces if piece.right <= gap]
    right = [piece for piece in pieces if piece.left >= gap]
    if len(left) < _MIN_IN_COLUMN or len(right) < _MIN_IN_COLUMN:
        return None
    beside = sum(min(p.base for p in right) - 1 <= piece.base <= max(p.base for p in right) + 1 for piece in left[:200])
    if beside < _MIN_IN_COLUMN:
        return None
    for side, room in ((left, gap - start), (right, end - gap)):  # columns are mostly filled; those of tables are not
        if statistics.median(piece.right - piece.left for piece in side) < 0.45 * room:
            return None
    return gap


def _lines(pieces: list[Piece]) -> list[Piece]:
    """Return the lines of one column, from top to bottom."""
    lines: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (-piece.base, piece.left)):
        if not piece.text:
            continue
        before = lines[-1] if lines else piece
        larger, smaller = (before, piece) if before.height >= piece.height else (piece, before)
        is_raised = smaller.height < 0.85 * larger.height and smaller.base > larger.base
        if not lines or before.base - piece.base > (0.5 * larger.height if is_raised else 0.3 * smaller.height):
            lines.append(piece)
            continue
        if is_raised and RAISED not in smaller.text:
            smaller.text = f"{RAISED}{smaller.text}{LOWERED}"
        first, second = (before, piece) if before.left <= piece.left else (piece, before)
        gap = second.left - first.right
        lines[-1] = Piece(
            first.text + ("" if gap < 0.15 * larger.height else " ") + second.text,
            first.left,
            max(first.right, second.right),
            larger.base,
            larger.height,
            first.cells + second.cells - (gap <= COLUMN_GAP * larger.height),
        )
    return lines


def _join_drop_caps(page: Page, height: float) -> None:
    """Put a large first letter that spans several lines before the first of these lines."""
    for cap in [piece for piece in page.pieces if piece.height > 1.7 * height and re.fullmatch(r"\W?\w", piece.text)]:
        beside = [
            piece
            for piece in page.pieces
            if piece.height < 0.6 * cap.height
            and cap.base - SAME_PLACE <= piece.base <= cap.base + 0.9 * cap.height
            and 0 <= piece.left - cap.left <= cap.right - cap.left + 2 * height
        ]
        if len(beside) > 1:
            first = max(beside, key=lambda piece: piece.base)
            for piece in beside:
                piece.left = cap.left
            first.text = cap.text + first.text
            page.pieces = [piece for piece in page.pieces if piece is not cap]


# -- footnotes


def _remove_footnotes(pages: Iterable[Page], height: float, leave_out: Callable[[str, int], None]) -> None:
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


# -- paragraphs


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
    return style


def _margin(style: _Style, parity: int, left: float) -> float:
    """Return the left edge of the column of a line: the first common edge within four heights, else its own."""
    edges = style.lefts[parity]
    index = bisect_left(edges, left - 4 * style.height)
    return edges[index] if index < len(edges) and edges[index] <= left + SAME_PLACE else round(left)


def _paragraphs(pages: Sequence[Page], style: _Style, words: Counter[str]) -> Iterator[Paragraph]:
    hyphenates = _hyphenates((column for page in pages for column in page.columns), words)
    current: list[str] = []
    start: tuple[int, float] = (0, 0.0)
    above: Piece | None = None
    parity = 0
    for page in pages:
        for column in page.columns:
            for index, line in enumerate(column):
                begins: _Begins = "paragraph"
                if above is not None:
                    begins = _begins(above, parity, line, page.number % 2, style, same_column=index > 0)
                if begins == "paragraph":
                    if current:
                        yield Paragraph(_joined(current, words, hyphenates=hyphenates), *start)
                    current, start = [], (page.number, line.base)
                current.append(("\n" if begins == "line" else "") + line.text)
                above, parity = line, page.number % 2
    if current:
        yield Paragraph(_joined(current, words, hyphenates=hyphenates), *start)


def _begins(above: Piece, parity: int, line: Piece, line_parity: int, style: _Style, *, same_column: bool) -> _Begins:
    """Return what a line begins: a paragraph, a line of verse, or nothing, where it continues the line above."""
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
    if above.text.endswith(_HYPHENS) and line.text[0].islower():
        return "nothing"
    margin_above, margin = _margin(style, parity, above.left), _margin(style, line_parity, line.left)
    indent_above, indent = above.left - margin_above, line.left - margin
    room = _room(above, parity, line, style)
    width = style.rights.get((parity, margin_above), above.right) - margin_above
    ends_early = room > style.ragged * width
    if indent > indent_above + 0.8 * style.height or _is_near(indent, style.indents):
        return "paragraph"
    if not ends_early:
        return "paragraph" if not same_column and _SPEAKER_CHANGES.search(above.text + line.text[0]) else "nothing"
    if same_column and line.text[0].islower() and above.text[-1] not in ".!?:":
        return "line" if room > _RAGGED * width else "nothing"
    return "paragraph"


def _room(above: Piece, parity: int, line: Piece, style: _Style) -> float:
    """Return the width that would be left in the line above after the first word of the next line."""
    right = style.rights.get((parity, _margin(style, parity, above.left)), above.right)
    first = _first_word(line.text)
    return right - above.right - 0.3 * style.height - (line.right - line.left) * len(first) / len(line.text)


def _is_near(value: float, usual: set[float]) -> bool:
    return any(abs(value - each) <= 1.5 for each in usual)


def _first_word(text: str) -> str:
    if _NO_SPACE.search(text[:3]):
        return text[:4]  # marks may not start or end a line, so up to four characters move together
    return text.split(" ", 1)[0]


def _joined(lines: Sequence[str], words: Counter[str], *, hyphenates: bool) -> str:
    """Return lines as one text. Hyphens at line ends are undone."""
    text = [lines[0]]
    for before, line in pairwise(lines):
        last, first = before[-1:], line[:1]
        if first == "\n":
            text.append(line)
        elif last in _HYPHENS and (half := _LAST_HALF.search(before)) and (other := _FIRST_HALF.match(line)):
            text[-1] = text[-1][:-1]
            kept = _keeps_hyphen(half["word"], other[0], words)
            text.append(("-" if kept or (kept is None and not hyphenates) else "") + line)
        else:
            at_dash = (last in ("—", "–") and not before.endswith((" —", " –"))) or (
                first in ("—", "–") and not line.startswith(("— ", "– "))
            )
            wide = [bool(_NO_SPACE.match(each)) for each in (last, first)]
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


def _hyphenates(columns: Iterable[list[Piece]], words: Counter[str]) -> bool:
    """Whether the document breaks words at line ends. Without evidence, it is assumed."""
    decided: Counter[bool | None] = Counter()
    for column in columns:
        for above, line in pairwise(column):
            half, other = _LAST_HALF.search(above.text), _FIRST_HALF.match(line.text)
            if half and other:
                decided[_keeps_hyphen(half["word"], other[0], words)] += 1
    return decided[False] >= decided[True] or decided[False] >= 5
