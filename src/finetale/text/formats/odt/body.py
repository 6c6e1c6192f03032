"""The text of an OpenDocument file as a stream of elements → its blocks. docs/formats.md states the rules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from finetale.text.account import FileAccount
from finetale.text.formats.manuscript import LIST, TITLE_LEVEL, Block, list_item, table_row
from finetale.text.formats.odt.styles import OFFICE, STYLE, TEXT, ListLevel, Styles, integer

TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
DRAW = "{urn:oasis:names:tc:opendocument:xmlns:drawing:1.0}"
SVG = "{urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0}"
_MAX_SPACES = 1000
_MAX_REPEATED_CELLS = 100
_WHITE_SPACE = re.compile(r"[ \t\r\n]+")
_SHAPES = "frame custom-shape rect ellipse circle polygon regular-polygon polyline path line connector caption measure"
_INDEXES = {"table-of-content": "table of contents", "alphabetical-index": "index", "illustration-index": "index",
            "table-index": "index", "object-index": "index", "user-index": "index"}  # fmt: skip
_LEFT_OUT = {
    **{f"{TEXT}{name}": what for name, what in _INDEXES.items()},
    f"{OFFICE}annotation": "comment",
    f"{TEXT}page-number": "page number",
    f"{TEXT}page-count": "page number",
    f"{TEXT}placeholder": "placeholder",
    f"{TEXT}ruby-text": "ruby annotation",
}
"""Elements that are left out with their contents, and their names."""
_IGNORED = {
    *(f"{OFFICE}{name}" for name in ("forms", "event-listeners", "scripts", "font-face-decls", "settings", "meta")),
    f"{OFFICE}binary-data",
    *(f"{TEXT}{name}-source" for name in (*_INDEXES, "bibliography")),
    *(f"{SVG}{name}" for name in ("title", "desc")),
    f"{TEXT}script",
    f"{TABLE}covered-table-cell",
}  # fmt: skip
"""Elements that hold no text of the document."""
_HEADERS = {
    f"{STYLE}{kind}{which}": f"page {kind}" for kind in ("header", "footer") for which in ("", "-left", "-first")
}
_PARAGRAPHS = (f"{TEXT}p", f"{TEXT}h")


@dataclass
class _Paragraph:
    """A paragraph while it is read."""

    pieces: list[str] = field(default_factory=list)
    level: int | None = None
    hidden: bool = False
    spans: list[bool] = field(default_factory=list)  # whether each open span is hidden
    after_space: bool = True  # white space that follows is left out
    boxes: list[Block] = field(default_factory=list)


@dataclass
class _List:
    """A list while it is read: its levels, and the marker of its item until a paragraph takes it."""

    levels: dict[int, ListLevel]
    count: int
    marker: str | None = None
    fresh: bool = False  # the item has no paragraph yet


@dataclass
class _Box:
    """What a text box or a cell interrupts."""

    paragraph: _Paragraph | None
    target: list[Block]
    lists: list[_List]
    kind: str | None = None


@dataclass
class _Table:
    """A table while it is read. Its rows go into `target`."""

    target: list[Block]
    group: str
    cells: list[list[Block]] = field(default_factory=list)


class Body:
    """Receives the elements of a document, and collects its blocks.

    Attributes:
        blocks: the paragraphs.
        kind: the kind of document: the local name of the element in office:body, such as "text" or "spreadsheet".
    """

    def __init__(self, account: FileAccount, styles: Styles) -> None:
        self.blocks: list[Block] = []
        self.kind: str | None = None
        self._account, self._styles = account, styles
        self._target = self.blocks
        self._paragraph: _Paragraph | None = None
        self._boxes: list[_Box] = []
        self._tables: list[_Table] = []
        self._num_tables = 0
        self._lists: list[_List] = []
        self._last_counts: dict[int, int] = {}
        self._hidden = False  # the last text was hidden
        self._in_body = False
        self._skipped = 0
        self._counts: str | None = None  # tag that is counted within the element that is left out
        self._header: str | None = None
        self._starts = {tag: getattr(self, name) for tag, name in _STARTS.items()}
        self._ends = {tag: getattr(self, name) for tag, name in _ENDS.items()}

    # -- the parser's calls

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._skipped:
            self._skipped += 1
            if tag == self._counts:
                self._account.leave_out("tracked deletion")
            return
        if not self._in_body:
            self._start_outside(tag, attributes)
        elif tag in _LEFT_OUT:
            self._account.leave_out(_LEFT_OUT[tag])
            self._skipped = 1
        elif tag in _IGNORED or attributes.get(f"{TEXT}display") == "none":
            if tag == f"{TEXT}section":
                self._account.leave_out("hidden passage")
            self._skipped = 1
        else:
            handler = self._starts.get(tag)
            if handler is not None:
                handler(tag, attributes)

    def data(self, text: str) -> None:
        if self._skipped:
            return
        if self._header is not None and not text.isspace():
            self._account.leave_out(self._header)
            self._header = None
        paragraph = self._paragraph
        if paragraph is None:
            return
        text = _WHITE_SPACE.sub(" ", text)
        if paragraph.after_space and text[:1] == " ":
            text = text[1:]
        if text:
            self._add(text)
            paragraph.after_space = text[-1] == " "

    def end(self, tag: str) -> None:
        if self._skipped:
            self._skipped -= 1
            if not self._skipped:
                self._counts = None
            return
        if not self._in_body:
            self._styles.end(tag)
            if tag in _HEADERS:
                self._header = None
        else:
            handler = self._ends.get(tag)
            if handler is not None:
                handler()

    def _start_outside(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == f"{OFFICE}body":
            self._in_body = True
        elif tag in _IGNORED:
            self._skipped = 1
        elif tag in _HEADERS:
            self._header = _HEADERS[tag]
        else:
            self._styles.start(tag, attributes)

    # -- paragraphs

    def _start_text(self, tag: str, attributes: dict[str, str]) -> None:
        self.kind = self.kind or tag.rpartition("}")[2]

    def _start_paragraph(self, tag: str, attributes: dict[str, str]) -> None:
        style = attributes.get(f"{TEXT}style-name", "")
        paragraph = _Paragraph(hidden=self._styles.is_hidden("paragraph", style))
        if tag == f"{TEXT}h":
            paragraph.level = max(1, integer(attributes.get(f"{TEXT}outline-level"), 1))
        elif self._styles.is_title(style):
            paragraph.level = TITLE_LEVEL
        self._paragraph = paragraph

    def _end_paragraph(self) -> None:
        paragraph, self._paragraph = self._paragraph, None
        if paragraph is None:
            return
        text = "".join(paragraph.pieces).strip()
        if text:
            self._target.append(self._block(text, paragraph.level))
        self._target += paragraph.boxes

    def _block(self, text: str, level: int | None) -> Block:
        if level is not None or not self._lists:
            return Block(text, level)
        current, depth = self._lists[-1], len(self._lists) - 1
        if current.fresh:
            current.fresh = False
            if current.marker is not None:
                return list_item(text, current.marker, depth)
            return Block(text)
        return Block(f"{'  ' * (depth + 1)}{text}", None, LIST) if current.marker is not None else Block(text)

    def _add(self, text: str) -> None:
        paragraph = self._paragraph
        if paragraph is None:
            return
        paragraph.after_space = False
        hidden = paragraph.spans[-1] if paragraph.spans else paragraph.hidden
        if not hidden:
            paragraph.pieces.append(text)
            self._hidden = False
        elif not self._hidden and not text.isspace():
            self._account.leave_out("hidden passage")
            self._hidden = True

    def _start_span(self, tag: str, attributes: dict[str, str]) -> None:
        if self._paragraph is not None:
            outer = self._paragraph.spans[-1] if self._paragraph.spans else self._paragraph.hidden
            hidden = outer or self._styles.is_hidden("text", attributes.get(f"{TEXT}style-name", ""))
            self._paragraph.spans.append(hidden)

    def _end_span(self) -> None:
        if self._paragraph is not None and self._paragraph.spans:
            self._paragraph.spans.pop()

    def _start_spaces(self, tag: str, attributes: dict[str, str]) -> None:
        self._add(" " * min(integer(attributes.get(f"{TEXT}c"), 1), _MAX_SPACES))

    def _start_tab(self, tag: str, attributes: dict[str, str]) -> None:
        self._add("\t")

    def _start_line_break(self, tag: str, attributes: dict[str, str]) -> None:
        self._add("\n")

    # -- what is left out

    def _start_note(self, tag: str, attributes: dict[str, str]) -> None:
        is_endnote = attributes.get(f"{TEXT}note-class") == "endnote"
        self._account.leave_out("endnote" if is_endnote else "footnote")
        self._skipped = 1

    def _start_changes(self, tag: str, attributes: dict[str, str]) -> None:
        self._skipped, self._counts = 1, f"{TEXT}deletion"

    def _start_hideable(self, tag: str, attributes: dict[str, str]) -> None:
        if attributes.get(f"{TEXT}is-hidden") == "true":
            self._account.leave_out("hidden passage")
            self._skipped = 1

    def _start_picture(self, tag: str, attributes: dict[str, str]) -> None:
        """Count a picture or an object once per frame: a frame can hold it in several forms."""
        self._skipped = 1
        if self._boxes and self._boxes[-1].kind is None:
            self._boxes[-1].kind = "picture" if tag == f"{DRAW}image" else "embedded object"
            self._account.leave_out(self._boxes[-1].kind)

    # -- text boxes

    def _start_shape(self, tag: str, attributes: dict[str, str]) -> None:
        self._boxes.append(_Box(self._paragraph, self._target, self._lists))
        self._paragraph, self._target, self._lists = None, [], []

    def _end_shape(self) -> None:
        if not self._boxes:
            return
        box, blocks = self._boxes.pop(), self._target
        self._paragraph, self._target, self._lists = box.paragraph, box.target, box.lists
        if box.paragraph is None:
            self._target += blocks
        else:
            box.paragraph.boxes += blocks

    # -- lists

    def _start_list(self, tag: str, attributes: dict[str, str]) -> None:
        depth = len(self._lists)
        name = attributes.get(f"{TEXT}style-name")
        levels = self._styles.lists.get(name, {}) if name is not None else self._lists[-1].levels if self._lists else {}
        count = levels.get(depth + 1, ListLevel()).start - 1
        continues = attributes.get(f"{TEXT}continue-numbering") == "true" or f"{TEXT}continue-list" in attributes
        if continues:
            count = self._last_counts.get(depth, count)
        self._lists.append(_List(levels, count))

    def _end_list(self) -> None:
        if self._lists:
            self._last_counts[len(self._lists) - 1] = self._lists.pop().count

    def _start_item(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._lists:
            return
        current = self._lists[-1]
        current.fresh, current.marker = True, None
        if tag == f"{TEXT}list-item":
            current.count = integer(attributes.get(f"{TEXT}start-value"), current.count + 1)
            level = current.levels.get(len(self._lists), ListLevel())
            current.marker = level.marker([each.count for each in self._lists], current.levels)

    # -- tables

    def _start_table(self, tag: str, attributes: dict[str, str]) -> None:
        self._num_tables += 1
        self._tables.append(_Table(self._target, f"table {self._num_tables}"))
        self._boxes.append(_Box(self._paragraph, self._target, self._lists, "table"))
        self._paragraph, self._lists = None, []

    def _end_table(self) -> None:
        if self._tables and self._boxes:
            self._tables.pop()
            box = self._boxes.pop()
            self._paragraph, self._target, self._lists = box.paragraph, box.target, box.lists

    def _start_row(self, tag: str, attributes: dict[str, str]) -> None:
        if self._tables:
            self._tables[-1].cells = []

    def _end_row(self) -> None:
        if self._tables:
            self._tables[-1].target += table_row(self._tables[-1].cells, self._tables[-1].group)

    def _start_cell(self, tag: str, attributes: dict[str, str]) -> None:
        if self._tables:
            self._target = []
            repeated = integer(attributes.get(f"{TABLE}number-columns-repeated"), 1)
            self._tables[-1].cells += [self._target] * max(1, min(repeated, _MAX_REPEATED_CELLS))


_STARTS = {
    **dict.fromkeys((f"{OFFICE}{kind}" for kind in ("text", "spreadsheet", "presentation", "drawing")), "_start_text"),
    **dict.fromkeys(_PARAGRAPHS, "_start_paragraph"),
    **dict.fromkeys((f"{DRAW}{name}" for name in _SHAPES.split()), "_start_shape"),
    **dict.fromkeys(
        (f"{DRAW}{name}" for name in ("image", "object", "object-ole", "plugin", "applet")), "_start_picture"
    ),
    **dict.fromkeys((f"{TEXT}hidden-text", f"{TEXT}hidden-paragraph"), "_start_hideable"),
    **dict.fromkeys((f"{TEXT}list-item", f"{TEXT}list-header"), "_start_item"),
    f"{TEXT}span": "_start_span",
    f"{TEXT}s": "_start_spaces",
    f"{TEXT}tab": "_start_tab",
    f"{TEXT}line-break": "_start_line_break",
    f"{TEXT}note": "_start_note",
    f"{TEXT}tracked-changes": "_start_changes",
    f"{TEXT}list": "_start_list",
    f"{TABLE}table": "_start_table",
    f"{TABLE}table-row": "_start_row",
    f"{TABLE}table-cell": "_start_cell",
}
_ENDS = {
    **dict.fromkeys(_PARAGRAPHS, "_end_paragraph"),
    **dict.fromkeys((f"{DRAW}{name}" for name in _SHAPES.split()), "_end_shape"),
    f"{TEXT}span": "_end_span",
    f"{TEXT}list": "_end_list",
    f"{TABLE}table": "_end_table",
    f"{TABLE}table-row": "_end_row",
}
