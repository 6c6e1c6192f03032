"""Choose the column of records that holds the text, and measure the text in the others. Knows no file formats.

All files of a source share one choice, so that the column does not change from file to file. A guess that would leave
out more than half of the characters is an error.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetale.text.conversations import PAIR_HINT, Conversation, Shape, as_conversation, find_shape
from finetale.text.documents import FileError, one_line
from finetale.text.record_values import kind_of_value, path_to
from finetale.text.source_names import source_name
from finetale.text.templates import Filler, filler_for, missing_columns, top_level_names, unknown_columns

if TYPE_CHECKING:
    from finetale.config.templates import Template
    from finetale.text.account import FileAccount

# The first of these names that a file has is the text column. Case does not matter.
TEXT_COLUMNS = (
    "text", "content", "contents", "body", "story", "stories", "tale", "document", "article", "passage", "paragraph",
    "chapter", "poem", "lyrics", "prose", "raw_text", "full_text", "maintext", "sentence", "output", "completion",
)  # fmt: skip
LOOK_AHEAD = 200
"""Number of records by which a column is chosen."""
LOOK_AHEAD_CHARACTERS = 1 << 20
"""Characters after which the look-ahead ends early, so that large records do not fill the memory."""
MEASURED_RECORDS = 1000
"""Number of records of a file that are all measured. Later, every `MEASURED_EVERY`-th is measured, with that weight."""
MEASURED_EVERY = 16
ENOUGH_RECORDS = 20
"""Number of records needed to judge a source before its end."""
MAX_COLUMNS = 64
"""Maximum number of columns that are counted by their own name. Others are counted under their top-level key."""
MAX_SHOWN = 10
MAX_DEPTH = 6

COLUMN_HINT = "Name the column that holds the text with --text-column."
JOIN_HINT = "To train on several, join them into one column first."
LIST_HINT = (
    'Lists are read where each item is a message, {"role": "user", "content": "…"}. Otherwise write the text of each '
    "record as one string."
)

Raw = str | Conversation
"""A document before cleaning: running text, or an example."""
Record = Mapping[str, Any] | Raw
"""A record as a reader yields it."""

# Two words, or four characters of a script without spaces. Numbers, dates, addresses and identifiers do not match.
_READS_LIKE_TEXT = re.compile(
    r"[^\W\d_]\S*\s+(?:\S*?[^\W\d_])"
    r"|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{4}"
)


class ColumnAccount:
    """The column that was chosen for some files of one source, and the amount of text in it and in the others.

    Attributes:
        source: the source, as messages show it.
        path: keys that lead to the text in a record.
        shape: where the prompts and answers are, for a source of examples. None for running text.
        taken: name of the column, or names of the columns of an example.
        guessed: whether the columns were not named in the settings.
        files: number of files read with this choice.
    """

    def __init__(
        self,
        source: str,
        path: tuple[str, ...],
        *,
        guessed: bool,
        shape: Shape | None = None,
        filler: Filler | None = None,
    ) -> None:
        self.source = source
        self.path = path
        self.shape = shape
        self.filler = filler
        self.taken = filler.title if filler else shape.title if shape else ".".join(path)
        self.guessed = guessed
        self.files = 0
        self._records = 0
        self._characters: defaultdict[str, float] = defaultdict(float)
        self._text: defaultdict[str, float] = defaultdict(float)  # characters of those values that read like text
        self._refused = False

    def names_read(self, names: Sequence[str]) -> list[str]:
        """Return the columns that are read, of those with these names."""
        if self.filler is not None:
            return top_level_names(self.filler.template, names)
        return list(self.shape.columns) if self.shape is not None else [self.path[0]]

    def raw(self, record: Mapping[str, Any], account: FileAccount, line: int) -> Raw:
        """Return the text of a record, or its example.

        Raises:
            FileError: a column is missing, or a value is not text.
        """
        if self.filler is not None:
            return self.filler.fill(record, account.file, line)
        if self.shape is not None:
            return as_conversation(record, self.shape, account, line)
        return text_at(record, self.path, account.file, line)

    def measure(self, record: Mapping[str, Any], weight: float = 1) -> None:
        """Count the characters of each column of a record, `weight` times."""
        self._records += 1
        columns = self.filler.template.columns if self.filler else self.shape.columns if self.shape else ()
        for name, value in _leaves(record):
            if columns and any(name == each or name.startswith((f"{each}.", f"{each}[]")) for each in columns):
                name = self.taken
            if name not in self._characters and len(self._characters) >= MAX_COLUMNS and name != self.taken:
                name = f"{name.partition('.')[0].removesuffix('[]')}.…"
            self._characters[name] += len(value) * weight
            if _READS_LIKE_TEXT.search(value, 0, 1000):
                self._text[name] += len(value) * weight

    def text_columns(self, *, every: bool = False) -> list[tuple[str, int, float]]:
        """Return (name, characters, share) of the chosen column and of others that hold text, largest first.

        With `every`, all columns that hold strings count as text.
        """
        held = {
            name: round(count)
            for name, count in self._characters.items()
            if every or name == self.taken or self._text[name] * 2 > count
        }
        held.setdefault(self.taken, 0)
        whole = sum(held.values())
        rows = [(name, count, count / whole if whole else 0.0) for name, count in held.items()]
        return sorted(rows, key=lambda row: -row[1])

    def judge(self, file: str, *, at_end: bool) -> None:
        """Check that a guessed column leaves out at most half of the characters. Raise at most once.

        Args:
            file: name for the error message.
            at_end: whether the source ends here. Before its end, a small sample is not judged.

        Raises:
            FileError: the other columns hold more text than the guessed one.
        """
        if not self.guessed or self._refused or not (at_end or self._records >= ENOUGH_RECORDS):
            return
        columns = self.text_columns()
        share = next(share for name, _, share in columns if name == self.taken)
        if share >= 0.5 or not sum(count for _, count, _ in columns):
            return
        self._refused = True
        raise FileError(
            file,
            None,
            "ambiguous_column",
            f"the column {self.taken!r} would be read as the text, but contains only {_percent(share)} of the "
            f"characters; the columns with text are {_listed(columns)}",
            f"Choose one with --text-column{_choices(columns)}. {LIST_HINT if '[]' in columns[0][0] else JOIN_HINT}"
            if self.shape is None
            else f"{PAIR_HINT} To train on one column as running text: --text-column{_choices(columns)}.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON-able data. `left_out` lists the other columns with text, largest first."""
        columns = self.text_columns()
        characters, share = next((count, share) for name, count, share in columns if name == self.taken)
        others = [(name, count, share) for name, count, share in columns if name != self.taken]
        return {
            "source": self.source,
            "taken": one_line(self.taken),
            "guessed": self.guessed,
            "characters": characters,
            "share": round(share, 6),
            "files": self.files,
            "records_measured": self._records,
            "left_out": [
                {"name": one_line(name), "characters": count, "share": round(share, 6)}
                for name, count, share in others[:MAX_SHOWN]
            ],
            "more_left_out": len(others[MAX_SHOWN:]),
        } | ({"template": True} if self.filler is not None else {})


