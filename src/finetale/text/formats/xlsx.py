"""Excel workbooks (.xlsx): the sheets, and the values of their cells as text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from posixpath import join, normpath

from finetale.text.columns import Raw
from finetale.text.documents import FileError
from finetale.text.formats.base import Format, SourceFile
from finetale.text.formats.sheets import MAX_COLUMNS, Row, Sheet, number_text, sheet_documents
from finetale.text.formats.xml_safe import read_xml, xml_steps
from finetale.text.formats.zipped import Container, open_container

_RELATIONSHIP_ID = "}id"
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
"""A character that XML can't hold, as Excel writes it."""
_REFERENCE = re.compile(r"([A-Z]{1,3})(\d{1,7})")
_DATE_FORMATS = frozenset({*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)})
"""Numbers of the built-in formats of dates and times."""
_NO_DATE = re.compile(r'"[^"]*"|\\.|_.|\*.|\[(?!h+\]|m+\]|s+\])[^\]]*\]', re.IGNORECASE)
"""Parts of a number format that are not part of a date: literal text, colours, conditions, currencies."""
_DATE_LETTERS = re.compile(r"[dmyhs]", re.IGNORECASE)
_EPOCH, _EPOCH_1904 = datetime(1899, 12, 30), datetime(1904, 1, 1)
_DURATION = re.compile(r"\[(?:h+|m+|s+)\]", re.IGNORECASE)
_BUILT_IN_DURATION = 46
_LAST_DAY = 2_958_466  # 10000-01-01
_HINT = "Open it in a spreadsheet program and save it again."


def _read(file: SourceFile) -> Iterator[tuple[int, Raw]]:
    container = open_container(file)
    if container is None:
        return
    with container:
        workbook = _Workbook()
        base = _main_part(container)
        read_xml(file.name, container.blocks(base), workbook, base)
        targets = _relationships(container, base)
        styles = _Styles()
        strings = _Strings()
        for kind, target in targets.values():
            if kind == "styles" and container.find(target):
                read_xml(file.name, container.blocks(target), styles, target)
            elif kind == "sharedStrings" and container.find(target):
                read_xml(file.name, container.blocks(target), strings, target)
        shown = []
        for name, identifier, state in workbook.sheets:
            kind, target = targets.get(identifier, ("", ""))
            if kind == "chartsheet":
                file.account.leave_out("chart sheet")
            elif kind != "worksheet":
                file.account.leave_out("macro sheet")
            elif state != "visible":
                file.account.leave_out("hidden sheet")
            else:
                shown.append((name, target))
        for _, part in shown:
            _count_left_out(file, container, part)
        sheets = (
            Sheet(name, _rows(file, container, part, strings.texts, styles.kinds, workbook.epoch))
            for name, part in shown
        )
        yield from sheet_documents(file, sheets, several=len(shown) > 1)


def _rows(
    file: SourceFile, container: Container, part: str, strings: list[str], kinds: list[str], epoch: datetime
) -> Iterator[Row]:
    target = _Cells(file, strings, kinds, epoch)
    for _ in xml_steps(file.name, container.blocks(part), target, part):
        yield from target.rows
        target.rows.clear()
    file.account.leave_out("formula without a value", target.num_without_value)
    file.account.leave_out("formula error", target.num_errors)


def _count_left_out(file: SourceFile, container: Container, part: str) -> None:
    """Count the comments, pictures and charts of a sheet."""
    for kind, target in _relationships(container, part).values():
        if kind in ("comments", "drawing") and container.find(target):
            tags = _Tags()
            read_xml(file.name, container.blocks(target), tags, target)
            for tag, what in (("comment", "comment"), ("pic", "picture"), ("graphicFrame", "chart")):
                file.account.leave_out(what, tags.counts[tag])


