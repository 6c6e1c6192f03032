"""Receive the elements of an HTML page from lxml, and collect its blocks of text and the regions that they are in.

Decides nothing about what is left out, except scripts, form controls and other elements that never hold text of a page.
No tree is built, so memory depends on the text only, and the depth of the nesting costs nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from finetale.text.documents import FileError
from finetale.text.formats.html.names import PageKind, names_in, region_kind, types_of

SCENE_BREAK = "* * *"
MAX_BLOCKS = 1_000_000
MAX_DEPTH = 200_000

_DROPPED = names_in("script style template iframe embed applet noframes audio map datalist rt rp rtc progress meter")
"""Elements whose content is not text of the page. <noscript> and <form> are regions, because they may hold all of it.

<head> is entered: where its end tag is missing, lxml takes <article> for a part of it.
"""
_PICTURES = frozenset(("img", "svg", "image", "canvas", "video", "object"))
_CONTROLS = frozenset(("input", "select", "textarea", "button"))
_SKIPPED = _DROPPED | _PICTURES | _CONTROLS | {"math", "title"}
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_PARAGRAPHS = names_in(
    "p ul ol dl table pre blockquote figure figcaption section article main header footer nav aside form fieldset "
    "center address hr listing xmp plaintext details summary hgroup body html dt caption noscript"
) | frozenset(_HEADINGS)
"""Elements that are separated from what surrounds them by a blank line."""
_LINES = names_in("div dd li tr td th tbody thead tfoot legend optgroup option menu dir")
_PRE = frozenset(("pre", "listing", "xmp", "plaintext"))
_LISTS = frozenset(("ul", "ol", "menu", "dir"))

_INLINE = names_in("span a i b em strong small sup sub font abbr cite code s u mark label time bdi bdo")
_UNREAD = frozenset(("hidden passage", "page number", "footnote", "generated"))
_ID_KEYS = frozenset(("id", "name", "xml:id"))
_PLAIN = names_in("p div span br a i b em strong td tr table h2 h3 blockquote")
"""Frequent elements that start no region unless they have attributes."""
_MARK_TYPES = names_in("noteref doc-noteref footnote-ref sdfootnoteanc sdendnoteanc")
_NOTE_MARK = re.compile(r"[\[(]?(?:\d{1,4}|[*†‡§¶]{1,4}|[a-zA-Z]|[ivxlc]{1,7}|[↩↵↑^⏎]\ufe0e?)[\])]?")
MARK_START, MARK_END = "\ufdd0", "\ufdd1"
"""Surround the text of a link that can be the mark of a footnote. These code points do not occur in text."""
_SPACES = re.compile(r"[\t\n\f][ \t\n\f]*| [ \t\n\f]+")  # not a single space
_BREAKS = re.compile(" ?\r ?")
_MANY_BREAKS = re.compile(r"\n{3,}")
_INVISIBLE: dict[int, str | None] = {
    **{code: bytes((code,)).decode("cp1252", "ignore") for code in range(0x80, 0xA0)},
    **dict.fromkeys((0xAD, 0x200B, 0x2060, 0xFEFF)),
}
"""Soft hyphen, zero-width space, word joiner: places where a line may or may not break. References to C1 control
characters, such as &#150;, mean characters of Windows-1252."""
_HAS_INVISIBLE = re.compile("[\x80-\x9f\xad\u200b\u2060\ufeff]")

# Boundaries between blocks, from weak to strong; ROW is between the rows of a table.
ROW, NONE, LINE, PARAGRAPH = -1, 0, 1, 2


@dataclass(slots=True)
class Block:
    """A paragraph, heading, list item or table cell.

    Attributes:
        text: its text. Lines are separated by \\n.
        gap: boundary between it and the block before.
        level: 1 to 6 for headings, else 0.
        region: number of the region that holds it.
        item: number of the outermost list that holds it, or 0.
        starts_item: whether it is the first block of a list item.
        cell: (table, row, cell) of the innermost table, or None.
        num_links: number of links in it.
        link_characters: number of characters of the links.
        is_rule: whether it is a horizontal rule.
        marks: numbers of the links between `MARK_START` and `MARK_END` in its text.
    """

    text: str
    gap: int
    level: int = 0
    region: int = 0
    item: int = 0
    starts_item: bool = False
    cell: tuple[int, int, int] | None = None
    num_links: int = 0
    link_characters: int = 0
    is_rule: bool = False
    marks: tuple[int, ...] = ()


