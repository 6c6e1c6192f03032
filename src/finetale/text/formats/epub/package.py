"""The contents of an e-book in EPUB 2 and 3: reading order, table of contents, kinds of pages, protection.

Knows nothing of the text of the pages.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from finetale.text.byte_streams import DAMAGED_HINT
from finetale.text.documents import FileError
from finetale.text.formats.base import SourceFile
from finetale.text.formats.html.encoding import decode_page
from finetale.text.formats.html.text import feed
from finetale.text.formats.xml_safe import xml_tree
from finetale.text.formats.zipped import Container

if TYPE_CHECKING:
    from lxml import etree

MAX_CONTENTS_BYTES = 16 << 20
_OBFUSCATED_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PROTECTIONS = {
    "META-INF/rights.xml": "Adobe",
    "META-INF/sinf.xml": "Apple",
    "META-INF/license.lcpl": "Readium LCP",
}
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document")
_DRM_HINT = "Get a copy without DRM from its publisher, or use the manuscript. Finetale does not remove protection."

PAGE_TYPES = {
    "cover": "cover page",
    "cover-image": "cover page",
    "titlepage": "title page",
    "title-page": "title page",
    "halftitlepage": "title page",
    "halftitle": "title page",
    "copyright-page": "copyright page",
    "copyright": "copyright page",
    "imprint": "copyright page",
    "colophon": "copyright page",
    "toc": "contents page",
    "landmarks": "contents page",
    "loi": "contents page",
    "lot": "contents page",
    "page-list": "contents page",
    "index": "index page",
}
"""Type of a page (epub:type, the guide of EPUB 2) → the noun under which it is left out."""


@dataclass
class Entry:
    """An entry of the table of contents: its title, the place it leads to, its depth from 1."""

    title: str
    member: str
    fragment: str
    depth: int


@dataclass
class Book:
    """The contents of an e-book.

    Attributes:
        pages: members with the pages in reading order.
        entries: member → entries of the table of contents that lead to it.
        types: member → its type, one of `PAGE_TYPES`.
        other: number of pages outside of the reading order (linear="no").
        pictures: number of pages that are pictures.
    """

    pages: list[str] = field(default_factory=list)
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    other: int = 0
    pictures: int = 0


@dataclass
class _Item:
    member: str
    media_type: str
    properties: str


def read_book(source: SourceFile, container: Container) -> Book:
    """Return the contents of an e-book.

    Raises:
        FileError: the book is protected, its package is damaged, or a page of its reading order is missing.
    """
    _check_protection(source.name, container)
    package = _package(source.name, container)
    root = xml_tree(source.name, container.blocks(package), package)
    folder = posixpath.dirname(package)
    items: dict[str, _Item] = {}
    for element in _elements(root, "item"):
        target, properties = resolved(folder, element.get("href", ""))[0], element.get("properties", "")
        items[element.get("id", "")] = _Item(target, element.get("media-type", "").lower(), properties)
    book = Book()
    _find_types(root, folder, container, book)
    references = list(_elements(root, "itemref"))
    if not references:
        detail = f"its package {package} names no pages, so there is no reading order"
        raise FileError(source.name, None, "damaged", detail, DAMAGED_HINT)
    linear = [each for each in references if each.get("linear", "yes").lower() != "no"] or references
    book.other = len(references) - len(linear)
    for reference in linear:
        item = items.get(reference.get("idref", ""))
        if item is None:
            detail = f"its reading order names {reference.get('idref', '')!r}, which its list of files does not have"
            raise FileError(source.name, None, "damaged", detail, DAMAGED_HINT)
        member = container.find(item.member)
        if member is None:
            detail = f"its reading order names the page {item.member}, which it does not hold"
            raise FileError(source.name, None, "damaged", detail, DAMAGED_HINT)
        if item.media_type.startswith("image/"):
            book.pictures += 1
        elif member == package or item.media_type not in _PAGES:
            detail = f"its reading order names {item.member}, which is not a page (its type is {item.media_type!r})"
            raise FileError(source.name, None, "damaged", detail, DAMAGED_HINT)
        elif member not in book.pages:
            book.pages.append(member)
            if "nav" in item.properties.split():
                book.types[member] = "toc"
    _find_entries(source, root, items, container, book)
    return book


def resolved(folder: str, href: str) -> tuple[str, str]:
    """Return (member, fragment) of a link in a file of this folder. The member may lie outside of the container."""
    path, _, fragment = href.partition("#")
    member = posixpath.normpath(posixpath.join(folder, unquote(path))) if path else ""
    return member, unquote(fragment)


def _check_protection(name: str, container: Container) -> None:
    for member, whose in _PROTECTIONS.items():
        if container.find(member):
            raise _protected(name, whose)
    member = "META-INF/encryption.xml"
    if container.find(member) is None:
        return
    for element in _elements(xml_tree(name, container.blocks(member), member), "EncryptionMethod"):
        parent = element.getparent()
        algorithm = element.get("Algorithm", "")
        is_data = parent is not None and _local(parent.tag) == "EncryptedData"
        if is_data and algorithm not in _OBFUSCATED_FONTS:
            raise _protected(name, f"encryption {algorithm.rpartition('#')[2]}" if algorithm else "encryption")


def _protected(name: str, how: str) -> FileError:
    return FileError(name, None, "drm", f"is a DRM-protected e-book ({how}), which can't be read", _DRM_HINT)


def _package(name: str, container: Container) -> str:
    """Return the member with the package document."""
    member = "META-INF/container.xml"
    if container.find(member):
        for element in _elements(xml_tree(name, container.blocks(member), member), "rootfile"):
            if found := container.find(resolved("", element.get("full-path", ""))[0]):
                return found
    packages = [each for each in container.members if each.lower().endswith(".opf")]
    if packages:
        return packages[0]
    raise FileError(name, None, "damaged", "is not an e-book (it holds no package document, .opf)", DAMAGED_HINT)


def _find_types(root: etree._Element, folder: str, container: Container, book: Book) -> None:
    """Set the types of pages that the guide of EPUB 2 names."""
    for element in _elements(root, "reference"):
        kind = element.get("type", "").lower().removeprefix("other.")
        found = container.find(resolved(folder, element.get("href", ""))[0])
        if found and kind in PAGE_TYPES:
            book.types[found] = kind


def _find_entries(
    source: SourceFile, root: etree._Element, items: dict[str, _Item], container: Container, book: Book
) -> None:
    """Read the table of contents: the navigation document of EPUB 3, else the NCX of EPUB 2."""
    entries: list[Entry] = []
    for item in items.values():
        if "nav" in item.properties.split() and (member := container.find(item.member)):
            if container.size(member) <= MAX_CONTENTS_BYTES:
                target = _Navigation(posixpath.dirname(member))
                feed(decode_page(container.read(member), source.account, source.settings), target, source.account)
                entries = target.entries
                for entry in target.landmarks:
                    if found := container.find(entry.member):
                        book.types.setdefault(found, entry.title)
            break
    if not entries:
        entries = list(_ncx_entries(source.name, items, container))
    for entry in entries:
        if found := container.find(entry.member):
            book.entries.setdefault(found, []).append(entry)


def _ncx_entries(name: str, items: dict[str, _Item], container: Container) -> Iterator[Entry]:
    for item in items.values():
        member = container.find(item.member)
        if item.media_type != "application/x-dtbncx+xml" or not member or container.size(member) > MAX_CONTENTS_BYTES:
            continue
        try:
            root = xml_tree(name, container.blocks(member), member)
        except FileError:  # the table of contents only divides the text; so damage in it does not prevent reading
            continue
        folder = posixpath.dirname(member)
        for point in _elements(root, "navPoint"):
            depth = sum(1 for above in point.iterancestors() if _local(above.tag) == "navPoint") + 1
            label = next((each.text or "" for each in _elements(point, "text")), "")
            content = next(_elements(point, "content"), None)
            if content is not None:
                yield Entry(" ".join(label.split()), *resolved(folder, content.get("src", "")), depth)
        return


class _Navigation:
    """Receives the elements of the navigation document of EPUB 3."""

    def __init__(self, folder: str) -> None:
        self.entries: list[Entry] = []
        self.landmarks: list[Entry] = []
        self._folder = folder
        self._kind = ""
        self._depth = 0
        self._entry: Entry | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        types = attributes.get("epub:type", "").lower().split()
        if tag == "nav":
            self._kind = next((kind for kind in ("toc", "landmarks") if kind in types), "")
        elif tag == "ol":
            self._depth += 1
        elif tag == "a" and self._kind:
            self._entry = Entry("", *resolved(self._folder, attributes.get("href", "")), self._depth)
            if self._kind == "toc":
                self.entries.append(self._entry)
            elif known := next((kind for kind in types if kind in PAGE_TYPES), ""):
                self._entry.title = known
                self.landmarks.append(self._entry)
                self._entry = None

    def data(self, text: str) -> None:
        if self._entry is not None:
            self._entry.title += text

    def end(self, tag: str) -> None:
        if tag == "a" and self._entry is not None:
            self._entry.title = " ".join(self._entry.title.split())
            self._entry = None
        elif tag == "ol":
            self._depth -= 1
        elif tag == "nav":
            self._kind = ""

    def comment(self, text: str) -> None:
        """Ignore a comment."""

    def close(self) -> None:
        """Receive the end of the document."""


def _elements(root: etree._Element, name: str) -> Iterator[etree._Element]:
    """Yield the elements with this local name, in any namespace."""
    return (element for element in root.iter() if isinstance(element.tag, str) and _local(element.tag) == name)


def _local(tag: object) -> str:
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""
