"""Test workbooks: values of cells as text, headers, hidden sheets, hostile files. openpyxl writes the files."""

from __future__ import annotations

import datetime
import io
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from openpyxl.chart import BarChart
from openpyxl.comments import Comment
from openpyxl.worksheet.worksheet import Worksheet
from story import STORY, Table

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.formats import ods
from finetale.text.formats.sheets import column_letters, number_text
from finetale.text.reading import read_parts

FILES = Path(__file__).parent / "files"
OFFICE = "urn:oasis:names:tc:opendocument:xmlns"
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def read(path: Path, **settings: Any) -> tuple[list[tuple[int, str]], dict[str, Any]]:
    """Return (row, text) of each document, and the report."""
    fractions = {"validation_fraction": 0, "test_fraction": 0, "deduplicate": "off"}
    parts, report = read_parts([str(path)], TextSettings(**fractions | settings))
    return [(part.line, part.text) for part in parts], report.to_dict()


def refusal(path: Path, **settings: Any) -> str:
    """Read a file that is refused; return the error message."""
    with pytest.raises(SourceError) as error:
        read(path, **settings)
    return error.value.message.replace(str(path), path.name)


def save(path: Path, *sheets: tuple[str, list[list[Any]]]) -> openpyxl.Workbook:
    """Write a workbook and return it."""
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for name, rows in sheets:
        sheet: Worksheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return book


def as_fods(*tables: str, styles: str = "") -> bytes:
    """Return a flat OpenDocument spreadsheet."""
    names = " ".join(f'xmlns:{name}="{OFFICE}:{name}:1.0"' for name in ("office", "table", "text", "style"))
    drawing = f'xmlns:draw="{OFFICE}:drawing:1.0" xmlns:calcext="urn:org:documentfoundation:names:experimental:calc"'
    body = f"<office:body><office:spreadsheet>{''.join(tables)}</office:spreadsheet></office:body>"
    styles = f"<office:automatic-styles>{styles}</office:automatic-styles>"
    return f"<office:document {names} {drawing}>{styles}{body}</office:document>".encode()


def ods_row(*cells: str, attributes: str = "") -> str:
    """Return a row of cells, each text or a whole element."""
    made = (
        cell
        if cell.startswith("<")
        else f'<table:table-cell office:value-type="string"><text:p>{cell}</text:p></table:table-cell>'
        for cell in cells
    )
    return f"<table:table-row {attributes}>{''.join(made)}</table:table-row>"


@pytest.mark.parametrize("suffix", ["xlsx", "ods"])
def test_the_table_of_the_story(suffix: str) -> None:
    table = next(block for block in STORY if isinstance(block, Table))
    for column, name in enumerate(table.rows[0]):
        found, report = read(FILES / f"soffice.{suffix}", text_column=name)
        assert found == [(number, row[column]) for number, row in enumerate(table.rows[1:], 2)]
        assert report["files"][0]["kind"] == suffix
    found, report = read(FILES / f"soffice.{suffix}")
    assert [text for _, text in found] == ["content", "hums at night", "asks for names"]
    assert report["columns"][0]["taken"] == "Remark"


def test_values_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "values.xlsx"
    day = datetime.datetime(2020, 2, 29)
    values: list[tuple[Any, str]] = [
        ("two words", "two words"),
        ("line\nbreak", "line\nbreak"),
        ("naïve — “quoted” 潮水", "naïve — “quoted” 潮水"),
        (7, "7"),
        (0.1 + 0.2, "0.3"),
        (1234567890123, "1234567890123"),
        (-2.5, "-2.5"),
        (True, "TRUE"),
        (day, "2020-02-29"),
        (day.replace(hour=14, minute=30), "2020-02-29 14:30:00"),
        (datetime.time(6, 5, 4), "06:05:04"),
        (datetime.timedelta(hours=26, minutes=30), "26:30:00"),
        ("=1+1", ""),
        ("#N/A", ""),
        ("", ""),
    ]
    save(path, ("Values", [["name", "value"], *([f"row {n}", value] for n, (value, _) in enumerate(values))]))
    found, report = read(path, text_column="value")
    texts = dict(found)
    assert [texts.get(number, "") for number in range(2, len(values) + 2)] == [text for _, text in values]
    assert report["content_left_out"] == {"formula without a value": 1, "formula error": 1}