class SourceColumns:
    """The choice of the text column for all files of one source.

    Args:
        source: the source.
        wanted: the setting `text_column`: a name, a dotted path into nested records, or None to guess.
        pair: the settings `prompt_column` and `completion_column`, None to guess.
        template: the setting of this name, parsed.
        before: columns chosen for other sources. All sources share this list, and this class extends it.
        accounts: receives the account of each choice, for the report.
    """

    def __init__(
        self,
        source: str,
        wanted: str | None,
        before: list[tuple[str, ...]],
        accounts: list[ColumnAccount],
        pair: tuple[str | None, str | None] = (None, None),
        template: Template | None = None,
    ) -> None:
        self.source = source_name(source)
        self.wanted = wanted
        self.pair = pair
        self.template = template
        self.accounts: list[ColumnAccount] = []
        self._before = before
        self._reported = accounts

    def choose(
        self, records: Sequence[Mapping[str, Any]], file: str, line: int, names: Sequence[str] | None = None
    ) -> ColumnAccount:
        """Return the account of the column that holds the text of a file.

        Args:
            records: the first records of the file.
            file, line: place for error messages.
            names: names of all columns, if the records hold only some of them.

        Raises:
            FileError: the wanted column or one of the template is missing, or no column holds strings.
        """
        names = names or list(dict.fromkeys(name for record in records for name in record))
        shape = self._shape(records, names, file, line)
        filler = None
        if self.template is not None:
            if unknown := unknown_columns(self.template, records, names):
                raise missing_columns(unknown, names, file, line, _quoted)
            filler, shape = filler_for(self.template, shape), None
        if shape is not None or filler is not None:
            path: tuple[str, ...] = ()
        elif self.wanted is None:
            path = (self._guess(records, names, file, line),)
        else:
            found = next(filter(None, (path_to(record, self.wanted) for record in records)), None)
            if found is None:
                raise _missing(f"has no column {self.wanted!r}; its columns are {_quoted(names)}", records, file, line)
            path = found
        choice = (path, shape, filler)
        matching = (each for each in self.accounts if (each.path, each.shape, each.filler) == choice)
        account = next(matching, None)
        if account is None:
            guessed = self.wanted is None and self.pair == (None, None) and filler is None
            account = ColumnAccount(self.source, path, guessed=guessed, shape=shape, filler=filler)
            self.accounts.append(account)
            self._reported.append(account)
            if path:
                self._before.append(path)
        account.files += 1
        return account

    def _shape(self, records: Sequence[Mapping[str, Any]], names: Sequence[str], file: str, line: int) -> Shape | None:
        """Return the shape of examples. None if the records are running text: `text_column` is set, or `text` exists.

        Raises:
            FileError: a column that the settings name is missing.
        """
        named = self.pair != (None, None)
        if self.wanted is not None or (not named and any(name.strip().lower() == "text" for name in names)):
            return None
        shape = find_shape(records, names, *self.pair)
        if shape is None and named:
            missing = [name for name in self.pair if name is not None and name not in names]
            what = f"has no column {missing[0]!r}" if missing else "has no second column to go with it"
            raise _missing(f"{what}; its columns are {_quoted(names)}", records, file, line, PAIR_HINT)
        return shape

    def judge(self) -> None:
        """Judge all choices at the end of the source. Raises the errors of `ColumnAccount.judge`."""
        for account in self.accounts:
            account.judge(self.source, at_end=True)

    def _guess(self, records: Sequence[Mapping[str, Any]], names: Sequence[str], file: str, line: int) -> str:
        lengths = {
            name: sum(len(record[name]) for record in records if isinstance(record.get(name), str))
            for name in names
            if any(isinstance(record.get(name), str) for record in records)
        }
        for account in self.accounts:
            if len(account.path) == 1 and account.taken in lengths:
                return account.taken
        by_name = {name.strip().lower(): name for name in reversed(list(lengths))}
        for name in TEXT_COLUMNS:
            if name in by_name:
                return by_name[name]
        for path in self._before:
            if len(path) == 1 and path[0] in lengths:
                return path[0]
        if not lengths:
            raise _missing(f"has no column of text; its columns are {_quoted(names)}", records, file, line)
        return max(lengths, key=lambda name: (_text_like(records, name), lengths[name]))


