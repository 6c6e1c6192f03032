"""Remove running heads and page numbers from the pages of a PDF file."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from finetale.text.formats.pdf.pieces import SAME_PLACE, Page, Piece

_NUMBER = re.compile(r"(?<![\w.,])\d{1,5}(?![\w,]|\.\d)")
_ROMAN = re.compile(r"[ivxlc]+|[IVXLC]+")


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


def remove_heads(pages: Sequence[Page], height: float, leave_out: Callable[[str, int], None]) -> None:
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