@dataclass(slots=True)
class Mark:
    """A link that may be the mark of a footnote, or lead back to it.

    Attributes:
        block: number of its block.
        target: id of the element that it leads to, on the same page.
        is_certain: whether it is a mark in any case.
    """

    block: int
    target: str
    is_certain: bool


@dataclass(slots=True)
class Region:
    """A part of the page that may be left out or be the article."""

    parent: int
    kind: str
    in_article: bool
    characters: int = 0
    num_links: int = 0
    link_characters: int = 0
    is_active: bool = False  # has pictures or form controls


@dataclass(slots=True)
class _Link:
    """An open link: its place, the id on the page that it leads to, and whether it is the mark of a footnote."""

    block: int
    piece: int
    target: str
    is_mark: bool


class Collector:
    """Receives the elements of a page from lxml and collects its blocks and regions."""

    def __init__(self, file: str, name: str, kind: PageKind) -> None:
        self._file, self._name, self._kind = file, name, kind
        self.blocks: list[Block] = []
        self.regions = [Region(-1, "", False)]
        self.anchors: dict[str, int] = {}
        self.inner_anchors: set[str] = set()  # those with text of their block before them
        self.marks: list[Mark] = []
        self._block_marks: list[int] = []
        self.types: set[str] = set()  # epub:type of <body>
        self.first_types: set[str] = set()  # of the sections before the first text
        self.title = ""
        self.pictures: Counter[int] = Counter()
        self.formulas = 0
        self.skipped: Counter[str] = Counter()
        self.skipped_characters = 0
        self._skipped_kind = ""  # of the element that is skipped, while it is not counted
        self._in_hidden = False
        self.num_divs = self.num_blank_divs = 0
        self._stack: list[tuple[str, int, int, bool]] = []  # (tag, region before, undo, …) of each open element
        self._skipping = 0  # height of the stack at which the skipped element is
        self._in_title = False
        self._pieces: list[str] = []
        self._gap = PARAGRAPH
        self._region = 0
        self._pre = 0
        self._lists: list[list[int | str]] = []  # marker of each open list: [next number] or ["-"]
        self._num_lists = 0
        self._item = 0
        self._marker = ""
        self._tables: list[list[int]] = []  # (table, row, cell) of each open table
        self._num_tables = 0
        self._links: list[_Link] = []
        self._sups = 0
        self._num_links = self._link_characters = 0
        self._level = 0

    # -- events

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        stack = self._stack
        if len(stack) >= MAX_DEPTH:
            raise self._too_large(f"more than {MAX_DEPTH:,} elements nested in each other")
        if self._skipping:
            stack.append((tag, -1, 0, False))
            return
        if ":" in tag:
            tag = tag.rpartition(":")[2]
        for key in _ID_KEYS & attributes.keys():
            if len(self.anchors) < MAX_BLOCKS:
                if attributes[key] not in self.anchors and any(map(str.strip, self._pieces[:20])):
                    self.inner_anchors.add(attributes[key])
                self.anchors.setdefault(attributes[key], len(self.blocks))
        before = self._region
        if tag in _SKIPPED:
            self._in_title = tag == "title" and not self.title
            self._count_skipped(tag)
            self._skip(tag)
            return
        kind = self._kind_of(tag, attributes) if attributes or tag not in _PLAIN else ""
        if tag in _INLINE and kind:
            if kind in _UNREAD:
                self._skipped_kind, self._in_hidden = kind, kind == "hidden passage"
                self._skip(tag)
                return
            kind = ""
        if block := PARAGRAPH if tag in _PARAGRAPHS else LINE if tag in _LINES or kind else NONE:
            self._boundary(block)
        if kind:
            self._open_region(kind)
        undo = 0
        if tag == "br":
            self._pieces.append("\n" if self._pre else "\r")
        elif tag == "hr":
            self._add(Block(SCENE_BREAK, PARAGRAPH, 0, self._region, is_rule=True))
        elif tag == "a":
            target = attributes.get("href", "").rpartition("#")
            is_mark = bool(_names(attributes) & _MARK_TYPES) or bool(self._sups and target[1])
            self._links.append(_Link(len(self.blocks), len(self._pieces), target[2] if target[1] else "", is_mark))
        elif tag == "sup":
            self._sups += 1
            if self._links and self._links[-1].target:
                self._links[-1].is_mark = True
        elif tag in _HEADINGS:
            self._level = _HEADINGS[tag]
        elif tag in _PRE:
            self._pre += 1
        elif tag in _LISTS:
            self._num_lists += not self._lists
            self._lists.append([_number(attributes.get("start"), 1)] if tag == "ol" else ["-"])
        elif tag == "li":
            self._start_item(attributes)
        elif tag == "dd":
            self._gap = NONE  # a line below its term
        elif tag == "table":
            self._num_tables += 1
            self._tables.append([self._num_tables, 0, 0])
        elif tag == "tr" and self._tables:
            self._tables[-1][1] += 1
            self._tables[-1][2] = 0
        elif tag in ("td", "th") and self._tables:
            self._tables[-1][2] += 1
        elif tag == "q":
            self._pieces.append("“")
        elif tag == "div":
            undo = len(self.blocks)
        stack.append((tag, before, undo, bool(kind)))

    def _skip(self, tag: str) -> None:
        self._stack.append((tag, self._region, 0, False))
        self._skipping = len(self._stack)

    def _count_skipped(self, tag: str) -> None:
        if tag in _PICTURES:
            self.pictures[self._region] += 1
            self.regions[self._region].is_active = True
        elif tag in _CONTROLS:
            self.regions[self._region].is_active = True
        elif tag == "math":
            self.formulas += 1

    def end(self, tag: str) -> None:
        tag, before, undo, is_region = self._stack.pop()
        if self._skipping:
            self._in_title = self._in_title and tag != "title"
            if len(self._stack) < self._skipping:
                self._skipping = 0
                self._skipped_kind, self._in_hidden = "", False
            return
        if tag == "a":
            self._end_link(self._links.pop())
        elif tag == "div":
            self.num_divs += 1
            if undo == len(self.blocks) and self._pieces and "".join(self._pieces).isspace():
                blank = "\r" in self._pieces
                self.num_blank_divs += blank or "\xa0" in self._pieces
                if blank:
                    self._pieces.clear()
                    self._gap = PARAGRAPH
        elif tag == "q":
            self._pieces.append("”")
        elif tag == "sup":
            self._sups -= 1
        block = PARAGRAPH if tag in _PARAGRAPHS else LINE if tag in _LINES else NONE
        if block or is_region:
            self._boundary(block or LINE)
        self._region = before
        if tag in _HEADINGS:
            self._level = 0
        elif tag in _PRE:
            self._pre -= 1
        elif tag in _LISTS:
            self._lists.pop()
            self._marker = ""
        elif tag == "li":
            self._marker = ""
        elif tag == "table" and self._tables:
            self._tables.pop()

    def data(self, text: str) -> None:
        if self._in_title:
            self.title += text
        elif self._skipping:
            if self._skipped_kind and not text.isspace():
                self.skipped[self._skipped_kind] += 1
                self._skipped_kind = ""
            if self._in_hidden:
                self.skipped_characters += len(text)
        else:
            self._pieces.append(text.replace("\r", " ") if not self._pre else text.replace("\r\n", "\n"))

    def comment(self, text: str) -> None:
        """Ignore a comment."""

    def close(self) -> None:
        """Receive the end of the page."""

    def flush(self) -> None:
        """End the current block."""
        self._boundary(PARAGRAPH)

    # -- blocks

    def _boundary(self, strength: int) -> None:
        """End the current block, and separate it from the next one by at least this."""
        if self._pieces:
            text = "".join(self._pieces)
            if self._pre:
                text = text.strip("\n").rstrip()
            else:
                text = _SPACES.sub(" ", text)
                if "\r" in text:
                    text = _MANY_BREAKS.sub("\n\n", _BREAKS.sub("\n", text))
                text = text.strip()
            if not text.isascii() and _HAS_INVISIBLE.search(text):
                text = text.translate(_INVISIBLE)
            if text.strip():
                self._add(self._block(text))
            self._pieces.clear()
            self._block_marks.clear()
            self._num_links = self._link_characters = 0
        self._gap = max(self._gap, strength)

    def _block(self, text: str) -> Block:
        item = self._num_lists if self._lists else 0
        starts_item = False
        if item:
            indent = "  " * (len(self._lists) - 1)
            marker = self._marker or " " * 2
            starts_item = bool(self._marker)
            self._marker = ""
            if not self._pre:
                text = indent + marker + text.replace("\n", f"\n{indent}{' ' * len(marker)}")
        cell = tuple(self._tables[-1]) if self._tables else None
        return Block(
            text,
            self._gap,
            self._level,
            self._region,
            item,
            starts_item,
            (cell[0], cell[1], cell[2]) if cell else None,
            self._num_links,
            min(self._link_characters, len(text)),
            marks=tuple(self._block_marks),
        )

    def _add(self, block: Block) -> None:
        if len(self.blocks) >= MAX_BLOCKS:
            raise self._too_large(f"more than {MAX_BLOCKS:,} paragraphs")
        self.blocks.append(block)
        if not block.is_rule:
            region = self.regions[block.region]
            region.characters += len(block.text)
            region.num_links += block.num_links
            region.link_characters += block.link_characters
        self._gap = NONE

    def _too_large(self, what: str) -> FileError:
        hint = "Check that it is a page with text; if so, split it into several files."
        return FileError(self._file, None, "page_limit", f"{self._name or 'its page '}has {what}", hint)

    def _start_item(self, attributes: dict[str, str]) -> None:
        if not self._lists:
            return
        mark = self._lists[-1]
        if isinstance(mark[0], int):
            number = _number(attributes.get("value"), mark[0])
            mark[0] = number + 1
            self._marker = f"{number}. "
        else:
            self._marker = "- "

    def _end_link(self, link: _Link) -> None:
        text = "" if link.block != len(self.blocks) else "".join(self._pieces[link.piece :]).strip()
        if not text:
            return
        if (link.target or link.is_mark) and _NOTE_MARK.fullmatch(text):
            self._block_marks.append(len(self.marks))
            self.marks.append(Mark(link.block, link.target, link.is_mark))
            self._pieces[link.piece :] = [MARK_START, *self._pieces[link.piece :], MARK_END]
        self._num_links += 1
        self._link_characters += len(text)

    # -- regions

    def _open_region(self, kind: str) -> None:
        above = self.regions[self._region]
        self.regions.append(Region(self._region, kind, above.in_article or kind in ("main", "article")))
        if len(self.regions) > MAX_BLOCKS:
            raise self._too_large(f"more than {MAX_BLOCKS:,} parts")
        self._region = len(self.regions) - 1

    def _kind_of(self, tag: str, attributes: dict[str, str]) -> str:
        """Return the kind of the region that an element starts, "" if it starts none."""
        if tag == "body":
            self.types |= types_of(attributes)
        elif not self.blocks and tag in ("section", "div"):
            self.first_types |= types_of(attributes)
        above = self.regions[self._region]
        return region_kind(
            tag, attributes, self._kind, above.kind, in_article=above.in_article, in_list=bool(self._lists)
        )


def _names(attributes: dict[str, str]) -> set[str]:
    return {
        name for key in ("epub:type", "role", "class") if key in attributes for name in attributes[key].lower().split()
    }


def _number(value: str | None, default: int) -> int:
    try:
        return int(value) if value is not None and len(value) < 10 else default
    except ValueError:
        return default
