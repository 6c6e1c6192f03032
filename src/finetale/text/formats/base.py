"""What a reader of a file format receives and returns. Knows no single format.

A format is one module or package of this package with a tuple `FORMATS`. Its reader receives a `SourceFile` and yields
one of:

    text        blocks of the file's text, which `documents` splits
    chapters    `Chapter`s; together they are the file's text
    records     (line, record); the column that holds the text is chosen later
    documents   (line, text) of each document
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from finetale.config import TextSettings
from finetale.text.account import FileAccount
from finetale.text.byte_streams import blocks, seekable
from finetale.text.decoding import Decoder
from finetale.text.lines import cut_lines, even_line_ends

if TYPE_CHECKING:
    from finetale.text.columns import SourceColumns

Kind = Literal["text", "manuscript", "book", "page", "mail", "table", "subtitles", "chat"]
Yields = Literal["text", "chapters", "records", "documents"]
_IN_MEMORY = 16 << 20


@dataclass(frozen=True)
class Chapter:
    """A section of a manuscript, such as a chapter of an e-book.

    Attributes:
        text: its text with its heading. Paragraphs are separated by a blank line. White space at its end separates it
            from the next chapter; the texts of all chapters, joined, are the text of the file.
        title: its heading, "" if it has none.
        place: its first line in the file, if the format has lines or says where chapters start; else its number from 1.
    """

    text: str
    title: str
    place: int


class SourceFile:
    """One file that a reader reads, and the account that receives what it finds.

    Args:
        name: name for messages.
        account: receives the problems, and what is left out.
        settings: how to decode and clean.
        path: path of the file. None means standard input.
        open_member: opens the bytes of a member of an archive; None for a file on disk.
        columns: returns the choice of the text column, for formats that read only this column.
        rows: the rows of a dataset.
    """

    def __init__(
        self,
        name: str,
        account: FileAccount,
        settings: TextSettings,
        *,
        path: Path | None = None,
        open_member: Callable[[], IO[bytes]] | None = None,
        columns: Callable[[], SourceColumns] | None = None,
        rows: Any = None,
    ) -> None:
        self.name = name
        self.account = account
        self.settings = settings
        self.path = path
        self.rows = rows
        self._open_member = open_member
        self._columns = columns

    @property
    def columns(self) -> SourceColumns:
        """The choice of the text column for all files of the source."""
        assert self._columns is not None
        return self._columns()

    @property
    def is_whole_file(self) -> bool:
        """Whether it is a file on disk, not a member of an archive or standard input."""
        return self.path is not None and self._open_member is None

    @property
    def is_member(self) -> bool:
        """Whether it is a member of the archive `path`."""
        return self._open_member is not None

    @property
    def wanted_column(self) -> str | None:
        """The setting `text_column`, or the first column of `template`. Tables without a header are known by it."""
        template = self.settings.parsed_template
        return self.settings.text_column if template is None else template.columns[0]

    def blocks(self) -> Iterator[bytes]:
        """Yield the file's uncompressed bytes in blocks that are not empty. Raises the errors of `byte_streams`."""
        return blocks(self.name, self.path, self._open_member)

    def counted(self) -> Iterator[bytes]:
        """Yield the same blocks as `blocks`, and count their bytes in the account."""
        for block in self.blocks():
            self.account.bytes += len(block)
            yield block

    def seekable(self) -> IO[bytes]:
        """Open the uncompressed file for random access, and count its bytes. The caller closes it."""
        if self.path is not None and self.is_whole_file:
            file = seekable(self.name, self.path)
        else:
            file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
            try:
                for block in self.blocks():
                    file.write(block)
            except BaseException:
                file.close()
                raise
        self.account.bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        return file

    def texts(self, *, mixture_matters: bool = True) -> Iterator[str]:
        """Yield the decoded text in blocks that are not empty, with \\n as line ends.

        Args:
            mixture_matters: whether to report a mixture of line ends.
        """
        texts = Decoder(self.blocks(), self.account, self.settings).blocks()
        return even_line_ends(
            texts, self.account, translate=self.settings.clean_newlines, mixture_matters=mixture_matters
        )

    def lines(self, *, keep_ends: bool = False, mixture_matters: bool = True) -> Iterator[tuple[int, str]]:
        """Yield (line number from 1, line) of the decoded text."""
        return cut_lines(self.texts(mixture_matters=mixture_matters), keep_ends=keep_ends)


Reader = Callable[[SourceFile], Iterator[Any]]


@dataclass(frozen=True)
class Format:
    """A file format that can be read.

    Attributes:
        name: short stable name, as the data report shows it.
        kind: what its files are for people, to group formats in messages.
        suffixes: suffixes of its files, in lower case, with the dot.
        yields: what `read` yields.
        read: the reader. It imports its libraries when it is called.
        has_lines: whether a document's lines are lines of the file, for messages.
        has_columns: whether a reader that yields documents makes them of records, by `SourceFile.columns`.
        needs: import names of the optional packages that `read` needs; each has an entry in `extras.EXTRA_OF`.
        magic: the first bytes of its files, one of them, if they identify the format, or a pattern for them. They
            identify a file without a suffix.
        is_binary: whether its files can't be taken for text. If the first bytes of such a file are those of another
            format, it is read as that.
    """

    name: str
    kind: Kind
    suffixes: tuple[str, ...]
    yields: Yields
    read: Reader
    has_lines: bool = False
    has_columns: bool = True
    needs: tuple[str, ...] = ()
    magic: tuple[bytes | re.Pattern[bytes], ...] = ()
    is_binary: bool = False

    def begins(self, head: bytes) -> bool:
        """Return whether the first bytes of a file identify the format."""
        return any(each.match(head) if isinstance(each, re.Pattern) else head.startswith(each) for each in self.magic)