def test_numbers_and_letters() -> None:
    assert [column_letters(column) for column in (0, 25, 26, 701, 702, 16383)] == ["A", "Z", "AA", "ZZ", "AAA", "XFD"]
    assert [number_text(value) for value in ("1861", "1861.0", "0.30000000000000004", "1E3", "nan?", "1e300")] == [
        "1861", "1861", "0.3", "1000", "nan?", "1e+300",
    ]  # fmt: skip


def test_rows_columns_and_header_follow_the_rules_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    rows = [[], ["id", "text", None], [1, "first tale here", None], [], [2, "second tale here", "a remark here"], [3]]
    save(path, ("Rows", rows))
    found, report = read(path)
    assert [(line, text) for line, text in found if text] == [(3, "first tale here"), (5, "second tale here")]
    assert [each["name"] for each in report["columns"][0]["left_out"]] == ["C"]
    save(path, ("Data", [["Once there was a clock.", 1], ["It ate salt.", 2]]))
    found, report = read(path)
    assert [text for _, text in found] == ["Once there was a clock.", "It ate salt."]
    assert report["files"][0]["problems"] == {"no_header": 1}
    save(path, ("Twice", [["text", "text"], ["a", "b"]]))
    assert refusal(path) == "rows.xlsx:1: the first line names the column 'text' twice."
    save(path, ("Column", [["a", "b"], ["one tale", "two tales"]]))
    assert refusal(path, text_column="c") == "rows.xlsx:2: has no column 'c'; its columns are 'a', 'b'."


def test_sheets_are_separate_tables(tmp_path: Path) -> None:
    path = tmp_path / "sheets.xlsx"
    tales = ("Tales", [["id", "text"], [1, "first tale here"]])
    book = save(
        path,
        tales,
        ("More", [["text", "id"], ["second tale here", 1]]),
        ("Numbers", [["a", "b"], [1, 2]]),
        ("Empty", []),
        ("Secret", [["text"], ["hidden tale here"]]),
        ("Very", [["text"], ["hidden tale here"]]),
    )
    book["Secret"].sheet_state, book["Very"].sheet_state = "hidden", "veryHidden"
    book["Tales"]["A1"].comment = Comment("a comment", "somebody")
    book["Tales"].add_chart(BarChart(), "D4")
    book.create_chartsheet("Chart").add_chart(BarChart())
    book.save(path)
    found, report = read(path)
    assert found == [(2, "first tale here"), (2, "second tale here")]
    left_out = {"hidden sheet": 2, "sheet without text": 1, "chart sheet": 1, "comment": 1, "chart": 1}
    assert report["content_left_out"] == left_out
    save(path, tales, ("Twice", [["text", "text"], ["a tale", "b tale"]]))
    assert refusal(path) == "sheets.xlsx[Twice]:1: the first line names the column 'text' twice."


def test_values_and_sheets_of_opendocument(tmp_path: Path) -> None:
    def cell(kind: str, value: str, shown: str = "?") -> str:
        return f'<table:table-cell office:value-type="{kind}" {value}><text:p>{shown}</text:p></table:table-cell>'

    values = [
        cell("float", 'office:value="0.30000000000000004"'),
        cell("percentage", 'office:value="0.5"'),
        cell("date", 'office:date-value="2020-02-29T14:30:00"'),
        cell("time", 'office:time-value="PT26H30M00S"'),
        cell("boolean", 'office:boolean-value="true"'),
        cell("string", 'calcext:value-type="error"', "#N/A"),
        '<table:table-cell><text:p>two<text:s text:c="2"/>spaces</text:p><text:p>second<text:tab/>line</text:p>'
        "<office:annotation><text:p>a comment</text:p></office:annotation></table:table-cell>",
        "<table:table-cell/>",
    ]
    gap = '<table:table-cell table:number-columns-repeated="16000"/>'
    empty = ods_row(gap, attributes='table:number-rows-repeated="1000000"')
    rows = [ods_row("name", "value"), *(ods_row(f"row {n}", value) for n, value in enumerate(values))]
    rows += [ods_row("repeated", "same tale", attributes='table:number-rows-repeated="2"'), empty]
    style = '<style:style style:name="off" style:family="table"><style:table-properties table:display="false"/>'
    hidden = f'<table:table table:style-name="off">{ods_row("value")}{ods_row("a hidden tale")}</table:table>'
    data = as_fods(
        f'<table:table table:name="T">{"".join(rows)}</table:table>', hidden, styles=f"{style}</style:style>"
    )
    path = tmp_path / "values.fods"
    path.write_bytes(data)
    zipped = tmp_path / "values.ods"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("content.xml", data)
    for each in (path, zipped):
        found, report = read(each, text_column="value")
        assert [text for _, text in found if text] == [
            "0.3", "0.5", "2020-02-29 14:30:00", "26:30:00", "TRUE", "two  spaces\nsecond\tline", "same tale",
            "same tale",
        ]  # fmt: skip
        assert [line for line, text in found if text][-2:] == [10, 11]
        assert report["content_left_out"] == {"hidden sheet": 1, "formula error": 1, "comment": 1}


