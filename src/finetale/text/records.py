"""Records to raw documents: jsonl, json, csv, tsv and parquet, and which of their columns holds the text.

Knows nothing of encodings. A record whose text is null or "" is a document without text, for the account to drop.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from finetale.text.account import FileAccount
from finetale.text.byte_streams import seekable
from finetale.text.documents import FileError

# In this order, whatever the case of their letters.
TEXT_COLUMNS = (
    "text", "content", "contents", "body", "story", "stories", "tale", "document", "article", "passage", "paragraph",
    "chapter", "poem", "lyrics", "prose", "raw_text", "full_text", "maintext", "sentence", "output", "completion",
)  # fmt: skip
LOOK_AHEAD = 20
FIELD_CHARACTERS = 1 << 28

COLUMN_HINT = "Name the column that holds the text with --text-column."

Record = Mapping[str, Any] | str


def record_documents(
    records: Iterable[tuple[int, Record]], column: str | None, account: FileAccount
) -> Iterator[tuple[int, str]]:
    """(line, raw text) of each record.

    Args:
        records: (line or record number, record); a record that is a string is its own text.
        column: the column that holds the text; None: found from the first records, and noted in the account.
        account: names the file, and is told the column.

    Raises:
        FileError: there is no such column, or no string in it.
    """
    records = iter(records)
    ahead: list[tuple[int, Record]] = []
    late: FileError | None = None
    try:
        ahead.extend(islice(records, LOOK_AHEAD))  # on an error keeps what came before it
    except FileError as error:
        late = error
    tables = [record for _, record in ahead if not isinstance(record, str)]
    for line, record in chain(ahead, records):
        if isinstance(record, str):
            yield line, record
            continue
        if account.text_column is None:
            account.text_column = find_column(tables or [record], column, account.file, line)
        yield line, _text_of(record, account.text_column, account.file, line)
    if late is not None:
        raise late


def find_column(records: Sequence[Mapping[str, Any]], wanted: str | None, file: str, line: int) -> str:
    """The column that holds the text, judged by a few records.

    Raises:
        FileError: the wanted column is not there, or no column holds strings.
    """
    names = list(dict.fromkeys(name for record in records for name in record))
    there = ", ".join(map(repr, names[:20])) + (" …" if len(names) > 20 else "") or "none"
    if wanted is not None:
        if wanted in names:
            return wanted
        raise FileError(file, line, "missing_column", f"has no column {wanted!r}; its columns are {there}", COLUMN_HINT)
    lengths = {
        name: sum(len(record[name]) for record in records if isinstance(record.get(name), str))
        for name in names
        if any(isinstance(record.get(name), str) for record in records)
    }
    by_name = {name.strip().lower(): name for name in reversed(list(lengths))}
    for name in TEXT_COLUMNS:
        if name in by_name:
            return by_name[name]
    if not lengths:
        raise FileError(file, line, "missing_column", f"has no column of text; its columns are {there}", COLUMN_HINT)
    return max(lengths, key=lambda name: lengths[name])


def jsonl_records(lines: Iterator[tuple[int, str]], file: str) -> Iterator[tuple[int, Record]]:
    """The records of JSON Lines; blank lines are passed over."""
    for number, line in lines:
        if line and not line.isspace():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise bad_json(file, number, error) from None
            yield number, _record(value, file, number)


def json_records(texts: Iterator[str], file: str) -> Iterator[tuple[int, Record]]:
    """The records of a JSON file: an array of objects or strings, read one item at a time; objects one after another
    (JSON Lines under another name); or one object, which holds exactly one array of records, or is a record itself.
    """
    reader = _JsonReader(texts, file)
    if reader.peek() == "[":
        for value in reader.items():
            yield reader.line, _record(value, file, reader.line)
        if reader.peek():
            raise bad_json(file, reader.line_here(), "there is more after the end of the array")
        return
    first = reader.value() if reader.peek() else None
    line = reader.line
    if first is None:
        return
    if reader.peek() or not isinstance(first, dict):
        yield line, _record(first, file, line)
        while reader.peek():
            value = reader.value()
            yield reader.line, _record(value, file, reader.line)
        return
    arrays = [value for value in first.values() if _is_records(value)]
    if len(arrays) == 1:
        for value in arrays[0]:
            yield line, _record(value, file, line)
    elif len(arrays) > 1:
        names = ", ".join(repr(name) for name, value in first.items() if _is_records(value))
        reason = f"holds {len(arrays)} arrays of records ({names}), and one was expected"
        raise FileError(file, line, "bad_json", reason, "Keep one of them, or write one record a line as .jsonl.")
    else:
        yield line, first


def csv_records(lines: Iterator[tuple[int, str]], file: str, *, tabs: bool) -> Iterator[tuple[int, Record]]:
    """The records of a table whose first line names the columns.

    Args:
        lines: (line number, line with its end).
        file: name of the file, for errors.
        tabs: columns are divided by tabs; else by what the first line has: comma, semicolon or tab.
    """
    csv.field_size_limit(FIELD_CHARACTERS)  # the module's only limit, for the whole process; its 128 KiB is no page
    first = next(lines, None)
    if first is None:
        return
    delimiter = "\t" if tabs else next((mark for mark in ",;\t" if mark in first[1]), ",")
    reader = csv.reader((line for _, line in chain([first], lines)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in reader:
            if header is None:
                header = _header(row, file) if row else None
            elif row:
                if len(row) != len(header):
                    detail = f"has {len(row)} fields, but the first line names {len(header)} columns"
                    hint = "Put fields that hold the delimiter or line ends into double quotes."
                    raise FileError(file, line, "bad_table", detail, hint)
                yield line, dict(zip(header, row, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        hint = (
            'Look for a quote that is not closed; a field with a quote in it is written as "one ""two""", or use jsonl.'
        )
        raise FileError(file, line, "bad_table", f"is not a well-formed row ({error})", hint) from None


