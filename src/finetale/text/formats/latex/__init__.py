"""LaTeX as text: the body without commands, with its chapters. Included files are not followed.

docs/log.md compares it with the package pylatexenc, and docs/formats.md states the rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

from finetale.text.formats.base import Chapter, Format, SourceFile
from finetale.text.formats.latex.names import (
    ACCENTS,
    BREAKS,
    DEFINITIONS,
    DROPPED,
    DROPPED_BLOCKS,
    LEFT_OUT,
    LEVELS,
    LIGATURES,
    MATH_BLOCKS,
    SYMBOLS,
    TABLES,
    VERBATIM,
)

_MAX_DEPTH = 8
_MAX_EXPANDED = 2_000_000
"""Maximum number of characters that a file's own commands may expand to."""

_LINE, _KEPT, _START = "\x01", "\x02", "\x03"
"""Marks in the text: a forced line end, something kept as written, the start of a section."""
_TOKEN = re.compile(
    r"""\\(?P<name>[A-Za-z@]+)(?P<star>\*?)(?P<space>[ \t]*(?:\r?\n[ \t]*(?![ \t\r\n]))?)
    | \\(?P<sign>.)
    | (?P<comment>%[^\n]*(?:\n(?![ \t\r]*\n)[ \t]*)?)
    | (?P<math>\$\$?)
    | (?P<ligature>---?|``|''|,,|"[`']|[?!]`|`|')
    | (?P<brace>[{}])
    | (?P<tie>~)
    | (?P<cell>&)
    """,
    re.VERBOSE | re.DOTALL,
)
_BRACE = re.compile(r"\\.|%[^\n]*|[{}]|\\begin\s*\{(?:verbatim|lstlisting|minted)\*?\}", re.DOTALL)
_BEGIN_DOCUMENT = re.compile(r"^[^%\n]*?\\begin\s*\{document\}", re.MULTILINE)
_SPACE = re.compile(r"[ \t\r\n]*")
_ARGUMENT = re.compile(r"#([1-9])")
_WIDE = "[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]"
_WIDE_BREAK = re.compile(rf"(?<={_WIDE})[ \t]*\r?\n[ \t]*(?={_WIDE})")


def latex_chapters(file: SourceFile) -> Iterator[Chapter]:
    """Yield the chapters of a LaTeX file, each at its line: `\\chapter`, or `\\section` if there is none."""
    source = "".join(file.texts()).translate({1: None, 2: None, 3: None})
    leave_out = file.account.leave_out
    macros: dict[str, tuple[int, str]] = {}
    start = 0
    if match := _BEGIN_DOCUMENT.search(source):
        start = match.end()
        leave_out("preamble")
        _Converter(source[:start], macros, lambda what: None, _Budget()).text()  # for the commands that it defines
    converter = _Converter(source[start:], macros, leave_out, _Budget())
    text = converter.text()
    sections = converter.sections
    top = min((level for level, _ in sections), default=0)
    pieces = text.split(_START)
    chapters: list[tuple[int, list[str]]] = [(_first_line(source, start), [pieces[0]])]
    line, counted = 1, 0
    for (level, position), piece in zip(sections, pieces[1:], strict=True):
        if level == top:
            line += source.count("\n", counted, start + position)
            counted = start + position
            if any(map(str.strip, chapters[-1][1])):
                chapters.append((line, []))
            else:
                chapters[-1] = (line, [])
        chapters[-1][1].append(piece)
    shaped = [(line, _shaped("".join(parts), converter.kept)) for line, parts in chapters]
    shaped = [(line, text) for line, text in shaped if text]
    for index, (line, text) in enumerate(shaped):
        title = text.partition("\n")[0] if len(shaped) > 1 or top else ""
        yield Chapter(text + ("\n\n" if index < len(shaped) - 1 else "\n"), title, line)


def _first_line(source: str, start: int) -> int:
    """Return the line of the first character after a position that is not white space."""
    match = _SPACE.match(source, start)
    return source.count("\n", 0, match.end() if match else start) + 1


