"""csv and tsv: separator, header line, rows. Knows nothing of encodings and text columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice

from finetale.text.account import FileAccount
from finetale.text.documents import FileError
from finetale.text.formats.base import Format, SourceFile
from finetale.text.formats.header import header_names

FIELD_CHARACTERS = 1 << 28
SAMPLE_LINES = 50
SAMPLE_CHARACTERS = 1 << 16
SEPARATORS = (",", ";", "\t")

_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
"""The first line of a file from Excel that names the separator."""


def csv_records(
    lines: Iterator[tuple[int, str]], account: FileAccount, *, tabs: bool, wanted: str | None = None
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield (line, record) of each row of a table.

    The first row names the columns. If it looks like data instead, the columns are named "0", "1", … and the account
    receives the problem "no_header". The same happens if `wanted` is a number and no column has it as its name, unless
    the first row holds a common column name.

    Args:
        lines: (line number, line with its end).
        account: names the file, and receives the problems.
        tabs: whether tabs separate the columns. Otherwise the first rows decide between comma, semicolon and tab.
        wanted: `SourceFile.wanted_column`.

    Raises:
        FileError: a row has too many or too few fields, or is not well-formed.
    """
    csv.field_size_limit(FIELD_CHARACTERS)  # for the whole process; the default of 128 KiB is too small
    start, separator = 1, "\t" if tabs else None
    first = next(lines, None)
    if first is not None and (match := _SEPARATOR_LINE.fullmatch(first[1])):
        start, separator = 2, match.group(1)
        first = next(lines, None)
    if first is None:
        return
    sample = [first[1]]
    characters = len(first[1])
    for _, line in islice(lines, SAMPLE_LINES):
        sample.append(line)
        if (characters := characters + len(line)) >= SAMPLE_CHARACTERS:
            break
    if separator is None:
        separator = _separator_of(sample, cut=len(sample) > SAMPLE_LINES or characters >= SAMPLE_CHARACTERS)
    reader = csv.reader(chain(sample, (line for _, line in lines)), delimiter=separator, strict=True)
    header: list[str] | None = None
    number = start
    try:
        for row in reader:
            if header is None and any(cell.strip() for cell in row):
                header = header_names(row, account, wanted, number)
                if row is not header:
                    yield number, dict(zip(header, row, strict=True))
            elif header is not None and row:
                if len(row) != len(header):
                    detail = (
                        f"has {len(row)} fields, but the first line has {len(header)} column{'s' * (len(header) != 1)}"
                    )
                    hint = "Put fields that hold the separator or line ends into double quotes."
                    raise FileError(account.file, number, "bad_table", detail, hint)
                yield number, dict(zip(header, row, strict=True))
            number = start + reader.line_num
    except csv.Error as error:
        hint = (
            'Look for a quote that is not closed; a field with a quote in it is written as "one ""two""", or use jsonl.'
        )
        raise FileError(account.file, number, "bad_table", f"is not a well-formed row ({error})", hint) from None


def _separator_of(sample: Sequence[str], *, cut: bool) -> str:
    """Return the separator that gives all sampled rows the same number of fields.

    If several do, prefer the one that leaves fewer fields with a leading space or an odd number of quotes, because a
    separator within text leaves such fields. Then prefer more fields. If none does, return the first one that occurs in
    the first row outside of quotes.
    """
    tables = {mark: _rows(sample, mark, cut=cut) for mark in SEPARATORS}
    several = {mark: rows for mark, rows in tables.items() if rows and len(rows[0]) > 1}
    even = [mark for mark, rows in several.items() if len({len(row) for row in rows}) == 1]
    if not even:
        return next(iter(several), ",")

    def torn(mark: str) -> int:
        cells = (cell for row in several[mark] for cell in row)
        return sum(cell.startswith(" ") or cell.count('"') % 2 for cell in cells)

    return min(even, key=lambda mark: (torn(mark), -len(several[mark][0])))


def _rows(sample: Sequence[str], separator: str, *, cut: bool) -> list[list[str]]:
    """Return the rows of a sample. If it was cut off and has several rows, the last one is left out."""
    try:
        rows = [row for row in csv.reader(iter(sample), delimiter=separator) if row]
    except csv.Error:
        return []
    return rows[:-1] if cut and len(rows) > 1 else rows


def _read(file: SourceFile, *, tabs: bool) -> Iterator[tuple[int, Mapping[str, str]]]:
    # The line ends of a table's rows may differ from those within its fields.
    lines = file.lines(keep_ends=True, mixture_matters=False)
    return csv_records(lines, file.account, tabs=tabs, wanted=file.wanted_column)


FORMATS = (
    Format("csv", "table", (".csv",), "records", partial(_read, tabs=False)),
    Format("tsv", "table", (".tsv",), "records", partial(_read, tabs=True)),
)
