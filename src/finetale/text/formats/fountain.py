"""Screenplays in Fountain as written: title page, notes and boneyard left out, sections as chapters.

The syntax is described at fountain.io/syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from finetale.text.account import FileAccount
from finetale.text.formats.base import Chapter, Format, SourceFile

_KEYS = {
    "title", "credit", "author", "authors", "source", "draft", "date", "contact", "copyright", "revision", "notes",
    "font", "format", "episode", "series",
}  # fmt: skip
"""Words of the keys that start a title page."""
_KEY = re.compile(r"(?P<key>[A-Za-z][A-Za-z ]*?)[ \t]*:.*")
_SECTION = re.compile(r"^#(?!#)[ \t]*(?P<title>.*)$", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_EMPTIED = "\x00"
"""Stands for what was left out, until the lines that held nothing else are removed."""
_EMPTIED_LINES = re.compile(f"^[ \t]*{_EMPTIED}[ \t{_EMPTIED}]*(?:\n\n|\n|$)", re.MULTILINE)


def fountain_chapters(file: SourceFile) -> Iterator[Chapter]:
    """Yield the chapters of a screenplay, each with its number. Text before the first section is a chapter."""
    text = "".join(file.texts()).replace(_EMPTIED, "")
    title, text = _without_title_page(text, file.account)
    text = _without_spans(text, "/*", "*/", file.account, "boneyard")
    text = _without_spans(text, "[[", "]]", file.account, "note", within_paragraph=True)
    text = _EMPTIED_LINES.sub("", text).replace(_EMPTIED, "")
    starts = list(_SECTION.finditer(text))
    borders = [match.start() for match in starts] + [len(text)]
    number = 1
    if (before := text[: borders[0]]).strip():
        yield Chapter(before, title, number)
        number += 1
    for match, end in zip(starts, borders[1:], strict=True):
        yield Chapter(text[match.start() : end], match["title"].strip(), number)
        number += 1


def _without_title_page(text: str, account: FileAccount) -> tuple[str, str]:
    """Return the title, and the text without its title page.

    A title page is a first paragraph of `Key: value` lines, and its first key is a usual one. So the transition
    "FADE IN:" does not start a title page.
    """
    text = text.lstrip("\n")
    page, _, rest = text.partition("\n\n")
    first, _, more = page.partition("\n")
    match = _KEY.fullmatch(first)
    if match is None or not set(match["key"].lower().split()) & _KEYS:
        return "", text
    account.leave_out("title page")
    if match["key"].lower() != "title":
        return "", rest
    values = [first.partition(":")[2], *(line for line in more.split("\n") if line[:1] in (" ", "\t"))]
    return " ".join(values[0].split() or (values[1].split() if len(values) > 1 else [])).strip("_*"), rest


def _without_spans(
    text: str, start: str, end: str, account: FileAccount, what: str, *, within_paragraph: bool = False
) -> str:
    """Replace each `start … end` by a mark and count it. A start without an end is text."""
    pieces = []
    done = 0
    limit = -1 if within_paragraph else len(text)
    while (opened := text.find(start, done)) >= 0:
        if limit < opened:
            blank = _BLANK_LINE.search(text, opened)
            limit = blank.start() if blank else len(text)
        closed = text.find(end, opened + len(start), limit)
        if closed < 0 and limit == len(text):
            break
        pieces.append(text[done : limit if closed < 0 else opened])
        done = limit
        if closed >= 0:
            pieces.append(_EMPTIED)
            done = closed + len(end)
            account.leave_out(what)
    return "".join([*pieces, text[done:]])


FORMATS = (Format("fountain", "text", (".fountain", ".spmd"), "chapters", fountain_chapters),)
