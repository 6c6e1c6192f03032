"""JSON and JSON Lines: records. Knows nothing of encodings and of the column that holds the text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from finetale.config.templates import Template
from finetale.formatting import plural
from finetale.text.account import FileAccount
from finetale.text.columns import TEXT_COLUMNS, Record, characters_in
from finetale.text.conversations import find_shape
from finetale.text.documents import FileError
from finetale.text.formats.base import Format, SourceFile
from finetale.text.formats.telegram import find_chats, telegram_documents
from finetale.text.record_values import kind_of_value, path_to

_MAX_NAMED_KEYS = 5


class DuplicateKeys:
    """Parses JSON and counts the keys that occur more than once in an object. Their last value is used.

    Args:
        account: receives the problem "duplicate_key".
    """

    def __init__(self, account: FileAccount) -> None:
        self._account = account
        self.new: list[str] = []
        """Keys that were repeated since the last report."""
        self._counts: Counter[str] = Counter()
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def report(self, line: int) -> None:
        """Report the keys that were repeated since the last call."""
        self._counts.update(self.new)
        count = len(self.new)
        self.new.clear()
        named = ", ".join(
            f"{key!r} (in {number:,} object{'s' * (number != 1)})"
            for key, number in self._counts.most_common(_MAX_NAMED_KEYS)
        )
        detail = f"an object has the same key more than once, and only the last value is used: {named}"
        self._account.problem("duplicate_key", line, count, detail)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            self.new += [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        return value


def jsonl_records(lines: Iterator[tuple[int, str]], account: FileAccount) -> Iterator[tuple[int, Record]]:
    """Yield (line, record) of JSON Lines. Blank lines are skipped.

    Raises:
        FileError: a line is not valid JSON, or is neither an object nor a string.
    """
    file, keys = account.file, DuplicateKeys(account)
    decode = keys.decoder.decode
    for number, line in lines:
        if line and not line.isspace():
            try:
                value = decode(line)
            except (ValueError, RecursionError) as error:
                raise bad_json(file, number, error) from None
            if keys.new:
                keys.report(number)
            yield number, _record(value, file, number)


def json_records(
    texts: Iterator[str],
    account: FileAccount,
    wanted: str | None = None,
    *,
    template: Template | None = None,
    speaker: str | None = None,
) -> Iterator[tuple[int, Record]]:
    """Yield (line, record) of a JSON file.

    The file holds an array of objects or strings, which is read one item at a time. Or it holds objects one after
    another, as JSON Lines does. Or it holds one object, which is a record or holds the records in a list (see
    `_records_within`), or an export of Telegram, whose conversations are yielded instead of records.

    Args:
        texts: the file's text in blocks.
        account: names the file, and receives the problems "records_in_list" and "duplicate_key".
        wanted: the setting `text_column`.
        template: the setting of this name, parsed.
        speaker: the setting of this name, for the chats of Telegram.

    Raises:
        FileError: the file is not valid JSON, holds no records, or holds several lists of records.
    """
    file, keys = account.file, DuplicateKeys(account)
    reader = _JsonReader(texts, file, keys.decoder)
    if reader.peek() == "[":
        for value in reader.items():
            if keys.new:
                keys.report(reader.line)
            yield reader.line, _record(value, file, reader.line)
        if reader.peek():
            raise bad_json(file, reader.line_here(), "there is more after the end of the array")
        return
    if not reader.peek():
        return
    first, line = reader.value(), reader.line
    if keys.new:
        keys.report(line)
    if reader.peek() or not isinstance(first, dict):
        yield line, _record(first, file, line)
        while reader.peek():
            value = reader.value()
            if keys.new:
                keys.report(reader.line)
            yield reader.line, _record(value, file, reader.line)
        return
    if wanted is None and template is None and (chats := find_chats(first)) is not None:
        yield from telegram_documents(chats, speaker, account)
        return
    for record in _records_within(first, account, line, wanted, template):
        yield line, _record(record, file, line)


def _records_within(
    value: dict[str, Any], account: FileAccount, line: int, wanted: str | None, template: Template | None
) -> list[Any]:
    """Return the records of a file that holds one object.

    The object is the record if one of its strings has the name of a text column, or if its strings are longer than the
    strings in its list of objects. A list of strings holds the records only if the object has no other string. No
    list holds them if the rest of the object has more characters. If `wanted` leads to a string or a list, it decides.
    The object is the record too if all columns of the template lead to its values, or if it is a conversation.
    """
    if template is not None and all(path_to(value, column) for column in template.columns):
        return [value]
    if wanted is None and template is None:
        shape = find_shape([value], list(value), None, None)
        if shape is not None and shape.messages is not None:
            return [value]
    lists = {name: items for name, items in value.items() if _is_records(items)}
    strings = {name: text for name, text in value.items() if isinstance(text, str) and any(map(str.isalpha, text))}
    if wanted is not None:
        if path_to(value, wanted) is not None and wanted not in lists:
            return [value]
        if wanted in lists and isinstance(lists[wanted][0], str):
            return _from_list(value, wanted, strings, account, line)
    if template is not None:
        lists = {name: items for name, items in lists.items() if _has_some(items[0], template)} or lists
    of_objects = [name for name, items in lists.items() if isinstance(items[0], dict)]
    if len(of_objects) == 1:
        (name,) = of_objects
        is_record = any(key.strip().lower() in TEXT_COLUMNS for key in strings)
        if not is_record and _is_most_of(value, name):
            return _from_list(value, name, strings, account, line)
        return [value]
    if strings or not lists:
        return [value]
    if len(lists) == 1:
        (name,) = lists
        return _from_list(value, name, strings, account, line) if _is_most_of(value, name) else [value]
    names = ", ".join(map(repr, lists))
    reason = f"holds {len(lists)} arrays of records ({names}), and one was expected"
    raise FileError(account.file, line, "bad_json", reason, "Keep one of them, or write one record per line as .jsonl.")


def _has_some(record: Any, template: Template) -> bool:
    """Return whether a record has a column of a template."""
    return any(path_to(record, column) for column in template.columns)


def _is_most_of(value: Mapping[str, Any], name: str) -> bool:
    """Whether the list of this name holds at least half of the characters of an object."""
    return 2 * characters_in(value[name]) >= characters_in(value)


def _from_list(
    value: dict[str, Any], name: str, strings: Mapping[str, str], account: FileAccount, line: int
) -> list[Any]:
    """Return the items of a list, and report the other contents of the object."""
    items: list[Any] = value[name]
    what = "string" if isinstance(items[0], str) else "object"
    one = len(items) == 1
    detail = f"the {'record is' if one else 'records are'} the {plural(len(items), what)} of {name!r}"
    others = {key: len(text) for key, text in strings.items()}
    others |= {key: count for key in value if key not in (name, *others) and (count := characters_in(value[key]))}
    if others:
        named = ", ".join(f"{key!r} ({count:,} characters)" for key, count in list(others.items())[:_MAX_NAMED_KEYS])
        detail += f"; the rest of the object is left out: {named}"
    account.problem("records_in_list", line, detail=detail)
    return items


def bad_json(file: str, line: int, reason: object) -> FileError:
    """Return the error for invalid JSON."""
    if isinstance(reason, json.JSONDecodeError):
        reason = f"{reason.msg}, column {reason.colno}"
    elif isinstance(reason, RecursionError):
        reason = "it is nested too deeply"
    return FileError(file, line, "bad_json", f"is not valid JSON ({reason})", "Correct this line, or remove it.")


def _record(value: Any, file: str, line: int) -> Record:
    if isinstance(value, dict | str):
        return value
    raise FileError(
        file,
        line,
        "bad_record",
        f"holds {kind_of_value(value)}, not an object or a string",
        'Write records as {"text": "…"}.',
    )


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | str)


class _JsonReader:
    """Reads JSON values from blocks of text, one at a time. Memory holds at most one value and one block."""

    def __init__(self, texts: Iterator[str], file: str, decoder: json.JSONDecoder) -> None:
        self._texts = texts
        self._file = file
        self._buffer = ""
        self._position = 0
        self._line_here = 1
        self._counted_to = 0  # position in the buffer that `_line_here` belongs to
        self._decoder = decoder
        self.line = 1  # line of the value returned last

    def peek(self) -> str:
        """Return the next character that is not white space, or "" at the end."""
        while True:
            match = re.compile(r"[ \t\n\r]*").match(self._buffer, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._buffer) or not self._more():
                return self._buffer[self._position : self._position + 1]

    def line_here(self) -> int:
        """Return the line of the next character."""
        self._line_here += self._buffer.count("\n", self._counted_to, self._position)
        self._counted_to = self._position
        return self._line_here

    def items(self) -> Iterator[Any]:
        """Yield the items of the next value, an array."""
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
        """Return the next value."""
        self.line = self.line_here()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                # If the error is near the end of the buffer or in an open string, the value may continue in the next.
                cut_off = error.pos >= len(self._buffer) - 8 or error.msg.startswith("Unterminated string")
                if cut_off and self._more(double=True):
                    continue
                line = self.line_here() + self._buffer.count("\n", self._position, error.pos)
                raise bad_json(self._file, line, error.msg) from None
            except RecursionError as error:
                raise bad_json(self._file, self.line, error) from None
            # A number at the end of the buffer may be cut off too, but numbers are not records.
            self._position = end
            return value

    def _more(self, *, double: bool = False) -> bool:
        """Drop the text that was read and append the next block. Return False at the end.

        With `double`, append as much text as the buffer holds, so that a large value is parsed only a few times.
        """
        rest = self._buffer[self._position :]
        self.line_here()
        self._position = self._counted_to = 0
        pieces, wanted = [rest], max(1, len(rest)) if double else 1
        while wanted > 0 and (text := next(self._texts, "")):
            pieces.append(text)
            wanted -= len(text)
        self._buffer = "".join(pieces)
        return len(pieces) > 1


def _read_lines(file: SourceFile) -> Iterator[tuple[int, Record]]:
    return jsonl_records(file.lines(), file.account)


def _read(file: SourceFile) -> Iterator[tuple[int, Record]]:
    settings = file.settings
    return json_records(
        file.texts(),
        file.account,
        settings.text_column,
        template=settings.parsed_template,
        speaker=settings.speaker,
    )


FORMATS = (
    Format("jsonl", "table", (".jsonl", ".ndjson"), "records", _read_lines),
    Format("json", "table", (".json",), "records", _read),
)
