"""FictionBook (.fb2): an e-book in one XML file. docs/formats.md states the rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from finetale.text.account import FileAccount
from finetale.text.formats.base import Chapter, Format, SourceFile
from finetale.text.formats.manuscript import Block, chapters_of, table_row
from finetale.text.formats.xml_safe import read_xml

_SPACES = re.compile(r"[ \t\r\n]+")
_PARAGRAPHS = frozenset(("p", "v", "subtitle", "text-author", "date", "td", "th"))
_NOTES = frozenset(("notes", "footnotes", "comments"))
_MAX_LEVEL = 9


def fb2_chapters(source: SourceFile) -> Iterator[Chapter]:
    """Yield the chapters of a book: its sections with titles.

    Raises:
        FileError: the XML is damaged, has declarations, or is nested too deeply.
    """
    book = _Book(source.account)
    blocks = source.counted()
    first = next(blocks, None)
    if first is not None:
        read_xml(source.name, chain((first,), blocks), book)
        yield from chapters_of(book.blocks)


class _Book:
    """Receives the elements of a book and collects its paragraphs."""

    def __init__(self, account: FileAccount) -> None:
        self.blocks: list[Block] = []
        self._account = account
        self._body = False
        self._notes = False
        self._skipping = 0  # depth within an element that is left out
        self._sections = 0
        self._pieces: list[str] | None = None
        self._title: list[str] | None = None
        self._row: list[list[Block]] | None = None
        self._num_groups = 0
        self._program = ""
        self._in_program = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        tag = tag.rpartition("}")[2]
        self._in_program = tag == "program-used"
        if tag == "body":
            self._body = True
            self._notes = attributes.get("name", "").lower() in _NOTES
        elif not self._body or self._skipping:
            self._skipping += bool(self._skipping)
        elif tag == "section":
            self._sections += 1
            if self._notes and self._sections == 1:
                self._account.leave_out("footnote")
        elif self._notes:
            return
        elif tag == "a" and attributes.get("type") == "note":
            self._skipping = 1
        elif tag == "image":
            self._account.leave_out("picture")
        elif tag == "title":
            self._title = []
        elif tag in ("stanza", "table"):
            self._num_groups += 1
        elif tag == "tr":
            self._row = []
        elif tag in _PARAGRAPHS:
            self._pieces = []

    def data(self, text: str) -> None:
        if self._in_program:
            self._program += text
        if self._pieces is not None and not self._skipping:
            self._pieces.append(text)

    def end(self, tag: str) -> None:
        tag = tag.rpartition("}")[2]
        if self._skipping:
            self._skipping -= 1
        elif tag == "body":
            self._body = self._notes = False
        elif not self._body:
            return
        elif tag == "section":
            self._sections -= 1
        elif tag == "title" and self._title is not None:
            if self._title:
                self.blocks.append(Block("\n".join(self._title), min(self._sections, _MAX_LEVEL)))
            self._title = None
        elif tag == "tr" and self._row is not None:
            self.blocks += table_row(self._row, f"table {self._num_groups}")
            self._row = None
        elif tag in _PARAGRAPHS and self._pieces is not None:
            text = "".join(self._pieces).strip(" \t\r\n")
            # FictionBook has no line breaks within a paragraph; pandoc writes them as line ends.
            self._end_paragraph(tag, text if self._program.strip() == "pandoc" else _SPACES.sub(" ", text))
            self._pieces = None

    def _end_paragraph(self, tag: str, text: str) -> None:
        if self._row is not None:
            self._row.append([Block(text)] if text else [])
        elif not text.strip():
            return
        elif self._title is not None:
            self._title.append(text)
        else:
            self.blocks.append(Block(text, None, f"stanza {self._num_groups}" if tag == "v" else None))


FORMATS = (Format("fb2", "book", (".fb2",), "chapters", fb2_chapters, needs=("lxml",)),)
