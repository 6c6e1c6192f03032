"""Turn HTML into text: paragraphs, headings, lists, tables. Knows no files, encodings and chapters of books.

The rules are in docs/formats.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from finetale.text.account import FileAccount
from finetale.text.documents import FileError
from finetale.text.formats.html.elements import (
    LINE,
    MARK_END,
    MARK_START,
    NONE,
    ROW,
    SCENE_BREAK,
    Block,
    Collector,
    Mark,
)
from finetale.text.formats.html.names import NOTES, PageKind

CELL_SEPARATOR = " | "
MOST_SHARE = 0.5
"""Share of a page's text: where more is left out around the article, the report has a problem `page_furniture`. A
sidebar, a form or hidden text that holds a larger share is kept."""
_ARTICLE_SHARE = 1 / 3
_PROSE_SHARE, _PROSE_CHARACTERS = 0.1, 100
_LINK_SHARE, _MIN_LINKS = 0.8, 3
_CELL_CHARACTERS = 500
_BLANK_DIVS = 0.2
_FEED_CHARACTERS = 1 << 16
_NO_CHARACTERS = ("\x00", MARK_START, MARK_END)
_MARKED = re.compile(f"{MARK_START}(.*?){MARK_END}", re.DOTALL)

_CERTAIN = frozenset(("menu", "footer"))
_WEAK = frozenset(("header", "sidebar", "form", "dialog", "comment section", "advertisement", "hidden passage"))
_MAX_BACK_LINKS = 50
_NEVER = {
    "footnote": "footnote",
    "footnotes": "footnote",
    "page number": "page number",
    "page header": "page header",
    "page footer": "page footer",
    "generated": "generated",
    "quotation": "quotation",
    "signature": "signature",
}
"""Kinds of regions that no page keeps → the noun under which they are left out."""
_AROUND = "passage around the article"


@dataclass
class Page:
    """The text of a page.

    Attributes:
        title: content of <title>.
        blocks: its blocks in reading order.
        anchors: id → number of the block it points to.
        line_gaps: whether <div>s are lines instead of paragraphs.
        types: the epub:type of the whole page.
        first_types: the epub:type of the section that it starts with.
    """

    title: str = ""
    blocks: list[Block] = field(default_factory=list)
    anchors: dict[str, int] = field(default_factory=dict)
    line_gaps: bool = False
    types: Collection[str] = ()
    first_types: Collection[str] = ()

    def text(self, start: int = 0, stop: int | None = None) -> str:
        """Return the text of some blocks."""
        return _joined(_without_tables(self.blocks[start:stop]), line_gaps=self.line_gaps)

    def sections(self) -> Iterator[tuple[str, str]]:
        """Yield (title, text) of the sections that start with a heading 1, and of what comes before the first."""
        starts = [number for number, block in enumerate(self.blocks) if block.level == 1]
        # Consecutive headings, such as "Part One" and "Chapter One", start one section.
        starts = [start for number, start in enumerate(starts) if not number or starts[number - 1] != start - 1]
        for start, stop in zip([0, *starts], [*starts, len(self.blocks)], strict=True):
            if start < stop:
                heading = self.blocks[start]
                yield heading.text.replace("\n", " ") if heading.level == 1 else "", self.text(start, stop)


def read_page(html: str, account: FileAccount, kind: PageKind = "web", part: str = "") -> Page:
    """Return the text of an HTML or XHTML page.

    Args:
        html: the page.
        account: receives what was left out.
        kind: "web" for pages with an article to find among menus and sidebars, "book" for pages of an e-book, "mail"
            for mails.
        part: name of the part of the file that holds the page, for messages.

    Raises:
        FileError: the page declares entities, or exceeds a limit.
    """
    name = f"its part {part} " if part else ""
    collector = Collector(account.file, name, kind)
    feed(html, collector, account, name)
    collector.flush()
    return _Selection(collector, account, kind).page()


def feed(html: str, target: Any, account: FileAccount, name: str = "") -> None:
    """Send the elements of a page to a target of lxml. Raises FileError if the page declares entities."""
    from lxml import etree

    if "\x00" in html:
        account.problem("nul", None, html.count("\x00"), "removed from the page")
    for character in _NO_CHARACTERS:
        html = html.replace(character, "")
    html = _without_xml(html, account, name)
    parser = etree.HTMLParser(target=target, encoding="utf-8", huge_tree=True)
    for start in range(0, len(html), _FEED_CHARACTERS):
        parser.feed(html[start : start + _FEED_CHARACTERS].encode("utf-8", "replace"))
    if html.strip():
        parser.close()


# -- what XHTML has and an HTML parser does not know

_EMPTY_ELEMENT = re.compile(r"<([A-Za-z][\w:.-]*)(\s[^<>]*)?/>")
_VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())  # noqa: SIM905
_XHTML = re.compile(r"\s*<\?xml|[^\0]{0,2000}?<html[^>]{0,2000}xmlns", re.IGNORECASE)
_DOCTYPE = re.compile(r"<!doctype\s[^>\[]{0,1000}\[", re.IGNORECASE)


def _without_xml(html: str, account: FileAccount, name: str) -> str:
    """Return a page without the parts of XML that an HTML parser misunderstands.

    An HTML parser takes <title/> and <script/> for start tags and ignores CDATA, and the text behind them would be
    lost.
    """
    doctype = _DOCTYPE.search(html, 0, 1 << 16)
    if doctype is not None:
        end = html.find("]", doctype.end())
        subset = html[doctype.end() : end if end >= 0 else len(html)]
        if end < 0 or "<!entity" in subset.lower():
            detail = f"{name}declares its own entities (<!ENTITY), which can grow without limit and are not read"
            hint = "Save the page again with a browser, or remove the declarations."
            raise FileError(account.file, None, "entities", detail, hint)
        html = html[: doctype.start()] + html[html.find(">", end) + 1 :]
    if "/>" in html and _XHTML.match(html[: 1 << 14]):
        html = _EMPTY_ELEMENT.sub(_opened_and_closed, html)
    if "<![CDATA[" in html:
        pieces, position = [], 0
        while (start := html.find("<![CDATA[", position)) >= 0 and (end := html.find("]]>", start)) >= 0:
            data = html[start + 9 : end].replace("&", "&amp;").replace("<", "&lt;")
            pieces += [html[position:start], data]
            position = end + 3
        html = "".join([*pieces, html[position:]])
    return html


def _opened_and_closed(match: re.Match[str]) -> str:
    tag = match.group(1)
    return match.group() if tag.lower() in _VOID else f"<{tag}{match.group(2) or ''}></{tag}>"


# -- from blocks to the text

Fates = list[str]
"""For each region the noun under which it is left out, "" if it is kept."""


class _Selection:
    """Chooses the regions that are left out, and counts them."""

    def __init__(self, found: Collector, account: FileAccount, kind: PageKind) -> None:
        self._found, self._account, self._kind = found, account, kind
        self._regions = regions = found.regions
        self._sizes = [region.characters for region in regions]
        self._links = [region.num_links for region in regions]
        self._link_sizes = [region.link_characters for region in regions]
        self._active = [region.is_active for region in regions]
        for number in range(len(regions) - 1, 0, -1):
            parent = regions[number].parent
            self._sizes[parent] += self._sizes[number]
            self._links[parent] += self._links[number]
            self._link_sizes[parent] += self._link_sizes[number]
            self._active[parent] = self._active[parent] or self._active[number]

    def page(self) -> Page:
        """Return the page without what is left out."""
        found, account = self._found, self._account
        dropped = dict.fromkeys(self._linked_notes(), "footnote")
        notes = self._spread({n: _NEVER[self._regions[n].kind] for n in self._of_kinds(_NEVER)})
        total = self._size(notes)
        if self._kind == "web":
            fates, menus = self._without_furniture(notes, total)
            dropped |= dict.fromkeys(menus, "menu")
            rescued = self._title_heading(fates)
        else:
            fates = self._spread(self._small({"hidden passage", "menu"}, MOST_SHARE * total, notes), notes)
            rescued = None
        kept: list[Block] = []
        new_number: list[int] = []
        gap, lost = NONE, found.skipped_characters
        for number, block in enumerate(found.blocks):
            new_number.append(len(kept))
            gap = max(gap, block.gap)
            if (not fates[block.region] and number not in dropped) or number == rescued:
                if block.marks and not self._without_marks(block):
                    continue
                block.gap, gap = gap, NONE
                kept.append(block)
            elif not block.is_rule and not notes[block.region] and dropped.get(number) != "footnote":
                lost += len(block.text)
        new_number.append(len(kept))
        self._count(fates, dropped)
        if self._kind == "web" and lost > MOST_SHARE * (total + found.skipped_characters):
            share = lost / (total + found.skipped_characters)
            detail = f"{share:.0%} of the page's text is left out, as menus, sidebars and what else is there"
            account.problem("page_furniture", None, detail=detail)
        anchors = {name: new_number[number] for name, number in found.anchors.items()}
        line_gaps = found.num_blank_divs > _BLANK_DIVS * found.num_divs
        return Page(" ".join(found.title.split()), kept, anchors, line_gaps, found.types, found.first_types)

    def _linked_notes(self) -> set[int]:
        """Return the blocks that are footnotes because a mark leads to them.

        A link is a mark if it is marked as one, or if a link in the block that it leads to leads back to its own block.
        Then both links become certain marks.
        """
        found = self._found
        in_block: dict[int, list[Mark]] = {}
        for mark in found.marks:
            in_block.setdefault(mark.block, []).append(mark)
        notes = set()
        for mark in found.marks:
            note = found.anchors.get(mark.target, len(found.blocks))
            if note <= mark.block or note >= len(found.blocks) or found.blocks[note].level:
                continue
            if mark.is_certain and mark.target not in found.inner_anchors:
                notes.add(note)
                continue
            for back in in_block.get(note, ())[:_MAX_BACK_LINKS]:
                if (
                    back is not mark
                    and found.anchors.get(back.target) == mark.block
                    and _MARKED.sub("", found.blocks[note].text).strip()
                ):
                    mark.is_certain = back.is_certain = True
                    notes.add(note)
        return notes

    def _without_marks(self, block: Block) -> bool:
        """Remove the marks of footnotes from a block. Return whether text remains."""
        marks = iter(block.marks)

        def shown(match: re.Match[str]) -> str:
            number = next(marks, None)
            return "" if number is not None and self._found.marks[number].is_certain else match.group(1)

        block.text = _MARKED.sub(shown, block.text).strip(" \n")
        return bool(block.text)

    def _without_furniture(self, fates: Fates, total: int) -> tuple[Fates, set[int]]:
        """Return the regions, and the blocks in other regions, that a web page has around its article.

        A page without an obvious article keeps all of its text.
        """
        regions = self._regions
        certain = self._spread({n: regions[n].kind for n in self._of_kinds(_CERTAIN)}, fates)
        weak = self._small(_WEAK, MOST_SHARE * self._size(certain), certain)
        weak = {n: kind for n, kind in weak.items() if kind != "header" or self._links[n] or self._active[n]}
        without = self._spread(weak, certain)
        size = self._size(without)
        for kind in ("main", "article"):
            inside = self._spread(dict.fromkeys(self._of_kinds({kind}), "in"))
            article = [fate or ("" if within else _AROUND) for fate, within in zip(without, inside, strict=True)]
            if (in_article := self._size(article)) and in_article >= _ARTICLE_SHARE * size:
                return article, set()
        if size < max(_PROSE_SHARE * total, _PROSE_CHARACTERS):
            return fates, set()
        lists = {
            n: "menu"
            for n in self._of_kinds({"list"})
            if self._links[n] >= _MIN_LINKS and self._link_sizes[n] >= _LINK_SHARE * self._sizes[n]
        }
        fewer = self._spread(lists, without)
        menus = {
            number
            for number, block in enumerate(self._found.blocks)
            if block.num_links >= _MIN_LINKS
            and block.link_characters >= _LINK_SHARE * len(block.text)
            and not fewer[block.region]
        }
        rest = self._size(fewer) - sum(len(self._found.blocks[number].text) for number in menus)
        return (fewer, menus) if rest >= max(MOST_SHARE * size, _PROSE_CHARACTERS) else (without, set())

    def _title_heading(self, fates: Fates) -> int | None:
        """Return the heading 1 that is left out although it is the title of the article."""
        title = " ".join(self._found.title.split()).casefold()
        headings = [(number, block) for number, block in enumerate(self._found.blocks) if block.level == 1]
        if any(not fates[block.region] for _, block in headings):
            return None
        lost = (n for n, block in headings if fates[block.region] in ("header", _AROUND))
        return next((n for n in lost if title.startswith(self._found.blocks[n].text.casefold())), None)

    def _of_kinds(self, kinds: Collection[str]) -> list[int]:
        return [number for number, region in enumerate(self._regions) if region.kind in kinds]

    def _small(self, kinds: Collection[str], limit: float, fates: Fates) -> dict[int, str]:
        """Return the regions of some kinds that have at most `limit` characters."""
        return {n: self._regions[n].kind for n in self._of_kinds(kinds) if not fates[n] and self._sizes[n] <= limit}

    def _spread(self, roots: dict[int, str], fates: Fates | None = None) -> Fates:
        """Return `fates` in which `roots` and all within them are left out too."""
        result = [""] * len(self._regions)
        for number, region in enumerate(self._regions):
            above = result[region.parent] if region.parent >= 0 else ""
            result[number] = above or (fates[number] if fates else "") or roots.get(number, "")
        return result

    def _size(self, fates: Fates) -> int:
        """Return the number of characters that are kept."""
        return sum(region.characters for region, fate in zip(self._regions, fates, strict=True) if not fate)

    def _count(self, fates: Fates, dropped: dict[int, str]) -> None:
        """Count what is left out: each outermost region once, and blocks in regions that are kept."""
        counts = Counter(self._found.skipped)
        for block, what in dropped.items():
            counts[what] += not fates[self._found.blocks[block].region]
        notes_within: Counter[int] = Counter()
        for region in self._regions:
            if region.kind == "footnote" and self._regions[region.parent].kind in NOTES:
                notes_within[region.parent] += 1
        for number, (region, fate) in enumerate(zip(self._regions, fates, strict=True)):
            above = fates[region.parent] if region.parent >= 0 else ""
            if fate and fate == _AROUND:
                counts[fate] += region.characters > 0
            elif fate and not (above and above != _AROUND) and self._sizes[number]:
                counts[fate] += max(1, notes_within[number])
        counts["picture"] = sum(count for region, count in self._found.pictures.items() if not fates[region])
        counts["formula"] = self._found.formulas
        del counts["generated"]
        for what, count in counts.items():
            self._account.leave_out(what, count)


def _without_tables(blocks: Sequence[Block]) -> Iterator[Block]:
    """Yield blocks, with the cells of each row of a table joined to one block. Tables for layout are unchanged."""
    for table, group in groupby(blocks, key=lambda block: block.cell[0] if block.cell else 0):
        cells = list(group)
        if not table or not (rows := _rows(cells)):
            yield from cells
            continue
        gap = cells[0].gap
        for row in rows:
            yield Block(row, gap)
            gap = ROW


def _rows(blocks: Sequence[Block]) -> list[str]:
    """Return the rows of a table. Empty if it is a table for layout: with one column, a heading or long cells."""
    rows: dict[int, dict[int, list[str]]] = {}
    for block in blocks:
        assert block.cell is not None
        _, row, cell = block.cell
        if cell == 0 or block.level:
            return []
        rows.setdefault(row, {}).setdefault(cell, []).append(" ".join(block.text.split("\n")))
    texts = {number: {cell: " ".join(parts) for cell, parts in row.items()} for number, row in rows.items()}
    if max(map(max, texts.values())) < 2 or any(
        len(t) > _CELL_CHARACTERS for row in texts.values() for t in row.values()
    ):
        return []
    return [CELL_SEPARATOR.join(row.get(n, "") for n in range(1, max(row) + 1)) for row in texts.values()]


def _joined(blocks: Iterable[Block], *, line_gaps: bool) -> str:
    """Return the text of blocks. A horizontal rule is a scene break between two of them, and nothing elsewhere."""
    pieces: list[str] = []
    before: Block | None = None
    rule = False
    for block in blocks:
        if block.is_rule:
            rule = before is not None
            continue
        if rule:
            pieces.append(f"\n\n{SCENE_BREAK}\n\n")
        elif before is not None:
            tight = block.starts_item and before.item == block.item
            line = block.gap in (NONE, ROW) or (block.gap == LINE and line_gaps) or tight
            pieces.append("\n" if line else "\n\n")
        pieces.append(block.text.replace("\n", " ") if block.level else block.text)
        before, rule = block, False
    return "".join(pieces)
