"""The blocks of a manuscript (paragraphs, headings, list items, rows of tables) → its chapters.

The readers of word processors' formats share these rules; docs/formats.md states them. Knows no file format.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from finetale.text.account import FileAccount
from finetale.text.formats.base import Chapter, SourceFile
from finetale.text.formats.zipped import Container, open_container

CELL_SEPARATOR = " | "
TITLE_LEVEL = 0
"""Level of a paragraph in the style "Title". Headings have the levels from 1."""
LIST = "list"
"""Group of the items of a list."""
_DASHES = ("–", "—", "―")
_DIGITS = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"),
           (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip
_LINE_SPACE = re.compile(r"\s*\n\s*")


@dataclass(slots=True)
class Block:
    """A paragraph, or a line that is joined with its neighbours.

    Attributes:
        text: its text without white space at its ends. Not empty.
        level: level of a heading, TITLE_LEVEL for a title, None for other text.
        group: consecutive blocks of the same group are lines of one paragraph. None for a separate paragraph.
    """

    text: str
    level: int | None = None
    group: str | None = None


def zipped_chapters(
    file: SourceFile, blocks_of: Callable[[Container, FileAccount], Sequence[Block]]
) -> Iterator[Chapter]:
    """Yield the chapters of a document in a zip container. None if the file is empty.

    Args:
        blocks_of: reads the blocks of the document.
    """
    container = open_container(file)
    if container is None:
        return
    with container:
        blocks = blocks_of(container, file.account)
    yield from chapters_of(blocks)


def chapters_of(blocks: Sequence[Block]) -> Iterator[Chapter]:
    """Yield the chapters of a manuscript, which start at its headings of one level.

    This level is the highest one that occurs more than once, else the highest one. Headings above it start a chapter
    too. A heading that follows another one without text between them continues its chapter, so that a chapter includes
    the titles of the book and the part before it.
    """
    levels = Counter(block.level for block in blocks if block.level is not None)
    repeated = [level for level, number in levels.items() if number > 1]
    limit = min(repeated or levels, default=-1)
    chapters: list[list[Block]] = []
    titles: list[str] = []
    has_text = False  # the current chapter has more than headings
    for block in blocks:
        starts = block.level is not None and block.level <= limit
        if not chapters or (starts and has_text):
            chapters.append([])
            titles.append("")
            has_text = False
        if starts:
            titles[-1] = block.text
        chapters[-1].append(block)
        has_text = has_text or block.level is None
    for number, (title, chapter) in enumerate(zip(titles, chapters, strict=True), 1):
        end = "\n\n" if number < len(chapters) else "\n"
        yield Chapter(_joined(chapter) + end, title, number)


def _joined(blocks: Iterable[Block]) -> str:
    pieces: list[str] = []
    group: str | None = None
    for block in blocks:
        if pieces:
            pieces.append("\n" if block.group is not None and block.group == group else "\n\n")
        pieces.append(block.text)
        group = block.group
    return "".join(pieces)


def table_row(cells: Sequence[Sequence[Block]], group: str) -> list[Block]:
    """Return the blocks of a row: one line with its cells, or the paragraphs of its only cell."""
    if len(cells) == 1:
        return list(cells[0])
    line = CELL_SEPARATOR.join(_LINE_SPACE.sub(" ", " ".join(block.text for block in cell)) for cell in cells)
    return [Block(line.strip(), None, group)] if any(cells) else []


def list_item(text: str, marker: str, level: int) -> Block:
    """Return a list item.

    Args:
        text: its text.
        marker: its marker without the space behind it. Items with a dash as marker are speech, hence paragraphs.
        level: its level from 0, which indents it.
    """
    if marker in _DASHES:
        return Block(f"{marker} {text}")
    return Block(f"{'  ' * level}{marker} {text}", None, LIST)


def counted(number: int, form: str) -> str:
    """Return a number of a list. `form` is "a", "A", "i", "I", or anything else for digits."""
    if form in ("i", "I") and 0 < number < 4000:
        text = ""
        for value, digits in _DIGITS:
            text += digits * (number // value)
            number %= value
    elif form in ("a", "A") and number > 0:
        text = chr(ord("a") + (number - 1) % 26) * min(9, 1 + (number - 1) // 26)
    else:
        return str(number)
    return text.upper() if form.isupper() else text
