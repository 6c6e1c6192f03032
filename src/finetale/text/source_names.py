"""Name sources in messages and reports: text from memory or standard input by its kind, other sources by their path.

Text from memory and from standard input is saved in files of the cache. Their names are hashes, which mean nothing to
the user.
"""

from __future__ import annotations

import re
from pathlib import Path

from finetale.text.documents import one_line

_SAVED_TEXT = re.compile(
    r"in-memory/(texts|records|table)-[0-9a-f]{32}\.(?:jsonl|parquet)|(stdin)/[0-9a-f]{64}\.(?:txt|jsonl|json)"
)
LIST_OF_TEXTS = "the list of texts"
_NAMES = {
    "texts": LIST_OF_TEXTS,
    "records": "the list of records",
    "table": "the table",
    "stdin": "standard input",
}


def kind_of_saved_text(source: str) -> str | None:
    """Return "texts", "records", "table" or "stdin" for a file of text from memory or standard input, else None."""
    match = _SAVED_TEXT.fullmatch("/".join(Path(source).parts[-2:]))
    return None if match is None else match[1] or match[2]


def source_name(source: str) -> str:
    """Return the name of a source for messages and reports, as valid Unicode on one line."""
    kind = kind_of_saved_text(source)
    return one_line(source) if kind is None else _NAMES[kind]