class _Tags:
    """Counts elements by their name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.counts[tag.rpartition("}")[2]] += 1

    def data(self, text: str) -> None:
        pass

    def end(self, tag: str) -> None:
        pass


def _main_part(container: Container) -> str:
    found = _relationships(container, "")
    return next((target for kind, target in found.values() if kind == "officeDocument"), "xl/workbook.xml")


def _relationships(container: Container, part: str) -> dict[str, tuple[str, str]]:
    """Return id → (last part of the kind, name of the part) of the relationships of a part."""
    folder, _, name = part.rpartition("/")
    where = join(folder, "_rels", f"{name}.rels")
    if container.find(where) is None:
        return {}
    target = _Relationships()
    read_xml(container.name, container.blocks(where), target, where)
    return {
        identifier: (kind.rpartition("/")[2], normpath(join("/", folder, path)).lstrip("/"))
        for identifier, kind, path in target.found
    }


class _Relationships:
    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag.endswith("}Relationship") and attributes.get("TargetMode") != "External":
            self.found.append((attributes.get("Id", ""), attributes.get("Type", ""), attributes.get("Target", "")))

    def data(self, text: str) -> None:
        pass

    def end(self, tag: str) -> None:
        pass


class _Workbook:
    """The list of sheets: (name, relationship, state)."""

    def __init__(self) -> None:
        self.sheets: list[tuple[str, str, str]] = []
        self.epoch = _EPOCH

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag.endswith("}sheet"):
            identifier = next((value for key, value in attributes.items() if key.endswith(_RELATIONSHIP_ID)), "")
            self.sheets.append((attributes.get("name", ""), identifier, attributes.get("state", "visible")))
        elif tag.endswith("}workbookPr") and attributes.get("date1904") in ("1", "true"):
            self.epoch = _EPOCH_1904

    def data(self, text: str) -> None:
        pass

    def end(self, tag: str) -> None:
        pass


class _Styles:
    """What each cell style shows: "date", which includes times, "duration", or "" for others."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self._formats: dict[str, str] = {}
        self._in_cells = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition("}")[2]
        if name == "numFmt":
            code = attributes.get("formatCode", "")
            is_date = _DATE_LETTERS.search(_NO_DATE.sub("", code))
            kind = "duration" if _DURATION.search(code) else "date" if is_date else ""
            self._formats[attributes.get("numFmtId", "")] = kind
        elif name == "cellXfs":
            self._in_cells = True
        elif name == "xf" and self._in_cells:
            number = attributes.get("numFmtId", "0")
            built_in = int(number) if number.isdecimal() and len(number) < 9 else 0
            kind = "duration" if built_in == _BUILT_IN_DURATION else "date" if built_in in _DATE_FORMATS else ""
            self.kinds.append(self._formats.get(number, kind))

    def data(self, text: str) -> None:
        pass

    def end(self, tag: str) -> None:
        if tag.endswith("}cellXfs"):
            self._in_cells = False


class _Text:
    """Collects the text of <t>, without the reading aids of Japanese text in <rPh>."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._takes = False
        self._is_phonetic = False

    def start_text(self, name: str) -> None:
        if name == "rPh":
            self._is_phonetic = True
        elif name == "t":
            self._takes = not self._is_phonetic

    def data(self, text: str) -> None:
        if self._takes:
            self._pieces.append(text)

    def end_text(self, name: str) -> None:
        if name == "t":
            self._takes = False
        elif name == "rPh":
            self._is_phonetic = False

    def take(self) -> str:
        text = "".join(self._pieces)
        self._pieces.clear()
        return _unescaped(text)


class _Strings(_Text):
    """The strings that cells name by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.start_text(tag.rpartition("}")[2])

    def end(self, tag: str) -> None:
        name = tag.rpartition("}")[2]
        self.end_text(name)
        if name == "si":
            self.texts.append(self.take())


