"""Styles and numbering of a Word document: headings, hidden text, markers of lists. Both parts are small."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetale.text.formats.manuscript import TITLE_LEVEL, counted
from finetale.text.formats.xml_safe import xml_tree
from finetale.text.formats.zipped import Container

if TYPE_CHECKING:
    from lxml import etree

OFF = ("0", "false", "off")
"""Values of a property that is switched off."""
MAX_LEVEL = 8
"""Deepest level of a list, from 0."""
_HEADING = re.compile(r"heading ([1-9])")
_FORMS = {"lowerLetter": "a", "upperLetter": "A", "lowerRoman": "i", "upperRoman": "I"}


@dataclass
class Style:
    """What a style says about the text: level of a heading, hidden, list, title of a table of contents."""

    level: int | None = None
    hidden: bool = False
    number: str | None = None
    depth: int = 0
    is_contents_title: bool = False


@dataclass
class Level:
    """One level of a list. `form` is "bullet", "none" or a number format; `text` has %1 for the number of level 1."""

    form: str = "bullet"
    text: str = ""
    start: int = 1


@dataclass
class Numbering:
    """The lists of a document, and the number of the last item of each level."""

    levels: dict[str, dict[int, Level]] = field(default_factory=dict)
    counts: dict[str, dict[int, int]] = field(default_factory=dict)

    def marker(self, number: str, depth: int) -> str | None:
        """Return the marker of the next item. None if its list has no markers."""
        levels = self.levels.get(number, {})
        level = levels.get(depth, Level())
        if level.form == "bullet":
            return level.text if level.text in ("–", "—", "―") else "-"
        counts = self.counts.setdefault(number, {})
        counts[depth] = counts.get(depth, level.start - 1) + 1
        for deeper in [each for each in counts if each > depth]:
            del counts[deeper]
        if level.form == "none" or not level.text:
            return None

        def shown(match: re.Match[str]) -> str:
            at = int(match.group(1)) - 1
            other = levels.get(at, Level("decimal"))
            return counted(counts.get(at, other.start), _FORMS.get(other.form, "1"))

        return re.sub(r"%([1-9])", shown, level.text).strip() or None


def integer(text: str | None, default: int, base: int = 10) -> int:
    try:
        return int(text or "", base)
    except ValueError:
        return default


def _children(element: etree._Element, *path: str) -> Iterator[etree._Element]:
    """Yield the descendants at a path of local names."""
    for child in element:
        if isinstance(child.tag, str) and child.tag.rpartition("}")[2] == path[0]:
            if len(path) == 1:
                yield child
            else:
                yield from _children(child, *path[1:])


def _value(element: etree._Element, *path: str) -> str | None:
    """Return the attribute w:val of the first element at a path; "" if it has none, None if there is no element."""
    found = next(_children(element, *path), None)
    return None if found is None else _attribute(found, "val") or ""


def _attribute(element: etree._Element, name: str) -> str | None:
    space = element.tag[: element.tag.index("}") + 1] if "}" in element.tag else ""
    value: str | None = element.get(f"{space}{name}")
    return value


def read_styles(container: Container, part: str | None) -> tuple[dict[str, Style], str | None]:
    """Return the styles by their ids, and the id of the default paragraph style."""
    if part is None or container.find(part) is None:
        return {}, None
    elements: dict[str, etree._Element] = {}
    default = None
    for each in _children(xml_tree(container.name, container.blocks(part), part), "style"):
        name = _attribute(each, "styleId")
        if name:
            elements.setdefault(name, each)
            is_default = _attribute(each, "default") not in (None, *OFF)
            if is_default and _attribute(each, "type") == "paragraph":
                default = name
    styles: dict[str, Style] = {}
    for name in elements:
        chain: list[etree._Element] = []
        current: str | None = name
        while current in elements and elements[current] not in chain and len(chain) < 20:
            chain.append(elements[current])
            current = _value(elements[current], "basedOn")
        styles[name] = _style_of(chain)
    return styles, default


def _style_of(chain: list[etree._Element]) -> Style:
    """Return a style from its element and those that it is based on, the nearest first."""
    style = Style()

    def first(*path: str) -> str | None:
        return next((value for each in chain if (value := _value(each, *path)) is not None), None)

    for each in chain:
        title = (_value(each, "name") or "").lower()
        outline = _value(each, "pPr", "outlineLvl")
        if match := _HEADING.fullmatch(title):
            style.level = int(match.group(1))
        elif title == "title":
            style.level = TITLE_LEVEL
        elif outline is not None:
            level = integer(outline, 9)
            style.level = level + 1 if 0 <= level < 9 else None
        else:
            continue
        break
    style.is_contents_title = (_value(chain[0], "name") or "").lower() == "toc heading"
    vanish = first("rPr", "vanish")
    style.hidden = vanish is not None and vanish not in OFF
    style.number = first("pPr", "numPr", "numId")
    style.depth = min(max(integer(first("pPr", "numPr", "ilvl"), 0), 0), MAX_LEVEL)
    return style


def read_numbering(container: Container, part: str | None) -> Numbering:
    numbering = Numbering()
    if part is None or container.find(part) is None:
        return numbering
    root = xml_tree(container.name, container.blocks(part), part)
    abstract: dict[str, dict[int, Level]] = {}
    for each in _children(root, "abstractNum"):
        abstract[_attribute(each, "abstractNumId") or ""] = {
            integer(_attribute(level, "ilvl"), 0): _level_of(level) for level in _children(each, "lvl")
        }
    for each in _children(root, "num"):
        levels = dict(abstract.get(_value(each, "abstractNumId") or "", {}))
        for override in _children(each, "lvlOverride"):
            at = integer(_attribute(override, "ilvl"), 0)
            for level in _children(override, "lvl"):
                levels[at] = _level_of(level)
            start = _value(override, "startOverride")
            if start is not None and at in levels:
                levels[at] = Level(levels[at].form, levels[at].text, integer(start, 1))
        numbering.levels[_attribute(each, "numId") or ""] = levels
    return numbering


def _level_of(element: etree._Element) -> Level:
    return Level(
        _value(element, "numFmt") or "decimal",
        _value(element, "lvlText") or "",
        integer(_value(element, "start"), 1),
    )
