"""The sheets of a workbook → the documents of a table each. The readers of spreadsheets share these rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from finetale.text.account import FileAccount
from finetale.text.columns import LOOK_AHEAD, Raw, reads_like_text, record_documents
from finetale.text.documents import FileError
from finetale.text.formats.base import SourceFile
from finetale.text.formats.header import header_names

MAX_COLUMNS = 16_384
"""Number of columns of a sheet in current programs."""

Row = tuple[int, dict[int, str]]
"""Number of a row from 1, and its cells that are not empty by column from 0."""


@dataclass(frozen=True)
class Sheet:
    """A sheet of a workbook.

    Attributes:
        name: as its tab shows it.
        rows: its rows in their order. Rows without cells may be left out.
    """

    name: str
    rows: Iterator[Row]


def sheet_documents(file: SourceFile, sheets: Iterator[Sheet], *, several: bool) -> Iterator[tuple[int, Raw]]:
    """Yield (number of the row, raw text) of each row of each sheet.

    Args:
        file: the workbook.
        sheets: its sheets. The rows of one are read before the next one is requested.
        several: whether there is more than one. Then messages name the sheet, and a sheet without a cell that reads
            like text is left out.
    """
    for sheet in sheets:
        try:
            rows = _records(sheet.rows, file.account, file.wanted_column)
            if several:
                ahead = list(islice(rows, LOOK_AHEAD))
                rows = chain(ahead, rows)
                if ahead and not any(reads_like_text(cell) for _, record in ahead for cell in record.values()):
                    file.account.leave_out("sheet without text")
                    continue
            yield from record_documents(rows, file.columns, file.account)
        except FileError as error:
            if not several:
                raise
            raise FileError(f"{error.file}[{sheet.name}]", error.line, error.kind, error.detail, error.hint) from None


def _records(rows: Iterator[Row], account: FileAccount, wanted: str | None) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (number of the row, record). Columns without a name are named by their letters."""
    header: list[str] | None = None
    for number, cells in rows:
        cells = {column: text for column, text in cells.items() if text and not text.isspace()}
        if not cells:
            continue
        if header is None:
            first = [cells.get(column) or column_letters(column) for column in range(max(cells) + 1)]
            header = header_names(first, account, wanted, number)
            if header is first:
                continue
        record = {name: cells.get(column, "") for column, name in enumerate(header)}
        if len(cells) > len(header) or max(cells) >= len(header):
            record |= {column_letters(at): text for at, text in cells.items() if at >= len(header)}
        yield number, record


def column_letters(column: int) -> str:
    """Return the letters of a column: A for 0, AA for 26."""
    letters = ""
    column += 1
    while column:
        column, digit = divmod(column - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters


def number_text(value: str) -> str:
    """Return a number as a spreadsheet shows it without a format: at most 15 digits, no zeros at its end."""
    if value.lstrip("-").isdecimal():
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else f"{number:.15g}"
