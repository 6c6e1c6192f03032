"""OpenDocument spreadsheets (.ods, .fods): the sheets, and the values of their cells as text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby

from finetale.text.columns import Raw
from finetale.text.documents import FileError
from finetale.text.formats.base import Format, SourceFile
from finetale.text.formats.sheets import MAX_COLUMNS, Row, Sheet, number_text, sheet_documents
from finetale.text.formats.xml_safe import xml_steps
from finetale.text.formats.zipped import open_container

MAX_REPEATED_CELLS = 10_000_000
"""Maximum number of cells that stand in the file once and are repeated by a number."""

_OFFICE = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}"
_TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
_STYLE = "{urn:oasis:names:tc:opendocument:xmlns:style:1.0}"
_DRAW = "{urn:oasis:names:tc:opendocument:xmlns:drawing:1.0}"
_NO_TABLES = {_TABLE + "shapes", _TABLE + "tracked-changes", _OFFICE + "forms", _TABLE + "dde-links"}
"""Elements that hold cells or text that belong to no sheet."""
_MAX_SPACES = 1000
_HINT = "Open it in a spreadsheet program and save it again."
_TIME = re.compile(r"PT(\d+)H(\d+)M(\d+)(?:[.,]\d+)?S")
_PASSWORD_HINT = "Save it without a password."


def _read(file: SourceFile) -> Iterator[tuple[int, Raw]]:
    container = open_container(file)
    if container is None:
        return
    with container:
        manifest = "META-INF/manifest.xml"
        if container.find(manifest) and b"encryption-data" in container.read(manifest):
            raise FileError(file.name, None, "encrypted", "it is encrypted with a password", _PASSWORD_HINT)
        yield from _documents(file, lambda: container.blocks("content.xml"))


def _read_flat(file: SourceFile) -> Iterator[tuple[int, Raw]]:
    yield from _documents(file, file.blocks)


def _documents(file: SourceFile, blocks: Callable[[], Iterator[bytes]]) -> Iterator[tuple[int, Raw]]:
    target = _Cells(file)
    events = (event for _ in xml_steps(file.name, blocks(), target) for event in target.taken())
    sheets = (Sheet(name, (row for _, row in rows)) for (_, name), rows in groupby(events, key=lambda event: event[0]))
    yield from sheet_documents(file, sheets, several=_number_of_tables(blocks()) != 1)
    for what, number in target.left_out.items():
        file.account.leave_out(what, number)


def _number_of_tables(blocks: Iterator[bytes]) -> int:
    """Return about how many tables the XML holds, hidden ones included. It is not parsed for that."""
    mark, tail, number = b"<table:table ", b"", 0
    for block in blocks:
        number += (tail + block).count(mark)
        tail = block[-len(mark) + 1 :]
    return number


class _Cells:
    """The rows of all sheets, as far as they were parsed. Hidden sheets are left out."""

    def __init__(self, file: SourceFile) -> None:
        self.left_out: Counter[str] = Counter()
        self._file = file
        self._events: list[tuple[tuple[int, str], Row]] = []
        self._hidden_styles: set[str] = set()
        self._style = ""
        self._sheet = (0, "")
        self._is_hidden = False
        self._skipped = 0  # depth within an element that is left out
        self._row = self._column = 0
        self._row_repeats = self._repeats = 1
        self._cells: dict[int, str] = {}
        self._attributes: dict[str, str] | None = None  # of the current cell
        self._paragraphs: list[str] = []
        self._in_paragraph = 0
        self._num_repeated = 0

    def taken(self) -> list[tuple[tuple[int, str], Row]]:
        """Return the rows that were parsed since the last call: ((number and name of the sheet), row)."""
        events, self._events = self._events, []
        return events

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._skipped:
            self._skipped += 1
        elif self._attributes is not None:
            self._start_in_cell(tag, attributes)
        elif tag == _TABLE + "table-row":
            self._row += 1
            self._row_repeats = self._repeated(attributes, "rows")
            self._cells, self._column = {}, 0
        elif tag in (_TABLE + "table-cell", _TABLE + "covered-table-cell"):
            self._attributes, self._paragraphs = dict(attributes), []
            self._repeats = self._repeated(attributes, "columns")
        elif tag == _TABLE + "table":
            self._sheet = (self._sheet[0] + 1, attributes.get(_TABLE + "name", ""))
            self._row = 0
            self._is_hidden = attributes.get(_TABLE + "style-name", "") in self._hidden_styles
            self.left_out["hidden sheet"] += self._is_hidden
        elif tag == _STYLE + "style":
            self._style = attributes.get(_STYLE + "name", "")
        elif tag == _STYLE + "table-properties" and attributes.get(_TABLE + "display") == "false":
            self._hidden_styles.add(self._style)
        elif tag in _NO_TABLES:
            self._skipped = 1

    def _start_in_cell(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == _TEXT + "p":
            self._in_paragraph += 1
            self._paragraphs.append("")
        elif tag == _OFFICE + "annotation":
            self._leave_out("comment")
        elif tag.startswith(_DRAW):
            self._leave_out("drawing")
        elif self._in_paragraph and tag == _TEXT + "s":
            number = attributes.get(_TEXT + "c", "1")
            self._paragraphs[-1] += " " * min(int(number) if number.isdecimal() else 1, _MAX_SPACES)
        elif self._in_paragraph and tag == _TEXT + "tab":
            self._paragraphs[-1] += "\t"
        elif self._in_paragraph and tag == _TEXT + "line-break":
            self._paragraphs[-1] += "\n"

    def _leave_out(self, what: str) -> None:
        self._skipped = 1
        self.left_out[what] += not self._is_hidden

    def data(self, text: str) -> None:
        if self._in_paragraph and not self._skipped:
            self._paragraphs[-1] += text

    def end(self, tag: str) -> None:
        if self._skipped:
            self._skipped -= 1
        elif tag == _TEXT + "p":
            self._in_paragraph = max(0, self._in_paragraph - 1)
        elif self._attributes is not None and tag in (_TABLE + "table-cell", _TABLE + "covered-table-cell"):
            self._end_cell(tag)
        elif tag == _TABLE + "table-row":
            self._end_row()

    def _end_cell(self, tag: str) -> None:
        text = self._text()
        self._attributes = None
        if text and tag == _TABLE + "covered-table-cell":
            self.left_out["cell under another one"] += not self._is_hidden
        elif text:
            last = self._column + self._repeats
            if last > MAX_COLUMNS:
                detail = "has a cell beyond the last column"
                raise FileError(self._file.name, self._row, "bad_table", detail, _HINT)
            self._count(self._repeats)
            self._cells |= dict.fromkeys(range(self._column, last), text)
        self._column += self._repeats

    def _end_row(self) -> None:
        if self._cells and not self._is_hidden:
            self._count((self._row_repeats - 1) * len(self._cells))
            self._events += [(self._sheet, (self._row + more, self._cells)) for more in range(self._row_repeats)]
        self._row += self._row_repeats - 1

    def _repeated(self, attributes: dict[str, str], what: str) -> int:
        number = attributes.get(f"{_TABLE}number-{what}-repeated", "1")
        return max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1

    def _count(self, number: int) -> None:
        self._num_repeated += number - 1 if number else 0
        if self._num_repeated > MAX_REPEATED_CELLS:
            detail = f"repeats over {MAX_REPEATED_CELLS:,} cells with text, more than are read"
            raise FileError(self._file.name, self._row, "bad_table", detail, _HINT)

    def _text(self) -> str:
        """Return the value of the current cell."""
        attributes = self._attributes or {}
        kind = attributes.get(_OFFICE + "value-type", "")
        shown = "\n".join(self._paragraphs)
        if any(key.endswith("}value-type") and value == "error" for key, value in attributes.items()):
            self.left_out["formula error"] += not self._is_hidden
            return ""
        if kind in ("float", "percentage", "currency"):
            return number_text(attributes.get(_OFFICE + "value", shown))
        if kind == "date":
            return attributes.get(_OFFICE + "date-value", shown).replace("T", " ")
        if kind == "time":
            match = _TIME.fullmatch(attributes.get(_OFFICE + "time-value", ""))
            return shown if match is None else ":".join(match.groups())
        if kind == "boolean":
            return attributes.get(_OFFICE + "boolean-value", shown).upper()
        return shown or attributes.get(_OFFICE + "string-value", "")


FORMATS = (
    Format("ods", "table", (".ods", ".ots"), "documents", _read, needs=("lxml",)),
    Format("fods", "table", (".fods",), "documents", _read_flat, needs=("lxml",)),
)
