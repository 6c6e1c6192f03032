"""The main part of a Word document as a stream of elements → its blocks. docs/formats.md states the rules."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetale.text.account import FileAccount
from finetale.text.formats.docx.styles import MAX_LEVEL, OFF, Numbering, Style, integer
from finetale.text.formats.manuscript import Block, list_item, table_row
from finetale.text.formats.symbols import symbol

_WORD = (
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    "http://purl.oclc.org/ooxml/wordprocessingml/main",
)
_MATH = (
    "http://schemas.openxmlformats.org/officeDocument/2006/math",
    "http://purl.oclc.org/ooxml/officeDocument/math",
)
_DRAWING = ("http://schemas.openxmlformats.org/drawingml/2006/main", "http://purl.oclc.org/ooxml/drawingml/main")
_CHART = ("http://schemas.openxmlformats.org/drawingml/2006/chart", "http://purl.oclc.org/ooxml/drawingml/chart")
_DIAGRAM = ("http://schemas.openxmlformats.org/drawingml/2006/diagram", "http://purl.oclc.org/ooxml/drawingml/diagram")
_VML = ("urn:schemas-microsoft-com:vml",)
_COMPATIBILITY = ("http://schemas.openxmlformats.org/markup-compatibility/2006",)
_PRESERVE = "{http://www.w3.org/XML/1998/namespace}space"
_INDEX_FIELDS = {"TOC": "table of contents", "INDEX": "index"}
_PAGE_FIELDS = ("PAGE", "NUMPAGES", "SECTIONPAGES")


@dataclass
class _Paragraph:
    """A paragraph while it is read."""

    pieces: list[str] = field(default_factory=list)
    style: str | None = None
    level: int | None = None
    number: str | None = None
    depth: int | None = None
    continues: bool = False  # its mark is deleted, so the next paragraph continues it
    boxes: list[Block] = field(default_factory=list)


@dataclass
class _Table:
    """A table while it is read. Its rows go into `target`."""

    target: list[Block]
    group: str
    cells: list[list[Block]] = field(default_factory=list)
    deleted: bool = False


@dataclass
class _Field:
    """A field whose end was not read yet."""

    instruction: str = ""
    in_result: bool = False

    @property
    def kind(self) -> str:
        words = self.instruction.split(maxsplit=1)
        return words[0].upper() if words else ""


class Body:
    """Receives the elements of the main part, and collects its blocks."""

    def __init__(
        self, account: FileAccount, styles: dict[str, Style], default_style: str | None, numbering: Numbering
    ) -> None:
        self.blocks: list[Block] = []
        self.root: str | None = None
        self._account, self._styles, self._numbering = account, styles, numbering
        self._default_style = default_style
        self._target = self.blocks
        self._paragraph = _Paragraph()
        self._outer: list[tuple[_Paragraph, list[Block]]] = []  # what a text box interrupts
        self._tables: list[_Table] = []
        self._num_tables = 0
        self._fields: list[_Field] = []
        self._simple: list[bool] = []
        self._silent = False  # the field's result is left out
        self._skipped = 0  # depth within an element that is left out
        self._counts_deletion = False
        self._choices: list[bool] = []
        self._contents: list[str] | None = None  # text of the element that is read
        self._preserves = False
        self._in_paragraph_properties = self._in_run_properties = False
        self._hidden = self._run_hidden = False
        self._in_row_properties = self._placeholder = False
        self._in_object = 0
        self._start = {tag: getattr(self, f"_start_{name}") for tag, name in _STARTS.items()}
        self._end = {tag: getattr(self, f"_end_{name}") for tag, name in _ENDS.items()}

    # -- the parser's calls

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._skipped:
            self._skipped += 1
            if self._counts_deletion and tag in _DELETED_TEXT:
                self._account.leave_out("tracked deletion")
                self._counts_deletion = False
            return
        if self.root is None:
            self.root = tag
        handler = self._start.get(tag)
        if handler is not None:
            handler(attributes, tag[: tag.index("}") + 1])

    def data(self, text: str) -> None:
        if self._contents is not None and not self._skipped:
            self._contents.append(text)

    def end(self, tag: str) -> None:
        if self._skipped:
            self._skipped -= 1
            return
        handler = self._end.get(tag)
        if handler is not None:
            handler()

    # -- paragraphs

    def _start_p(self, attributes: dict[str, str], space: str) -> None:
        before = self._paragraph
        self._paragraph = _Paragraph(style=self._default_style)
        if before.continues:
            self._paragraph.pieces, self._paragraph.boxes = before.pieces, before.boxes

    def _end_p(self) -> None:
        paragraph = self._paragraph
        self._fields = [each for each in self._fields if each.in_result]  # an instruction ends with its paragraph
        self._listen()
        if paragraph.continues:
            return
        style = self._styles.get(paragraph.style or "", _NO_STYLE)
        level = style.level if paragraph.level is None else paragraph.level
        number = style.number if paragraph.number is None else paragraph.number
        text = "".join(paragraph.pieces).strip()
        if style.is_contents_title and text:
            self._leave_out("title of a table of contents")
            text, level = "", None
        marker = None
        depth = style.depth if paragraph.depth is None else paragraph.depth
        if number not in (None, "0") and (text or level is not None):
            marker = self._numbering.marker(str(number), depth)
        if level is not None:
            text = text or ((marker or "") if marker != "-" else "")
            if text:
                self._target.append(Block(text, level))
        elif text:
            self._target.append(Block(text) if marker is None else list_item(text, marker, depth))
        self._target += paragraph.boxes
        self._paragraph = _Paragraph()

    def _start_pPr(self, attributes: dict[str, str], space: str) -> None:
        self._in_paragraph_properties = True

    def _end_pPr(self) -> None:
        self._in_paragraph_properties = False

    def _start_pStyle(self, attributes: dict[str, str], space: str) -> None:
        self._paragraph.style = attributes.get(f"{space}val")
        style = self._styles.get(self._paragraph.style or "", _NO_STYLE)
        if style.level is not None and self._silent:  # a table of contents whose field has no end
            self._fields.clear()
            self._listen()

    def _start_outlineLvl(self, attributes: dict[str, str], space: str) -> None:
        level = integer(attributes.get(f"{space}val"), 9)
        self._paragraph.level = level + 1 if 0 <= level < 9 else None

    def _start_numId(self, attributes: dict[str, str], space: str) -> None:
        if self._in_paragraph_properties:
            self._paragraph.number = attributes.get(f"{space}val", "0")

    def _start_ilvl(self, attributes: dict[str, str], space: str) -> None:
        if self._in_paragraph_properties:
            self._paragraph.depth = min(max(integer(attributes.get(f"{space}val"), 0), 0), MAX_LEVEL)

    # -- runs

    def _start_r(self, attributes: dict[str, str], space: str) -> None:
        self._run_hidden = self._styles.get(self._paragraph.style or "", _NO_STYLE).hidden

    def _start_rPr(self, attributes: dict[str, str], space: str) -> None:
        self._in_run_properties = True

    def _end_rPr(self) -> None:
        self._in_run_properties = False

    def _start_vanish(self, attributes: dict[str, str], space: str) -> None:
        if not self._in_paragraph_properties:
            self._run_hidden = attributes.get(f"{space}val", "1") not in OFF

    def _start_rStyle(self, attributes: dict[str, str], space: str) -> None:
        style = self._styles.get(attributes.get(f"{space}val", ""))
        if style is not None and style.hidden and not self._in_paragraph_properties:
            self._run_hidden = True

    def _start_t(self, attributes: dict[str, str], space: str) -> None:
        self._contents = []
        self._preserves = attributes.get(_PRESERVE) == "preserve" or space not in _TRIMMED

    def _end_t(self) -> None:
        text = "".join(self._contents or ())
        self._contents = None
        text = text.replace("\n", " ")
        self._add(text if self._preserves else text.strip(" \t\r"))

    def _add(self, text: str) -> None:
        if not text or self._silent:
            return
        if self._run_hidden:
            if not self._hidden and not text.isspace():
                self._account.leave_out("hidden passage")
                self._hidden = True
            return
        self._hidden = False
        self._paragraph.pieces.append(text)

    def _start_tab(self, attributes: dict[str, str], space: str) -> None:
        if not self._in_paragraph_properties:  # there it is a tab stop
            self._add("\t")

    def _start_br(self, attributes: dict[str, str], space: str) -> None:
        self._add("\n")

    def _start_noBreakHyphen(self, attributes: dict[str, str], space: str) -> None:
        self._add("\N{NON-BREAKING HYPHEN}")

    def _start_sym(self, attributes: dict[str, str], space: str) -> None:
        code = integer(attributes.get(f"{space}char"), -1, 16)
        character = symbol(code, attributes.get(f"{space}font", ""))
        if character is None:
            self._leave_out("symbol")
        else:
            self._add(character)

    # -- fields

    def _start_fldChar(self, attributes: dict[str, str], space: str) -> None:
        kind = attributes.get(f"{space}fldCharType")
        if kind == "begin":
            self._fields.append(_Field())
        elif self._fields and kind in ("separate", "end"):
            current = self._fields.pop()
            self._listen()
            if not current.in_result:
                self._count_field(current.kind)
            if kind == "separate":
                current.in_result = True
                self._fields.append(current)
        self._listen()

    def _start_instrText(self, attributes: dict[str, str], space: str) -> None:
        self._contents = []

    def _end_instrText(self) -> None:
        if self._fields and not self._fields[-1].in_result:
            self._fields[-1].instruction += "".join(self._contents or ())
        self._contents = None

    def _start_fldSimple(self, attributes: dict[str, str], space: str) -> None:
        kind = _Field(attributes.get(f"{space}instr", "")).kind
        self._count_field(kind)
        self._simple.append(_is_left_out(kind))
        self._listen()

    def _end_fldSimple(self) -> None:
        self._simple.pop()
        self._listen()

    def _count_field(self, kind: str) -> None:
        if kind in _PAGE_FIELDS:
            self._leave_out("page number")
        elif kind in _INDEX_FIELDS:
            self._leave_out(_INDEX_FIELDS[kind])

    def _listen(self) -> None:
        """Note whether the text that follows belongs to the result of a field that is left out, or to no result."""
        self._silent = any(self._simple) or any(not each.in_result or _is_left_out(each.kind) for each in self._fields)

    # -- what is left out

    def _leave_out(self, what: str) -> None:
        if not self._silent:
            self._account.leave_out(what)

    def _skip(self, *, counts_deletion: bool = False) -> None:
        """Leave out the element that just started."""
        self._skipped, self._counts_deletion = 1, counts_deletion

    def _start_skipped(self, attributes: dict[str, str], space: str) -> None:
        self._skip()

    def _start_del(self, attributes: dict[str, str], space: str) -> None:
        if self._in_paragraph_properties:
            self._paragraph.continues = True
        elif self._tables and self._in_row_properties:
            self._tables[-1].deleted = True
        elif not self._in_run_properties:
            self._skip(counts_deletion=True)

    def _start_moveFrom(self, attributes: dict[str, str], space: str) -> None:
        if self._in_paragraph_properties:
            self._paragraph.continues = True
        elif not self._in_run_properties:
            self._skip()

    def _start_footnote(self, attributes: dict[str, str], space: str) -> None:
        self._leave_out("footnote")

    def _start_endnote(self, attributes: dict[str, str], space: str) -> None:
        self._leave_out("endnote")

    def _start_comment(self, attributes: dict[str, str], space: str) -> None:
        self._leave_out("comment")

    def _start_pgNum(self, attributes: dict[str, str], space: str) -> None:
        self._leave_out("page number")

    def _start_picture(self, attributes: dict[str, str], space: str) -> None:
        if not self._in_object:
            self._leave_out("picture")

    def _start_chart(self, attributes: dict[str, str], space: str) -> None:
        self._leave_out("chart")

    def _start_diagram(self, attributes: dict[str, str], space: str) -> None:
        self._leave_out("diagram")

    def _start_object(self, attributes: dict[str, str], space: str) -> None:
        self._leave_out("embedded object")
        self._in_object += 1

    def _end_object(self) -> None:
        self._in_object -= 1

    def _start_rt(self, attributes: dict[str, str], space: str) -> None:
        self._leave_out("ruby annotation")
        self._skip()

    def _start_altChunk(self, attributes: dict[str, str], space: str) -> None:
        self._leave_out("embedded document")

    def _start_showingPlcHdr(self, attributes: dict[str, str], space: str) -> None:
        if attributes.get(f"{space}val", "1") not in OFF:
            self._placeholder = True

    def _start_sdt(self, attributes: dict[str, str], space: str) -> None:
        self._placeholder = False

    def _start_sdtContent(self, attributes: dict[str, str], space: str) -> None:
        if self._placeholder:
            self._placeholder = False
            self._leave_out("placeholder")
            self._skip()

    # -- alternatives and text boxes

    def _start_AlternateContent(self, attributes: dict[str, str], space: str) -> None:
        self._choices.append(False)

    def _end_AlternateContent(self) -> None:
        self._choices.pop()

    def _start_choice(self, attributes: dict[str, str], space: str) -> None:
        if self._choices:
            if self._choices[-1]:
                self._skip()
            self._choices[-1] = True

    def _start_txbxContent(self, attributes: dict[str, str], space: str) -> None:
        self._outer.append((self._paragraph, self._target))
        self._paragraph = _Paragraph()
        self._target = []

    def _end_txbxContent(self) -> None:
        blocks = self._target
        self._paragraph, self._target = self._outer.pop()
        self._paragraph.boxes += blocks

    # -- tables

    def _start_tbl(self, attributes: dict[str, str], space: str) -> None:
        self._num_tables += 1
        self._tables.append(_Table(self._target, f"table {self._num_tables}"))

    def _end_tbl(self) -> None:
        self._target = self._tables.pop().target

    def _start_tr(self, attributes: dict[str, str], space: str) -> None:
        if self._tables:
            self._tables[-1].cells, self._tables[-1].deleted = [], False

    def _start_trPr(self, attributes: dict[str, str], space: str) -> None:
        self._in_row_properties = True

    def _end_trPr(self) -> None:
        self._in_row_properties = False

    def _end_tr(self) -> None:
        if self._tables:
            table = self._tables[-1]
            if table.deleted:
                self._account.leave_out("tracked deletion")
            else:
                table.target += table_row(table.cells, table.group)

    def _start_tc(self, attributes: dict[str, str], space: str) -> None:
        if self._tables:
            self._target = []
            self._tables[-1].cells.append(self._target)


_NO_STYLE = Style()


def _tags(spaces: tuple[str, ...], names: dict[str, str]) -> dict[str, str]:
    return {f"{{{space}}}{tag}": name for space in spaces for tag, name in names.items()}


_SAME = (
    "p pPr pStyle outlineLvl numId ilvl r rPr vanish rStyle t tab br noBreakHyphen sym fldChar instrText fldSimple del "
    "moveFrom pgNum object rt altChunk showingPlcHdr sdt sdtContent txbxContent tbl tr trPr tc"
)
_SAME_END = "p pPr rPr t instrText fldSimple object txbxContent tbl tr trPr"
_STARTS = {
    **_tags(_WORD, {name: name for name in _SAME.split()}),
    **_tags(_WORD, {"specVanish": "vanish", "cr": "br", "ptab": "tab", "subDoc": "altChunk"}),
    **_tags(_WORD, {"footnoteReference": "footnote", "endnoteReference": "endnote", "commentReference": "comment"}),
    **_tags(
        _WORD,
        dict.fromkeys(
            ("pPrChange", "rPrChange", "sectPr", "sectPrChange", "tblPr", "tblGrid", "tcPr", "trPrChange", "tabs"),
            "skipped",
        ),
    ),
    **_tags(_MATH, {"t": "t"}),
    **_tags(_DRAWING, {"blip": "picture"}),
    **_tags(_VML, {"imagedata": "picture"}),
    **_tags(_CHART, {"chart": "chart"}),
    **_tags(_DIAGRAM, {"relIds": "diagram"}),
    **_tags(_COMPATIBILITY, {"AlternateContent": "AlternateContent", "Choice": "choice", "Fallback": "choice"}),
}
_ENDS = {
    **_tags(_WORD, {name: name for name in _SAME_END.split()}),
    **_tags(_MATH, {"t": "t"}),
    **_tags(_COMPATIBILITY, {"AlternateContent": "AlternateContent"}),
}
_DELETED_TEXT = frozenset(_tags(_WORD, {"delText": "", "t": ""}))
ROOTS = frozenset(_tags(_WORD, {"document": ""}))
_TRIMMED = frozenset(f"{{{space}}}" for space in _WORD)


def _is_left_out(kind: str) -> bool:
    return kind in _INDEX_FIELDS or kind in _PAGE_FIELDS
