"""Split the text of one file into raw documents: the whole file, chapters, lines, paragraphs, or separated pieces.

Knows nothing of bytes and records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from finetale.text.account import FileAccount
from finetale.text.formats import Chapter
from finetale.text.lines import cut_lines

_HELD_CHARACTERS = 1 << 23
MAX_HEADING = 80
"""Maximum characters of a line that may be the heading of a chapter."""
_MAX_WORDS_BEFORE_STOP = 3
_SENTENCE_ENDS = ("。", "！", "？", "…", "，", "；", ",", ";", "!", "?", "”", '"')
_HAN_HEADING = re.compile(
    r"(?:第[〇零一二三四五六七八九十百千两\d０-９]+[章回节節卷篇部集幕](?:\W|$)|(?:序章|楔子|引子|尾声|尾聲|后记|後記)$)"
)
_HEADING = re.compile(
    r"(?:chapter|kapitel|chapitre|capítulo|capitolo|hoofdstuk|rozdział|kapitola|глава|розділ)"
    r"\s+(?:\d+|[ivxlc]+|[^\W\d_]+)\b.*|(?:prologue|epilogue|prolog|epilog|пролог|эпилог)\.?",
    re.IGNORECASE,
)
"""Headings of chapters in plain text. Those without Chinese characters follow a blank line."""
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def separator_of(documents: str) -> str:
    """Return the separator in the setting `documents`, with its escapes resolved."""
    return re.sub(r"\\([ntr\\])", lambda match: ESCAPES[match.group(1)], documents)


def plain_documents(
    texts: Iterator[str], documents: str, account: FileAccount, first_line: int = 1, *, strip: bool = False
) -> Iterator[tuple[int, str]]:
    """Yield (first line, raw text) of each document. A file with only white space has no documents.

    Args:
        texts: the file's text in blocks, with \\n as line ends.
        documents: the setting of this name.
        account: receives the cleaning count "blank_pieces": the number of lines, or pieces between separators, that
            hold only white space and so are not documents.
        first_line: the line of the file at which the text starts.
        strip: leave out spaces and line ends at the end of a file that is one document, and count them in the account,
            because `Cleaner` would copy the text for this.
    """
    if documents in ("auto", "file"):
        text, end = _joined(texts)
        whole = [text if strip or not end else text + end]
        del text
        if whole[0] and not whole[0].isspace():
            if strip and end:
                account.cleaning["stripped_characters"] += len(end)
            yield first_line, whole.pop()  # so that memory does not hold it while the next file is read
    elif documents == "chapter":
        yield from _between_headings(texts, first_line)
    elif documents == "line":
        for numbered in cut_lines(texts, first_line):
            if numbered[1] and not numbered[1].isspace():
                yield numbered
            else:
                account.cleaning["blank_pieces"] += 1
    elif documents == "blank-line":
        yield from _between_blank_lines(texts, first_line)
    else:
        for number, piece in _between(texts, separator_of(documents), first_line):
            if piece and not piece.isspace():
                yield number, piece
            else:
                account.cleaning["blank_pieces"] += 1


def chapter_documents(chapters: Iterator[Chapter], documents: str, account: FileAccount) -> Iterator[tuple[int, str]]:
    """Yield (place, raw text) of each document of a manuscript.

    Args:
        chapters: the chapters of the file.
        documents: the setting of this name. With "chapter", each chapter is a document at its own place. Otherwise the
            joined text of the chapters is split like a text file that starts at the place of the first chapter.
        account: as for `plain_documents`.
    """
    if documents != "chapter":
        if (first := next(chapters, None)) is not None:
            texts = chain([first.text], (chapter.text for chapter in chapters))
            yield from plain_documents(texts, documents, account, first.place)
        return
    for chapter in chapters:
        if chapter.text and not chapter.text.isspace():
            yield chapter.place, chapter.text


def _between_headings(texts: Iterator[str], first_line: int) -> Iterator[tuple[int, str]]:
    """Yield the chapters of plain text: each begins with a line that reads like the heading of a chapter.

    Text before the first heading is a chapter. So is a text without such lines.
    """
    start, is_after_blank = first_line, True
    lines: list[str] = []
    for number, line in cut_lines(texts, first_line):
        if _is_heading(line, is_after_blank=is_after_blank):
            if any(map(str.strip, lines)):
                yield start, "\n".join(lines)
            start = number
            lines.clear()
        is_after_blank = not line.strip()
        lines.append(line)
    if any(map(str.strip, lines)):
        yield start, "\n".join(lines)


def _is_heading(line: str, *, is_after_blank: bool) -> bool:
    """Return whether a line reads like the heading of a chapter: `Chapter 3`, `第十二回 …`, `Prologue`."""
    text = line.strip()
    if len(text) > MAX_HEADING or text.endswith(_SENTENCE_ENDS):
        return False
    if text.endswith(".") and len(text.split()) > _MAX_WORDS_BEFORE_STOP:  # a sentence that begins "Chapter 3 …"
        return False
    return _HAN_HEADING.match(text) is not None or (is_after_blank and _HEADING.fullmatch(text) is not None)


def _joined(texts: Iterator[str]) -> tuple[str, str]:
    """Join blocks. Return the text, and apart from it the spaces and line ends at the end of the last block.

    Memory never holds all blocks and the text at once.
    """
    text = last = ""
    held: list[str] = []
    size = 0
    for block in texts:
        held.append(last)
        size += len(last)
        last = block
        if size > _HELD_CHARACTERS and 8 * size > len(text):
            text += "".join(held)  # CPython enlarges the text in place. Other Pythons copy it a few times.
            held, size = [], 0
    kept = last.rstrip(" \n\t")
    text += "".join([*held, kept])
    return text, last[len(kept) :]


def _between_blank_lines(texts: Iterator[str], first_line: int) -> Iterator[tuple[int, str]]:
    start = first_line
    lines: list[str] = []
    for number, line in cut_lines(texts, first_line):
        if line and not line.isspace():
            if not lines:
                start = number
            lines.append(line)
        elif lines:
            yield start, "\n".join(lines)
            lines.clear()
    if lines:
        yield start, "\n".join(lines)


def _between(texts: Iterator[str], separator: str, first_line: int) -> Iterator[tuple[int, str]]:
    number = first_line
    pending: list[str] = []  # blocks without a separator, joined only once, so that the time is linear
    overlap = len(separator) - 1
    for text in texts:
        pending.append(text)
        tail = pending[-2][-overlap:] if overlap and len(pending) > 1 else ""
        if separator not in tail + text and len(text) > overlap:
            continue
        pieces = "".join(pending).split(separator)
        pending = [pieces.pop()]
        for piece in pieces:
            yield number, piece
            number += piece.count("\n") + separator.count("\n")
    if last := "".join(pending):
        yield number, last