def parquet_documents(path: Path, column: str | None, account: FileAccount) -> Iterator[tuple[int, str]]:
    """(record number from 1, raw text) of each row; only the text column is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with seekable(account.file, path) as file:
        try:
            account.bytes = file.seek(0, 2)
            file.seek(0)
            table = pq.ParquetFile(file)
            ahead = next(table.iter_batches(batch_size=LOOK_AHEAD), None)
            if ahead is None or not ahead.num_rows:
                return
            name = find_column(ahead.to_pylist(), column, account.file, 1)
            account.text_column = name
            number = 1
            for batch in table.iter_batches(batch_size=256, columns=[name]):
                for value in batch.column(0).to_pylist():
                    yield number, _text_of({name: value}, name, account.file, number)
                    number += 1
        except (pa.ArrowException, OSError) as error:
            reason = f"is no Parquet file that can be read ({str(error).splitlines()[0].rstrip('.')})"
            raise FileError(account.file, None, "damaged", reason, "Get the file again.") from None


def bad_json(file: str, line: int, reason: object) -> FileError:
    """The error of JSON that can't be parsed."""
    if isinstance(reason, json.JSONDecodeError):
        reason = f"{reason.msg}, column {reason.colno}"
    elif isinstance(reason, RecursionError):
        reason = "it is nested too deeply"
    return FileError(file, line, "bad_json", f"is not valid JSON ({reason})", "Mend this line, or take it out.")


def _text_of(record: Mapping[str, Any], column: str, file: str, line: int) -> str:
    if column not in record:
        names = ", ".join(map(repr, record)) or "none"
        detail = f"has no column {column!r}, as the first record has; its columns are {names}"
        raise FileError(file, line, "missing_column", detail, COLUMN_HINT)
    value = record[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        detail = f"column {column!r} holds {_kind(value)}, not text"
        raise FileError(file, line, "not_text", detail, COLUMN_HINT)
    return value


def _record(value: Any, file: str, line: int) -> Record:
    if isinstance(value, dict | str):
        return value
    raise FileError(
        file, line, "bad_record", f"holds {_kind(value)}, not an object or a string", 'Write records as {"text": "…"}.'
    )


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | str)


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
    }
    return names.get(type(value), "null" if value is None else f"a value of type {type(value).__name__}")


def _header(row: list[str], file: str) -> list[str]:
    if any(len(name) > 60 or len(name.split()) > 6 for name in row):
        detail = f"the first line should name the columns, but it begins {row[0][:40]!r}"
        raise FileError(file, 1, "bad_table", detail, "Put a line of column names first, such as `text`.")
    doubled = {name for name in row if row.count(name) > 1}
    if doubled:
        detail = f"the first line names the column {min(doubled)!r} twice"
        raise FileError(file, 1, "bad_table", detail, "Give each column a name of its own.")
    return row


class _JsonReader:
    """JSON values from blocks of text, one at a time; never more than one value and one block in memory."""

    def __init__(self, texts: Iterator[str], file: str) -> None:
        self._texts = texts
        self._file = file
        self._buffer = ""
        self._position = 0
        self._line_here = 1
        self._counted_to = 0  # place in the buffer that `_line_here` is the line of
        self._decoder = json.JSONDecoder()
        self.line = 1  # of the value returned last

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            match = re.compile(r"[ \t\n\r]*").match(self._buffer, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._buffer) or not self._more():
                return self._buffer[self._position : self._position + 1]

    def line_here(self) -> int:
        """Line of the next character."""
        self._line_here += self._buffer.count("\n", self._counted_to, self._position)
        self._counted_to = self._position
        return self._line_here

    def items(self) -> Iterator[Any]:
        """The items of the array that comes next."""
        self._position += 1
        if self.peek() == "]":
            self._position += 1
            return
        while True:
            yield self.value()
            mark = self.peek()
            if mark not in (",", "]"):
                what = f"{mark!r} where , or ] belongs" if mark else "it ends within the array"
                raise bad_json(self._file, self.line_here(), what)
            self._position += 1
            if mark == "]":
                return
            self.peek()

    def value(self) -> Any:
        """The value that comes next."""
        self.line = self.line_here()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                # An error well before the end is an error; else, and in an open string, the value may go on.
                cut_off = error.pos >= len(self._buffer) - 8 or error.msg.startswith("Unterminated string")
                if cut_off and self._more(double=True):
                    continue
                line = self.line_here() + self._buffer.count("\n", self._position, error.pos)
                raise bad_json(self._file, line, error.msg) from None
            except RecursionError as error:
                raise bad_json(self._file, self.line, error) from None
            # A number at the end of the buffer may go on too, but numbers are no records.
            self._position = end
            return value

    def _more(self, *, double: bool = False) -> bool:
        """Drop what was read and append the next block (with `double`, as much again as there is); False at the end."""
        rest = self._buffer[self._position :]
        self.line_here()
        self._position = self._counted_to = 0
        pieces, wanted = [rest], max(1, len(rest)) if double else 1
        while wanted > 0 and (text := next(self._texts, "")):
            pieces.append(text)
            wanted -= len(text)
        self._buffer = "".join(pieces)
        return len(pieces) > 1
