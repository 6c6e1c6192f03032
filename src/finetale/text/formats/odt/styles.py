"""Styles and list styles of an OpenDocument text: titles, hidden text, markers of lists."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetale.text.formats.manuscript import counted

OFFICE = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}"
STYLE = "{urn:oasis:names:tc:opendocument:xmlns:style:1.0}"
TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
_MAX_PARENTS = 20


@dataclass
class ListLevel:
    """One level of a list style. `form` is None for bullets, "" for no number, else "1", "a", "A", "i" or "I"."""

    form: str | None = None
    before: str = ""
    after: str = ""
    bullet: str = ""
    start: int = 1
    shown: int = 1

    def marker(self, counts: list[int], levels: dict[int, ListLevel]) -> str | None:
        """Return the marker for the numbers of all levels so far. None if the list has none."""
        if self.form is None:
            return self.bullet if self.bullet in ("–", "—", "―") else "-"
        if not self.form:
            return None
        depth = len(counts)
        first = max(1, depth - max(1, self.shown) + 1)
        numbers = []
        for level in range(first, depth + 1):
            form = levels.get(level, self).form
            if form:
                numbers.append(counted(counts[level - 1], form))
        return f"{self.before}{'.'.join(numbers)}{self.after}".strip() or None


@dataclass
class Styles:
    """Receives the elements that define styles, in both files of a document."""

    parents: dict[tuple[str, str], str] = field(default_factory=dict)
    displays: dict[tuple[str, str], str] = field(default_factory=dict)
    lists: dict[str, dict[int, ListLevel]] = field(default_factory=dict)
    _style: tuple[str, str] = ("", "")
    _levels: dict[int, ListLevel] | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Receive the start of an element."""
        if tag == f"{STYLE}style":
            family = attributes.get(f"{STYLE}family", "")
            self._style = family, attributes.get(f"{STYLE}name", "")
            if parent := attributes.get(f"{STYLE}parent-style-name"):
                self.parents[self._style] = parent
        elif tag == f"{STYLE}text-properties":
            if display := attributes.get(f"{TEXT}display"):
                self.displays[self._style] = display
        elif tag == f"{TEXT}list-style":
            self._levels = self.lists.setdefault(attributes.get(f"{STYLE}name", ""), {})
        elif self._levels is not None and tag.startswith(f"{TEXT}list-level-style-"):
            level = ListLevel(bullet=attributes.get(f"{TEXT}bullet-char", ""))
            if tag.endswith("number"):
                level.form = attributes.get(f"{STYLE}num-format", "")
                level.before = attributes.get(f"{STYLE}num-prefix", "")
                level.after = attributes.get(f"{STYLE}num-suffix", "")
                level.start = integer(attributes.get(f"{TEXT}start-value"), 1)
                level.shown = integer(attributes.get(f"{TEXT}display-levels"), 1)
            self._levels[integer(attributes.get(f"{TEXT}level"), 1)] = level

    def end(self, tag: str) -> None:
        """Receive the end of an element."""
        if tag == f"{TEXT}list-style":
            self._levels = None
        elif tag == f"{STYLE}style":
            self._style = ("", "")

    def is_title(self, name: str) -> bool:
        """Return whether a paragraph style is "Title" or based on it."""
        return "Title" in self._chain("paragraph", name)

    def is_hidden(self, family: str, name: str) -> bool:
        """Return whether a style hides its text."""
        found = (self.displays.get((family, each)) for each in self._chain(family, name))
        return next((display for display in found if display is not None), "") == "none"

    def _chain(self, family: str, name: str) -> list[str]:
        chain = [name]
        while (parent := self.parents.get((family, chain[-1]))) and len(chain) < _MAX_PARENTS:
            chain.append(parent)
        return chain


def integer(text: str | None, default: int) -> int:
    """Return a small number from an attribute."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else default