def hostile_xlsx(path: Path, sheet: bytes, strings: bytes = b"") -> Path:
    """Write a workbook with one sheet of this XML."""
    save(path, ("Sheet", [["text"]]))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["xl/worksheets/sheet1.xml"] = sheet
    if strings:
        parts["xl/sharedStrings.xml"] = strings
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def sheet_xml(*rows: str, start: str = "") -> bytes:
    """Return the XML of a sheet."""
    return f'{start}<worksheet xmlns="{MAIN}"><sheetData>{"".join(rows)}</sheetData></worksheet>'.encode()


def inline(reference: str, text: str) -> str:
    """Return a cell with its own text."""
    return f'<c r="{reference}" t="inlineStr"><is><t>{text}</t></is></c>'


def test_declared_sizes_take_no_memory(tmp_path: Path) -> None:
    rows = (
        f'<row r="1">{inline("A1", "text")}{inline("XFD1", "far")}</row>',
        f'<row r="1048576">{inline("A1048576", "a tale at the end")}</row>',
    )
    data = sheet_xml(*rows).replace(b"<sheetData>", b'<dimension ref="A1:XFD1048576"/><sheetData>')
    path = hostile_xlsx(tmp_path / "large.xlsx", data)
    found, report = read(path)
    assert found == [(1048576, "a tale at the end")]
    assert report["columns"][0]["taken"] == "text"


def test_hostile_workbooks_give_one_error_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hostile.xlsx"
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
    hostile_xlsx(path, sheet_xml(f'<row r="1">{inline("A1", "&b;")}</row>', start=laughs))
    assert "declarations in its DOCTYPE" in refusal(path)
    hostile_xlsx(path, sheet_xml(f'<row r="3">{inline("XFE3", "too far")}</row>'))
    assert refusal(path) == "hostile.xlsx:3: has a cell beyond the last column (XFE3)."
    hostile_xlsx(path, sheet_xml('<row r="2"><c r="A2" t="s"><v>7</v></c></row>'))
    assert refusal(path) == "hostile.xlsx:2: has a cell with the string number 7, which does not exist."
    hostile_xlsx(path, sheet_xml(f'<row r="1">{inline("A1", "a" * (32 << 20))}</row>'))
    assert "grows to more than 200 times its compressed size" in refusal(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert "hostile.xlsx: its zip data is cut off or damaged" in refusal(path)
    monkeypatch.setattr(ods, "MAX_REPEATED_CELLS", 1000)
    flat = tmp_path / "hostile.fods"
    wide = '<table:table-cell table:number-columns-repeated="600"><text:p>x</text:p></table:table-cell>'
    for row in (ods_row(wide, wide), ods_row("x", attributes='table:number-rows-repeated="1048576"')):
        flat.write_bytes(as_fods(f"<table:table>{row}</table:table>"))
        assert refusal(flat).endswith("repeats over 1,000 cells with text, more than are read.")


def test_workbooks_in_archives_and_with_other_suffixes(tmp_path: Path) -> None:
    data = io.BytesIO((FILES / "soffice.xlsx").read_bytes())
    archive = tmp_path / "book.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("table.xlsx", data.getvalue())
    renamed = tmp_path / "renamed.zip"
    renamed.write_bytes(data.getvalue())
    bare = tmp_path / "bare"
    bare.write_bytes(data.getvalue())
    for path in (archive, renamed, bare):
        assert [text for _, text in read(path)[0]] == ["content", "hums at night", "asks for names"]
