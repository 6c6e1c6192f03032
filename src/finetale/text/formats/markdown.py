"""Markdown as written: front matter left out, sections of level 1 as chapters."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import chain, islice

import yaml

from finetale.text.formats.base import Chapter, Format, SourceFile

_MAX_FRONT_LINES = 1000
_LINES_AT_ONCE = 10_000
"""Number of lines that are yielded together if no chapters are wanted, so that memory does not hold the whole file."""
_FRONT_ENDS = {"---": ("---", "..."), "+++": ("+++",)}
_HEADING = re.compile(r" {0,3}#[ \t]+(?P<title>.*?)[ \t]*#*\s*")
_UNDERLINE = re.compile(r" {0,3}=+\s*")
_FENCE = re.compile(r" {0,3}(?P<mark>`{3,}|~{3,})(?P<info>.*)", re.DOTALL)
_ATTRIBUTES = re.compile(r"\s*\{[^{}]*\}$")
"""Attributes of a heading in Pandoc's and Quarto's Markdown, such as {#intro .unnumbered}."""


def markdown_chapters(file: SourceFile) -> Iterator[Chapter]:
    """Yield the chapters of a Markdown file.

    A heading of level 1 starts a chapter, unless it is in a fenced code block. Text before the first heading is a
    chapter, and has the `title` of the front matter.
    """
    lines = file.lines(keep_ends=True)
    front, lines = _without_front_matter(lines)
    if front is not None:
        file.account.leave_out("front matter block")
    title = _text_of(front.get("title")) if front else ""
    start, pending = 0, ""
    texts: list[str] = []
    fence = previous = ""
    for number, line in lines:
        start = start or number
        new_title, from_line = None, number
        if fence:
            if (match := _FENCE.fullmatch(line)) and match["mark"].startswith(fence) and not match["info"].strip():
                fence = ""
        elif (match := _FENCE.fullmatch(line)) and not (match["mark"][0] == "`" and "`" in match["info"]):
            fence = match["mark"]
        elif match := _HEADING.fullmatch(line):
            new_title = match["title"]
        elif _UNDERLINE.fullmatch(line) and pending and not previous.strip():
            new_title, from_line = pending.strip(), number - 1
        if new_title is not None:
            if from_line < number:
                texts.pop()
            if "".join(texts).strip():
                yield Chapter("".join(texts), title, start)
                texts, start = [], from_line
            texts += [pending] if from_line < number else []
            title = _ATTRIBUTES.sub("", new_title)
        texts.append(line)
        # The line before an underline is a title only if it is a paragraph of one line.
        previous, pending = pending, "" if fence or new_title is not None else line
        if not line.strip():
            previous, pending = "", ""
            if len(texts) >= _LINES_AT_ONCE and file.settings.documents != "chapter":
                yield Chapter("".join(texts), title, start)
                texts, start = [], 0
    if texts:
        yield Chapter("".join(texts), title, start)


def _without_front_matter(
    lines: Iterator[tuple[int, str]],
) -> tuple[dict[str, object] | None, Iterator[tuple[int, str]]]:
    """Return the front matter and the other lines. None if the file does not start with front matter.

    Front matter is YAML between lines `---`, or TOML between lines `+++`. It must hold `key: value` pairs, because a
    line `---` may also be a horizontal rule.
    """
    first = next(lines, None)
    if first is None:
        return None, lines
    mark = first[1].rstrip()
    if mark not in _FRONT_ENDS:
        return None, chain([first], lines)
    head: list[tuple[int, str]] = []
    for numbered in islice(lines, _MAX_FRONT_LINES):
        head.append(numbered)
        if numbered[1].rstrip() in _FRONT_ENDS[mark]:
            front = _parsed("".join(line for _, line in head[:-1]), toml=mark == "+++")
            if front is not None:
                return front, lines
            break
    return None, chain([first], head, lines)


def _parsed(text: str, *, toml: bool) -> dict[str, object] | None:
    try:
        front = tomllib.loads(text) if toml else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError, ValueError, RecursionError):
        return None
    return front if isinstance(front, dict) else None


def _text_of(value: object) -> str:
    return " ".join(str(value).split()) if isinstance(value, str | int | float) else ""


FORMATS = (
    Format("markdown", "text", (".md", ".markdown", ".qmd", ".rmd"), "chapters", markdown_chapters, has_lines=True),
)