class _Cells(_Text):
    """The rows of a sheet, as far as they were parsed."""

    def __init__(self, file: SourceFile, strings: list[str], kinds: list[str], epoch: datetime) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.num_without_value = self.num_errors = 0
        self._file, self._strings, self._kinds, self._epoch = file, strings, kinds, epoch
        self._number = 0
        self._column = -1
        self._cells: dict[int, str] = {}
        self._kind = self._style = ""
        self._has_formula = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition("}")[2]
        if name == "c":
            self._kind, self._style = attributes.get("t", "n"), attributes.get("s", "")
            self._column = self._column_of(attributes.get("r", ""))
            self._has_formula = False
        elif name == "v":
            self._takes = True
        elif name == "row":
            number = attributes.get("r", "")
            self._number = int(number) if number.isdecimal() else self._number + 1
            self._cells, self._column = {}, -1
        elif name == "f":
            self._has_formula = True
        else:
            self.start_text(name)

    def end(self, tag: str) -> None:
        name = tag.rpartition("}")[2]
        if name == "v":
            self._takes = False
        elif name == "c":
            value = self.take()
            if self._has_formula and not value and self._kind != "str":
                self.num_without_value += 1
            if text := self._text_of(value):
                self._cells[self._column] = text
        elif name == "row":
            if self._cells:
                self.rows.append((self._number, self._cells))
        else:
            self.end_text(name)

    def _column_of(self, reference: str) -> int:
        match = _REFERENCE.fullmatch(reference)
        column = self._column + 1
        if match is not None:
            column = 0
            for letter in match.group(1):
                column = column * 26 + ord(letter) - ord("A") + 1
            column -= 1
        if column >= MAX_COLUMNS:
            detail = f"has a cell beyond the last column ({reference or column})"
            raise FileError(self._file.name, self._number, "bad_table", detail, _HINT)
        return column

    def _text_of(self, value: str) -> str:
        if self._kind == "s":
            if not value.strip():
                return ""
            number = int(value) if value.strip().isdecimal() else len(self._strings)
            if number >= len(self._strings):
                detail = f"has a cell with the string number {value.strip()[:20]}, which does not exist"
                raise FileError(self._file.name, self._number, "damaged", detail, _HINT)
            return self._strings[number]
        if self._kind == "e":
            self.num_errors += 1
            return ""
        if self._kind == "b":
            return {"1": "TRUE", "0": "FALSE"}.get(value.strip(), value)
        if self._kind == "d":
            return value.replace("T", " ")
        if self._kind in ("str", "inlineStr"):
            return value
        value = value.strip()
        style = int(self._style) if self._style.isdecimal() and len(self._style) < 9 else -1
        shows = self._kinds[style] if 0 <= style < len(self._kinds) else ""
        if shows == "date" and value:
            return _date_text(value, self._epoch)
        return _duration_text(value) if shows == "duration" and value else number_text(value)


def _date_text(value: str, epoch: datetime) -> str:
    """Return a date and time in ISO 8601, without the half that is zero. Dates are numbers of days."""
    try:
        days = float(value)
    except ValueError:
        return value
    if not 0 <= days < _LAST_DAY - (epoch - _EPOCH).days:
        return number_text(value)
    if epoch == _EPOCH and 1 <= days < 60:
        days += 1  # Excel counts a 29 February 1900
    moment = epoch + timedelta(seconds=round(days * 86_400))
    time = f"{moment:%H:%M:%S}"
    if days < 1:
        return time
    return f"{moment:%Y-%m-%d}" if time == "00:00:00" else f"{moment:%Y-%m-%d} {time}"


def _duration_text(value: str) -> str:
    """Return a number of days as hours, minutes and seconds."""
    try:
        seconds = round(float(value) * 86_400)
    except (ValueError, OverflowError):
        return value
    minutes, seconds = divmod(abs(seconds), 60)
    return f"{'-' * value.startswith('-')}{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def _unescaped(text: str) -> str:
    if "_x" not in text:
        return text
    return _ESCAPED.sub(lambda match: chr(int(match.group(1), 16)), text)


FORMATS = (Format("xlsx", "table", (".xlsx", ".xlsm", ".xltx", ".xltm"), "documents", _read, needs=("lxml",)),)
