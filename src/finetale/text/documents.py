"""What the text layer hands out: documents, parts of documents, and the error of one file. Knows nothing of reading."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from finetale.errors import SourceError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(slots=True)  # not frozen: that doubles the time to make one, and a text can have millions
class Document:
    """A document after cleaning.

    Attributes:
        text: its characters.
        source: the file, dataset or `-` it was read from.
        line: its first line in the file (from 1), or the number of its record where a file has no lines.
    """

    text: str
    source: str
    line: int


@dataclass(slots=True)
class Part:
    """A whole document, or a contiguous part of a long one.

    Attributes:
        text: its characters; the parts of one document, put together, are its text again.
        source: the file, dataset or `-` it was read from.
        line: first line of the part in the file, or the number of the record.
        split: where it belongs.
        digest: BLAKE2b (16 bytes, hexadecimal) of the whole document's text in UTF-8.
        dropped: why it is not used; None when it is.
        ends: whether the document ends with this part; False for the parts of a cut document but its last.
        personal: where in the part personal data stands that was found and left there, as (start, stop) in characters.
        is_repeat: whether the document repeats an earlier one, exactly or nearly.
    """

    text: str
    source: str
    line: int
    split: Split
    digest: str
    dropped: str | None
    ends: bool = True
    personal: tuple[tuple[int, int], ...] = ()
    is_repeat: bool = False


class FileError(SourceError):
    """Something in one file that ends the reading of it.

    Args:
        file: name of the file, as messages show it.
        line: line or record where it happened (from 1); None when it concerns the file as a whole.
        kind: short stable name of the problem, such as "bad_json".
        detail: what is wrong, as the second half of a sentence that starts with the place.
        hint: what to do next.
    """

    def __init__(self, file: str, line: int | None, kind: str, detail: str, hint: str) -> None:
        file, detail, hint = shown(file), shown(detail), shown(hint)
        super().__init__(f"{file}{'' if line is None else f':{line}'}: {detail}.", hint)
        self.file = file
        self.line = line
        self.kind = kind
        self.detail = detail


def shown(name: str) -> str:
    """Return a file or column name as one line of valid Unicode.

    Control characters, and bytes of a file name that are not UTF-8 (`os.fsdecode` makes surrogates of them), become \\xNN.
    """
    return _UNPRINTABLE.sub(_escaped, name)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def digest_of(data: bytes) -> bytes:
    """BLAKE2b of a document's UTF-8 text, 16 bytes: its identity in caches, splits and the search for repeats."""
    return blake2b(data, digest_size=16).digest()