def _shaped(text: str, kept: list[str]) -> str:
    """Return text with single spaces, blank lines between paragraphs, and what was kept as written."""
    paragraphs = []
    for paragraph in re.split(r"\n[ \t\r]*\n\s*", _WIDE_BREAK.sub("", text)):
        lines = (" ".join(re.split(r"[ \t\r\n]+", line)).strip(" ") for line in paragraph.split(_LINE))
        if shaped := "\n".join(lines).strip("\n "):
            paragraphs.append(shaped)
    return re.sub(f"{_KEPT}(\\d+){_KEPT}", lambda match: kept[int(match[1])], "\n\n".join(paragraphs))


class _Budget:
    """How many characters the commands of a file may still expand to."""

    def __init__(self) -> None:
        self.left = _MAX_EXPANDED


class _Converter:
    """Converts a piece of LaTeX. Paragraphs are shaped later.

    Args:
        source: the LaTeX.
        macros: number of arguments and body of the commands that the file defines; more are added.
        leave_out: counts what is left out.
        budget: limit of expansion.
        kept: receives what is kept as written.
        depth: number of commands that are being expanded.
    """

    def __init__(
        self,
        source: str,
        macros: dict[str, tuple[int, str]],
        leave_out: Callable[[str], None],
        budget: _Budget,
        kept: list[str] | None = None,
        depth: int = 0,
    ) -> None:
        self._source = source
        self._macros = macros
        self._leave_out = leave_out
        self._budget = budget
        self._depth = depth
        self.kept: list[str] = [] if kept is None else kept
        self.sections: list[tuple[int, int]] = []
        """Level (1 for the top level of its kind, 0 for others) and position of each section."""
        self._closes = _closing_braces(source)
        self._out: list[str] = []
        self._at_close: dict[int, str] = {}
        self._in_table = 0
        self._lists: list[int] = []
        self._position = 0
        self._ended = False
        self._found: dict[str, int] = {}  # end → its next place

    def text(self) -> str:
        """Return the text."""
        source, out = self._source, self._out
        while (match := _TOKEN.search(source, self._position)) is not None:
            out.append(source[self._position : match.start()])
            self._position = match.end()
            kind = match.lastgroup
            if kind == "space":
                self._command(match["name"], match)
                if self._ended:
                    return "".join(out)
            elif kind == "sign":
                self._sign(match["sign"], match.start())
            elif kind == "comment":
                if match[0].strip("% \t\r\n"):
                    self._leave_out("comment")
            elif kind == "math":
                self._math(match[0], match[0], match.start())
            elif kind == "ligature":
                out.append(LIGATURES[match[0]])
            elif kind == "brace":
                out.append(self._at_close.pop(match.start(), ""))
            elif kind == "tie":
                out.append("\u00a0")
            else:
                out.append(" | " if self._in_table else "&")
        out.append(source[self._position :])
        return "".join(out)

    # -- arguments

    def _group(self) -> tuple[int, int] | None:
        """Return the place of the next argument in braces and skip it. None if there is none, or it has no end."""
        match = _SPACE.match(self._source, self._position)
        start = match.end() if match else self._position
        end = self._closes.get(start)
        if end is None or self._source.count("\n", self._position, start) > 1:
            return None
        self._position = end + 1
        return start + 1, end

    def _argument(self) -> str:
        """Return the next argument, in braces or a command, and skip it."""
        place = self._group()
        if place is not None:
            return self._source[slice(*place)]
        match = re.compile(r"\s*(\\[A-Za-z@]+|\\.|[^\s\\{}])").match(self._source, self._position)
        if match is None:
            return ""
        self._position = match.end()
        return match[1]

    def _option(self) -> str | None:
        """Return the next option in brackets and skip it. None if there is none."""
        match = re.compile(r"[ \t]*\n?[ \t]*\[").match(self._source, self._position)
        if match is None:
            return None
        end = self._source.find("]", match.end(), match.end() + 2000)
        if end < 0 or "\n\n" in self._source[match.end() : end]:
            return None
        option = self._source[match.end() : end]
        self._position = end + 1
        return option

    def _find(self, end: str, start: int) -> int:
        """Return the first place of an end at or after a position, else -1. Positions must ascend."""
        place = self._found.get(end, 0)
        if 0 <= place < start or end not in self._found:
            self._found[end] = place = self._source.find(end, start)
        return place

    def _converted(self, source: str) -> str:
        """Return the text of a piece of LaTeX, such as the body of a command."""
        self._budget.left -= len(source)
        if self._depth >= _MAX_DEPTH or self._budget.left < 0:
            return ""
        inner = _Converter(source, self._macros, self._leave_out, self._budget, self.kept, self._depth + 1)
        inner._in_table = self._in_table
        return inner.text().replace(_START, "")

    def _keep(self, text: str) -> None:
        self._out.append(f"{_KEPT}{len(self.kept)}{_KEPT}")
        self.kept.append(text)

    # -- commands

    def _command(self, name: str, match: re.Match[str]) -> None:
        out = self._out
        if name in ("begin", "end"):
            self._environment(name, match.start())
        elif name in LEVELS:
            self._section(name, match.start())
        elif name in DEFINITIONS:
            self._define(name)
        elif name == "item":
            self._item()
        elif name == "verb":
            mark = self._source[self._position : self._position + 1]
            end = self._source.find(mark, self._position + 1, self._position + 1000) if mark else -1
            if end >= 0:
                self._keep(self._source[self._position + 1 : end])
                self._position = end + 1
        elif name == "iffalse":
            end = self._find("\\fi", self._position)
            if end >= 0:
                self._leave_out("comment")
                self._position = end + 3
        elif name in ("left", "right") or name in BREAKS:
            self._option()
            out.append(BREAKS.get(name, ""))
        elif name in SYMBOLS:
            out.append(SYMBOLS[name])
            if "\n" in match["space"] and not self._source.startswith("{}", self._position):
                out.append(" ")
            if self._source.startswith("{}", self._position):
                self._position += 2
        elif name in ACCENTS:
            self._accent(name)
        elif name in LEFT_OUT or name in DROPPED:
            if name in LEFT_OUT:
                self._leave_out(LEFT_OUT[name])
            while self._option() is not None:
                pass
            for _ in range(DROPPED.get(name, 1)):
                self._group()
        elif name in self._macros:
            self._expand(name)
        else:  # an unknown command; the text of its arguments follows
            self._option()

    def _sign(self, sign: str, start: int) -> None:
        if sign in "([":
            self._math("\\" + sign, "\\)" if sign == "(" else "\\]", start)
        elif sign == "\\":
            if self._source.startswith("*", self._position):
                self._position += 1
            self._option()
            self._out.append(_LINE)
        elif sign in ACCENTS:
            self._accent(sign)
        elif sign in " \n\t,;:>":
            self._out.append(" ")
        elif sign not in "-/@!)]<+=":
            self._out.append(sign)

    def _accent(self, name: str) -> None:
        letter = self._argument()
        letter = {"\\i": "i", "\\j": "j"}.get(letter.strip(), letter)
        if len(letter) > 1:
            letter = self._converted(letter)
        self._out.append(unicodedata.normalize("NFC", letter[:1] + ACCENTS[name] + letter[1:]) if letter else "")

    def _math(self, opening: str, closing: str, start: int) -> None:
        """Keep a formula unchanged. Without an end in the next 20,000 characters, its mark is text."""
        end = self._find(closing, start + len(opening))
        while end >= 0 and self._source[end - 1] == "\\":
            end = self._find(closing, end + 1)
        if not 0 <= end < start + 20_000 or ("$" in opening and "\n\n" in self._source[start:end]):
            self._out.append(opening.strip("\\(["))
            return
        self._position = end + len(closing)
        self._keep(self._source[start : self._position])

    def _section(self, name: str, start: int) -> None:
        self._option()
        level = LEVELS[name]
        self._out.append("\n\n")
        if level:
            self._out.append(_START)
            self.sections.append((level, start))
        if (place := self._group()) is not None:
            self._at_close[place[1]] = "\n\n" if name not in ("paragraph", "subparagraph") else " "
            self._position = place[0]

    def _item(self) -> None:
        label = self._option()
        if not self._lists:
            mark = ""
        elif label is not None:
            mark = self._converted(label) + " "
        elif self._lists[-1] < 0:
            mark = "- "
        else:
            self._lists[-1] += 1
            mark = f"{self._lists[-1]}. "
        self._out.append(_LINE + mark)

    def _define(self, name: str) -> None:
        """Remember a command that the file defines, so that it can be expanded."""
        self._leave_out("definition")
        if name in ("newenvironment", "renewenvironment"):
            self._group()
            while self._option() is not None:
                pass
            self._group(), self._group()
            return
        defined = self._argument().strip().lstrip("\\")
        if name in ("def", "gdef", "edef", "xdef"):
            brace = self._source.find("{", self._position, self._position + 200)
            arguments = len(_ARGUMENT.findall(self._source[self._position : brace])) if brace >= 0 else 0
            self._position = max(brace, self._position)
        else:
            number = self._option()
            arguments = int(number) if number and number.strip().isdecimal() else 0
            if self._option() is not None:  # the first argument is optional: expanding it would need more
                arguments = -1
        place = self._group()
        if place is not None and arguments >= 0 and defined:
            self._macros[defined] = (min(arguments, 9), self._source[slice(*place)])

    def _expand(self, name: str) -> None:
        number, body = self._macros[name]
        arguments = [self._argument() for _ in range(number)]
        if number:
            body = _ARGUMENT.sub(
                lambda match: arguments[int(match[1]) - 1] if int(match[1]) <= number else "", body[:100_000]
            )
        elif self._source.startswith("{}", self._position):
            self._position += 2
        self._out.append(self._converted(body))

    def _environment(self, name: str, start: int) -> None:
        place = self._group()
        if place is None:
            return
        kind = self._source[slice(*place)].strip()
        bare = kind.rstrip("*")
        if name == "end":
            if kind == "document":
                self._ended = True
            self._in_table -= bare in TABLES and self._in_table > 0
            if bare in ("itemize", "enumerate", "description") and self._lists:
                self._lists.pop()
            self._out.append("\n\n")
            return
        whole = bare in VERBATIM or bare in MATH_BLOCKS or bare in DROPPED_BLOCKS
        closing = f"\\end{{{kind}}}"
        end = self._find(closing, self._position) if whole else -1
        self._out.append("\n\n")
        if end >= 0:
            if bare in DROPPED_BLOCKS:
                self._leave_out(DROPPED_BLOCKS[bare])
            elif bare in VERBATIM:
                self._option()
                for _ in range(VERBATIM[bare]):
                    self._group()
                self._keep(self._source[self._position : end].strip("\r\n"))
            else:
                self._keep(self._source[start : end + len(closing)])
            self._position = end + len(closing)
            self._out.append("\n\n")
            return
        if bare == "document":
            return
        while self._option() is not None:
            pass
        for _ in range(TABLES.get(bare, DROPPED.get(bare, 0))):
            self._group()
            self._option()
        self._in_table += bare in TABLES
        if bare in ("itemize", "enumerate", "description"):
            self._lists.append(0 if bare == "enumerate" else -1)


def _closing_braces(source: str) -> dict[int, int]:
    """Return the place of the closing brace for each opening one that has one."""
    closes: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(source):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closes[opened.pop()] = match.start()
    return closes


FORMATS = (Format("latex", "text", (".tex", ".latex", ".ltx"), "chapters", latex_chapters),)
