"""The types that the text layer returns: documents, parts, the error of one file. Knows nothing of reading."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from finetale.errors import SourceError
from finetale.surrogates import escape

Split = Literal["train", "validation", "test", "watched"]
"""Where a part belongs. Watched text is measured and never trained on."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_CHARACTERS_AT_ONCE = 1 << 20
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
        text: its characters. The parts of a document, joined, are the document's text.
        source: the file, dataset or `-` it was read from.
        line: first line of the part in the file, or the number of the record.
        split: the split it belongs to.
        digest: BLAKE2b (16 bytes, hexadecimal) of the whole document's text in UTF-8.
        dropped: the reason why it is not used. None if it is used.
        ends: whether the document ends with this part. Only the last part of a document that was cut ends it.
        personal: (start, stop) of personal data that was found and not masked, in characters of the part.
        is_repeat: whether the document repeats an earlier one, exactly or nearly.
        context: (start, stop) of the characters that are read and not learned, ascending. Only whole documents have it.
        is_example: whether it is an example. An example that is learned whole has no context.
        beside: the number of its source, from 0, if it is mixed or watched text. None for text of the user's own.
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
    context: tuple[tuple[int, int], ...] = ()
    is_example: bool = False
    beside: int | None = None

    @property
    def is_mixed(self) -> bool:
        """Whether it is mixed text, of which only a share is trained on."""
        return self.beside is not None and self.split == "train"


class FileError(SourceError):
    """A problem that makes a file, or the rest of it, unreadable.

    Args:
        file: name of the file.
        line: line or record of the problem (from 1); None when it concerns the whole file.
        kind: short stable name of the problem, such as "bad_json".
        detail: the problem, as the end of a sentence that starts with the file and line.
        hint: what to do next.
    """

    def __init__(self, file: str, line: int | None, kind: str, detail: str, hint: str) -> None:
        file, detail, hint = one_line(file), one_line(detail), one_line(hint)
        super().__init__(f"{file}{'' if line is None else f':{line}'}: {detail}.", hint)
        self.file = file
        self.line = line
        self.kind = kind
        self.detail = detail


def one_line(name: str) -> str:
    """Return a file or column name as one line of valid Unicode.

    Control characters become \\xNN. So do bytes of a file name that are not UTF-8; `os.fsdecode` turns them into
    surrogates.
    """
    return _UNPRINTABLE.sub(lambda match: escape(match.group()), name)


def digest_of(data: bytes) -> bytes:
    """Return the BLAKE2b hash (16 bytes) of a document's UTF-8 text. It identifies the document everywhere."""
    return blake2b(data, digest_size=16).digest()


def digest_and_size(text: str) -> tuple[bytes, int]:
    """Return `digest_of` a text in UTF-8, and its number of bytes. A long text is encoded piece by piece."""
    if len(text) <= _CHARACTERS_AT_ONCE:
        data = text.encode()
        return blake2b(data, digest_size=16).digest(), len(data)
    digest, size = blake2b(digest_size=16), 0
    for start in range(0, len(text), _CHARACTERS_AT_ONCE):
        data = text[start : start + _CHARACTERS_AT_ONCE].encode()
        digest.update(data)
        size += len(data)
    return digest.digest(), size


def size_in_utf8(text: str) -> int:
    """Return the number of bytes of a text in UTF-8. A long text is encoded piece by piece."""
    pieces = (text[start : start + _CHARACTERS_AT_ONCE] for start in range(0, len(text), _CHARACTERS_AT_ONCE))
    return sum(len(piece.encode("utf-8", "surrogatepass")) for piece in pieces)
