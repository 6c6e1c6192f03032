"""RTF documents → chapters. docs/formats.md states the rules."""

from __future__ import annotations

from collections.abc import Iterator

from finetale.text.account import FileAccount
from finetale.text.documents import FileError
from finetale.text.formats.base import Chapter, Format, SourceFile
from finetale.text.formats.manuscript import Block, chapters_of
from finetale.text.formats.rtf.reader import Reader

MAX_BYTES = 512 << 20


def rtf_blocks(name: str, data: bytes, account: FileAccount) -> list[Block]:
    """Return the paragraphs of an RTF document, and count what is left out.

    Raises:
        FileError: it is no RTF, is cut off, or its groups are nested too deeply.
    """
    reader = Reader(name, data, account)
    reader.read()
    return reader.body.blocks


def _read(file: SourceFile) -> Iterator[Chapter]:
    pieces: list[bytes] = []
    for block in file.counted():
        pieces.append(block)
        if file.account.bytes > MAX_BYTES:
            detail = f"it is larger than {MAX_BYTES >> 20} MiB, the most that is read of RTF"
            raise FileError(file.name, None, "too_large", detail, "Leave out its pictures, or save it as .docx.")
    if data := b"".join(pieces):
        pieces.clear()
        yield from chapters_of(rtf_blocks(file.name, data, file.account))


FORMATS = (Format("rtf", "manuscript", (".rtf",), "chapters", _read, magic=(b"{\\rtf",), is_binary=True),)
