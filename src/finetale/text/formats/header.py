"""The header of a table: whether its first row names the columns or is data. Knows no file format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from finetale.text.account import FileAccount
from finetale.text.columns import TEXT_COLUMNS
from finetale.text.documents import FileError

NAME_CHARACTERS, NAME_WORDS = 60, 6

_NUMBER = re.compile(r"[-+]?[\d.,:/ -]*\d[\d.,:/ %-]*")
"""Numbers, dates and times."""
_SENTENCE_END = (".", "!", "?", "…", "。", "！", "？", '."', '!"', '?"', ".”", "!”", "?”")
_COMMON_NAMES = {
    *TEXT_COLUMNS, "id", "index", "title", "name", "author", "date", "year", "url", "link", "label", "category",
    "language", "source", "summary", "prompt", "instruction", "input", "question", "answer", "response", "comment",
    "review", "tweet",
}  # fmt: skip


def header_names(row: list[str], account: FileAccount, wanted: str | None, line: int) -> list[str]:
    """Return the names of the columns: the first row itself, or numbers from 0 if it looks like data.

    It counts as data also if `wanted` is a number and no column has it as its name, unless the first row holds a common
    column name.

    Args:
        row: the first row that is not empty.
        account: names the file. Receives the problem "no_header" if the columns are numbered.
        wanted: `SourceFile.wanted_column`.
        line: line of the row, for messages.

    Raises:
        FileError: two columns have the same name.
    """
    counted = wanted is not None and wanted.isdecimal() and wanted not in row
    common = any(cell.strip().lower() in _COMMON_NAMES for cell in row)
    if not (wanted is not None and wanted in row) and not common and (counted or _looks_like_data(row)):
        detail = "there is no header line, so the columns are counted from 0"
        account.problem("no_header", line, detail=detail)
        return [str(number) for number in range(len(row))]
    doubled = [name for name, count in Counter(row).items() if count > 1]
    if doubled:
        detail = f"the first line names the column {min(doubled)!r} twice"
        raise FileError(account.file, line, "bad_table", detail, "Give each column a different name.")
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
