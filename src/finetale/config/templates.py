"""Templates of documents: text with {columns}. Parses and checks them. Knows no records.

`\\n`, `\\t`, `\\r` and `\\\\` are escapes in the text between the columns. `{{` and `}}` are literal braces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\", "{{": "{", "}}": "}"}
_PIECE = re.compile(r"\{\{|\}\}|\\[ntr\\]|\{(?P<column>[^{}]*)\}|(?P<single>[{}])")


@dataclass(frozen=True)
class Template:
    """A template, parsed.

    Attributes:
        pieces: (text, column) in order. The value of the column follows the text; None after the last text.
    """

    pieces: tuple[tuple[str, str | None], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names, in order and without repetitions."""
        return tuple(dict.fromkeys(column for _, column in self.pieces if column is not None))


def parse_template(text: str) -> Template:
    """Return a parsed template.

    Raises:
        ValueError: a brace has no partner, a pair of braces is empty, or the template names no column.
    """
    pieces: list[tuple[str, str | None]] = []
    literal: list[str] = []
    at = 0
    for match in _PIECE.finditer(text):
        literal.append(text[at : match.start()])
        at = match.end()
        if match["single"]:
            place = f"the {match['single']} at character {match.start() + 1} of the template has no partner"
            raise ValueError(f"{place}; write {match['single'] * 2} for a literal brace")
        if match["column"] is None:
            literal.append(_ESCAPES[match[0]])
            continue
        column = match["column"].strip()
        if not column:
            raise ValueError(f"the braces at character {match.start() + 1} of the template name no column")
        pieces.append(("".join(literal), column))
        literal.clear()
    if not pieces:
        raise ValueError("the template names no column; write one in braces, as in {title}")
    literal.append(text[at:])
    if rest := "".join(literal):
        pieces.append((rest, None))
    return Template(tuple(pieces))