def record_documents(
    records: Iterable[tuple[int, Record]], columns: SourceColumns, account: FileAccount
) -> Iterator[tuple[int, Raw]]:
    """Yield (line, raw text or example) of each record.

    Args:
        records: (line or record number, record). A record that is a string is the text; for a template, its column is
            `text`. A `Conversation` is an example already.
        columns: the choice of the column, for all files of the source.
        account: names the file, and receives the name of the column.

    Raises:
        FileError: there is no such column, a value is not text, or most of the text is in other columns.
    """
    records = iter(records)
    if columns.template is not None:
        records = ((line, {"text": record} if isinstance(record, str) else record) for line, record in records)
    ahead, late = _look_ahead(records)
    tables = [row for _, row in ahead if isinstance(row, Mapping)]
    choice: ColumnAccount | None = None
    path: tuple[str, ...] = ()
    key: str | None = None
    number = 0
    for part in (ahead, records):
        for line, record in part:
            if not isinstance(record, Mapping):
                yield line, record
                continue
            if choice is None:
                choice = columns.choose(tables or [record], account.file, line)
                path = choice.path
                account.text_column = choice.taken
                key = path[0] if len(path) == 1 else None
                for row in tables:
                    choice.measure(row)
                choice.judge(account.file, at_end=False)
            if part is records:
                number += 1
                if number < MEASURED_RECORDS or number % MEASURED_EVERY == 0:
                    choice.measure(record, 1 if number < MEASURED_RECORDS else MEASURED_EVERY)
            value = record.get(key) if key is not None else None
            yield line, value if isinstance(value, str) else choice.raw(record, account, line)
    if choice is not None:
        choice.judge(account.file, at_end=False)
    if late is not None:
        raise late


def reads_like_text(value: str) -> bool:
    """Return whether a value holds two words, or four characters of a script without spaces."""
    return _READS_LIKE_TEXT.search(value, 0, 1000) is not None


