"""csv and tsv: separator, header line, rows. Knows nothing of encodings and text columns."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice

from finetale.text.account import FileAccount
from finetale.text.columns import TEXT_COLUMNS
from finetale.text.documents import FileError
from finetale.text.formats.base import Format, SourceFile

FIELD_CHARACTERS = 1 << 28
SAMPLE_LINES = 50
SAMPLE_CHARACTERS = 1 << 16
SEPARATORS = (",", ";", "\t")
NAME_CHARACTERS, NAME_WORDS = 60, 6

_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
"""The first line of a file from Excel that names the separator."""
_NUMBER = re.compile(r"[-+]?[\d.,:/ -]*\d[\d.,:/ %-]*")
"""Numbers, dates and times."""
_SENTENCE_END = (".", "!", "?", "…", "。", "！", "？", '."', '!"', '?"', ".”", "!”", "?”")
_COMMON_NAMES = {
    *TEXT_COLUMNS, "id", "index", "title", "name", "author", "date", "year", "url", "link", "label", "category",
    "language", "source", "summary", "prompt", "instruction", "input", "question", "answer", "response", "comment",
    "review", "tweet",
}  # fmt: skip


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
        wanted: the setting `text_column`.

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
                header = _header(row, account, wanted, number)
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


def _header(row: list[str], account: FileAccount, wanted: str | None, line: int) -> list[str]:
    """Return the names of the columns: the first row, or numbers if it looks like data."""
    counted = wanted is not None and wanted.isdecimal() and wanted not in row
    common = any(cell.strip().lower() in _COMMON_NAMES for cell in row)
    if not (wanted is not None and wanted in row) and not common and (counted or _looks_like_data(row)):
        detail = "there is no header line, so the columns are counted from 0"
        account.problem("no_header", line, detail=detail)
        return [str(number) for number in range(len(row))]
    doubled = [name for name, count in Counter(row).items() if count > 1]
    if doubled:
        detail = f"the first line names the column {min(doubled)!r} twice"
        raise FileError(account.file, line, "bad_table", detail, "Give each column a name of its own.")
    return row


def _looks_like_data(row: Sequence[str]) -> bool:
    """Return whether a first row holds values, not names: numbers, sentences, long or broken lines."""
    if [cell.strip() for cell in row if cell.strip()] == [
        str(number) for number in range(len(row) - (not row[0].strip()))
    ]:
        return False  # columns whose names are numbers, as pandas writes them
    if any(
        len(cell) > NAME_CHARACTERS
        or len(cell.split()) > NAME_WORDS
        or "\n" in cell.strip()
        or _NUMBER.fullmatch(cell.strip())
        or (len(cell.split()) > 1 and cell.rstrip().endswith(_SENTENCE_END))
        for cell in row
    ):
        return True
    return all(len(cell.split()) >= 3 for cell in row)


def _read(file: SourceFile, *, tabs: bool) -> Iterator[tuple[int, Mapping[str, str]]]:
    # The line ends of a table's rows may differ from those within its fields.
    lines = file.lines(keep_ends=True, mixture_matters=False)
    return csv_records(lines, file.account, tabs=tabs, wanted=file.settings.text_column)


FORMATS = (
    Format("csv", (".csv",), "records", partial(_read, tabs=False)),
    Format("tsv", (".tsv",), "records", partial(_read, tabs=True)),
)
