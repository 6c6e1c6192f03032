"""Fill the template of the settings with the values of a record, or with the title and body of a chapter.

Parsing the template is the job of `config.templates`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetale.config.templates import Template
from finetale.text.conversations import Conversation, Message, Shape
from finetale.text.documents import FileError, one_line
from finetale.text.formats.base import Chapter
from finetale.text.record_values import kind_of_value, path_to, text_of_value

Raw = str | Conversation
TITLE, BODY = "title", "body"
"""The columns of a text that does not consist of records."""
_HINT = "Name columns with a text or number in --template."
_HEADING = re.compile(r"[ \t\n]*(?P<heading>[^\n]+)(?:\n[=\-~*^]{3,}[ \t]*(?=\n|$))?\n*")


@dataclass(frozen=True)
class Filler:
    """Fills a template.

    Attributes:
        template: the template.
        learned: the column whose value is the answer; the rest is context. None to learn the whole text.
    """

    template: Template
    learned: str | None = None

    @property
    def title(self) -> str:
        """The columns as the report shows them: `title + body`, or `question → answer`."""
        context = [column for column in self.template.columns if column != self.learned]
        joined = " + ".join(context)
        return joined if self.learned is None else f"{joined} → {self.learned}" if context else self.learned

    def fill(self, record: Mapping[str, Any], file: str, line: int) -> Raw:
        """Return the text of a record, or an example whose answer is the learned column.

        Raises:
            FileError: a value is neither text nor a number.
        """
        pieces: list[Message] = []
        for before, column in self.template.pieces:
            value = "" if column is None else _value(record, column, file, line)
            if column is None or column != self.learned:
                _append(pieces, before + value, is_answer=False)
                continue
            # A space before the answer belongs to it, as it does where a model continues a prompt.
            kept = before.rstrip(" ")
            _append(pieces, kept, is_answer=False)
            _append(pieces, before[len(kept) :] + value if value.strip() else "", is_answer=True)
        if self.learned is None:
            return "".join(piece.content for piece in pieces)
        return Conversation(pieces, is_joined=True)


def filler_for(template: Template, shape: Shape | None) -> Filler:
    """Return the filler of a template for records. `shape` says which column of theirs holds the answers."""
    answers = shape.completion if shape is not None else None
    return Filler(template, answers if answers in template.columns else None)


def unknown_columns(template: Template, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return the columns of a template that records do not have.

    Args:
        records: the first records. They may lack columns without text.
        names: names of all columns.
    """
    present = {name for record in records for name in record}

    def is_known(column: str) -> bool:
        if column in names or any(path_to(record, column) for record in records):
            return True
        return any(column.startswith(f"{name}.") for name in names if name not in present)

    return [column for column in template.columns if not is_known(column)]


def top_level_names(template: Template, names: Sequence[str]) -> list[str]:
    """Return the columns that must be read for a template, which may name values within them."""
    wanted = template.columns
    return [name for name in names if any(each == name or each.startswith(f"{name}.") for each in wanted)]


def filled_texts(
    template: Template, documents: Iterator[tuple[int, str]] | Iterator[Chapter], file: str
) -> Iterator[tuple[int, Raw]]:
    """Yield (place, filled template) of documents, which have a body, or of chapters, which have a title too.

    Raises:
        FileError: the template names another column.
    """
    filler = Filler(template)
    if others := [column for column in template.columns if column not in (TITLE, BODY)]:
        detail = f"has no column {others[0]!r}, which the template names; a text has 'title' and 'body'"
        raise FileError(file, None, "missing_column", detail, "Use {title} and {body}, or leave out this file.")
    for each in documents:
        if isinstance(each, Chapter):
            if each.text.strip():
                yield each.place, filler.fill(_values_of(each), file, each.place)
        else:
            yield each[0], filler.fill({BODY: each[1].strip()}, file, each[0])


def missing_columns(
    unknown: Sequence[str], names: Sequence[str], file: str, line: int, quoted: Callable[[Sequence[str]], str]
) -> FileError:
    """Return the error for columns that a template names and records lack."""
    which = " and ".join(map(repr, map(one_line, unknown)))
    detail = (
        f"has no column{'s' * (len(unknown) > 1)} {which}, which the template names; its columns are {quoted(names)}"
    )
    return FileError(file, line, "missing_column", detail, "Correct the names in --template; {{ is a literal brace.")


def _values_of(chapter: Chapter) -> dict[str, str]:
    """Return title and body of a chapter. A heading with the title is not part of the body."""
    match = _HEADING.match(chapter.text)
    body = chapter.text
    if match and chapter.title and match["heading"].strip("#= \t").casefold() == chapter.title.strip().casefold():
        body = chapter.text[match.end() :]
    return {TITLE: chapter.title, BODY: body.strip()}


def _value(record: Mapping[str, Any], column: str, file: str, line: int) -> str:
    value: Any = record
    for key in path_to(record, column) or ():
        value = value[key]
    text = "" if value is record else text_of_value(value)
    if text is not None:
        return text
    detail = f"column {one_line(column)!r} holds {kind_of_value(value)}, not text"
    raise FileError(file, line, "not_text", detail, _HINT)


def _append(pieces: list[Message], text: str, *, is_answer: bool) -> None:
    if pieces and pieces[-1].is_answer == is_answer:
        pieces[-1].content += text
    elif text:
        pieces.append(Message("assistant" if is_answer else "user", text, is_answer))