def text_at(record: Mapping[str, Any], path: tuple[str, ...], file: str, line: int) -> str:
    """Return the text at a path. Null is empty text.

    Raises:
        FileError: a key is missing, or the value is not text.
    """
    value: Any = record
    for depth, key in enumerate(path):
        if value is None and depth:
            return ""
        if not isinstance(value, Mapping) or key not in value:
            name = ".".join(path)
            names = _quoted(list(record))
            detail = f"has no column {name!r}, as the first record has; its columns are {names}"
            raise FileError(file, line, "missing_column", detail, COLUMN_HINT)
        value = value[key]
    if value is None:
        return ""
    if not isinstance(value, str):
        detail = f"column {'.'.join(path)!r} holds {kind_of_value(value)}, not text"
        raise FileError(file, line, "not_text", detail, COLUMN_HINT)
    return value


def characters_in(value: Any) -> int:
    """Return the number of characters of all strings within a JSON value."""
    return sum(len(text) for _, text in _leaves({"": value}))


def _text_like(records: Sequence[Mapping[str, Any]], name: str) -> int:
    """Return the number of characters of those values of a column that read like text."""
    values = (record.get(name) for record in records)
    return sum(len(value) for value in values if isinstance(value, str) and _READS_LIKE_TEXT.search(value, 0, 1000))


def _look_ahead(records: Iterator[tuple[int, Record]]) -> tuple[list[tuple[int, Record]], FileError | None]:
    """Return the first records, and the error that ended them, for the caller to raise after using the records."""
    ahead: list[tuple[int, Record]] = []
    characters = 0
    try:
        for line, record in records:
            ahead.append((line, record))
            values = record.values() if isinstance(record, Mapping) else (record,)
            characters += sum(len(value) for value in values if isinstance(value, str))
            if len(ahead) >= LOOK_AHEAD or characters >= LOOK_AHEAD_CHARACTERS:
                break
    except FileError as error:
        return ahead, error
    return ahead, None


def _leaves(record: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, string) for each string in a record. `name[]` stands for the items of a list."""
    for key, value in record.items():
        if isinstance(value, str):
            if value:
                yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            if depth < MAX_DEPTH:
                yield from _leaves(value, f"{prefix}{key}.", depth + 1)
        elif isinstance(value, list) and depth < MAX_DEPTH:
            yield from _leaves_of_list(value, f"{prefix}{key}[]", depth + 1)


def _leaves_of_list(items: Sequence[Any], name: str, depth: int) -> Iterator[tuple[str, str]]:
    for item in items:
        if isinstance(item, str):
            if item:
                yield name, item
        elif isinstance(item, Mapping):
            yield from _leaves(item, f"{name}.", depth)
        elif isinstance(item, list) and depth < MAX_DEPTH:
            yield from _leaves_of_list(item, f"{name}[]", depth + 1)


def _missing(
    detail: str, records: Sequence[Mapping[str, Any]], file: str, line: int, hint: str | None = None
) -> FileError:
    """Return the error for a missing column. It names the nested values that hold text."""
    if hint is not None:
        return FileError(file, line, "missing_column", detail, hint)
    probe = ColumnAccount(file, ("",), guessed=True)
    for record in records[:ENOUGH_RECORDS]:
        probe.measure(record)
    nested = [row for row in probe.text_columns(every=True) if "." in row[0] or "[]" in row[0]]
    hint = COLUMN_HINT
    if nested:
        detail += f"; there is text in {_listed(nested)}"
        choices = _choices(nested)
        hint = f"Name the column that holds the text with --text-column{choices}." if choices else LIST_HINT
    return FileError(file, line, "missing_column", detail, hint)


def _choices(columns: Sequence[tuple[str, int, float]]) -> str:
    """Return the names that `--text-column` accepts, as in ` a, b or c`."""
    names = [one_line(name) for name, _, _ in columns if "[]" not in name and "…" not in name][:MAX_SHOWN]
    return f" {', '.join(names[:-1])}{' or ' if names[:-1] else ''}{names[-1]}" if names else ""


def _listed(columns: Sequence[tuple[str, int, float]]) -> str:
    more = f" and {len(columns) - MAX_SHOWN} more" if len(columns) > MAX_SHOWN else ""
    return ", ".join(f"{name!r} ({_percent(share)})" for name, _, share in columns[:MAX_SHOWN]) + more


def _percent(share: float) -> str:
    return "under 1%" if 0 < share < 0.01 else f"{share:.0%}"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (" …" if len(names) > 20 else "") or "none"
