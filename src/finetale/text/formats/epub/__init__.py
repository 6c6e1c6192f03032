"""E-books: .epub, and Calibre's .htmlz. The rules are in docs/formats.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from finetale.text.documents import FileError
from finetale.text.formats.base import Chapter, Format, SourceFile
from finetale.text.formats.epub.package import PAGE_TYPES, Book, Entry, read_book
from finetale.text.formats.html import MAX_PAGE_BYTES, chapters_of_page
from finetale.text.formats.html.encoding import decode_page
from finetale.text.formats.html.text import Page, read_page
from finetale.text.formats.zipped import Container, open_container

_LINK_SHARE, _MIN_LINKS = 0.8, 5
_TYPED_CHARACTERS = 10_000
"""Maximum length of a page that is left out because the guide or its first section says what it is. Books in one page
have a guide too."""
_FURNITURE_CHARACTERS = 2000
"""Maximum length of a page that is a cover or title page by its name alone."""
_NAMES = {
    "cover": "cover page",
    "titlepage": "title page",
    "title_page": "title page",
    "title-page": "title page",
    "copyright": "copyright page",
}


def epub_chapters(source: SourceFile) -> Iterator[Chapter]:
    """Yield the chapters of an e-book in its reading order.

    Raises:
        FileError: the book is damaged or protected by DRM, or exceeds a limit.
    """
    container = open_container(source)
    if container is None:
        return
    with container:
        book = read_book(source, container)
        source.account.leave_out("page outside of the reading order", book.other)
        source.account.leave_out("picture", book.pictures)
        sections = _sections(source, container, book)
        number = 0
        current: list[str] = []
        title = ""
        for starts, name, text in sections:
            if starts and current:
                number += 1
                yield Chapter("\n\n".join(current) + "\n\n", title, number)
                current.clear()
            if not current:
                title = name
            current.append(text)
        if current:
            yield Chapter("\n\n".join(current), title, number + 1)


def htmlz_chapters(source: SourceFile) -> Iterator[Chapter]:
    """Yield the sections of the page in an .htmlz file that start with a heading 1. Raises the errors of `epub`."""
    container = open_container(source)
    if container is None:
        return
    with container:
        member = container.find("index.html")
        if member is None:
            hint = "Get the file again."
            raise FileError(source.name, None, "damaged", "is not a page of Calibre (it holds no index.html)", hint)
        page = read_page(_decoded(source, container, member), source.account, "book", member)
        yield from chapters_of_page(page)


def _sections(source: SourceFile, container: Container, book: Book) -> Iterator[tuple[bool, str, str]]:
    """Yield (whether a chapter starts, its title, its text) for the parts of the text."""
    has_contents = sum(map(len, book.entries.values())) > 1
    for member in book.pages:
        counts = source.account.left_out.copy()
        page = read_page(_decoded(source, container, member), source.account, "book", member)
        entries = book.entries.get(member, [])
        if furniture := _furniture(page, member, book.types.get(member, "")):
            source.account.left_out = counts
            source.account.leave_out(furniture)
            continue
        if not page.blocks:
            continue
        starts = _starts(page, entries)
        if len(starts) < 2 and sum(block.level == 1 for block in page.blocks) > 1:
            for title, text in page.sections():
                yield True, title, text
            continue
        first = page.blocks[0]
        for number, (start, title) in enumerate(starts):
            stop = starts[number + 1][0] if number + 1 < len(starts) else len(page.blocks)
            heading = page.blocks[start]
            name = title or (heading.text.replace("\n", " ") if heading.level else "")
            begins = bool(number or entries or first.level or not has_contents)
            yield begins, name, page.text(start, stop)


def _starts(page: Page, entries: list[Entry]) -> list[tuple[int, str]]:
    """Return (number of its first block, title) of the chapters in a page.

    They start at the entries of the table of contents that lead into the page: those of the smallest depth that has
    more than one, else the only one. What is before the first entry belongs to its chapter.
    """
    counts = Counter(entry.depth for entry in entries)
    depth = min((depth for depth, number in counts.items() if number > 1), default=min(counts, default=0))
    found: dict[int, str] = {}
    for entry in entries:
        start = page.anchors.get(entry.fragment, 0) if entry.fragment else 0
        if entry.depth <= depth and start < len(page.blocks):
            found.setdefault(start, entry.title)
    starts = sorted(found.items())
    if not starts or not starts[0][0]:
        return starts or [(0, "")]
    return [(0, starts[0][1]), *starts[1:]]


def _furniture(page: Page, member: str, kind: str) -> str:
    """Return the noun under which a whole page is left out, "" if it is text."""
    size = sum(len(block.text) for block in page.blocks)
    kinds = [*sorted(page.types), *((kind, *sorted(page.first_types)) if size < _TYPED_CHARACTERS else ())]
    for each in kinds:
        if each in PAGE_TYPES and size:
            return PAGE_TYPES[each]
    links = sum(block.num_links for block in page.blocks)
    if links >= _MIN_LINKS and sum(block.link_characters for block in page.blocks) >= _LINK_SHARE * size:
        return "contents page"
    stem = member.rpartition("/")[2].rpartition(".")[0].lower()
    return _NAMES.get(stem, "") if 0 < size < _FURNITURE_CHARACTERS else ""


def _decoded(source: SourceFile, container: Container, member: str) -> str:
    """Return the text of a page. An e-book is in UTF-8 or declares its encoding, whatever the settings say."""
    if container.size(member) > MAX_PAGE_BYTES:
        detail = f"its part {member} is a page of more than {MAX_PAGE_BYTES >> 20:,} MiB, the most that is read"
        raise FileError(source.name, None, "page_limit", detail, "Convert it with Calibre, which splits large pages.")
    settings = source.settings.model_copy(update={"encoding": None})
    return decode_page(container.read(member), source.account, settings)


FORMATS = (
    Format("epub", "book", (".epub",), "chapters", epub_chapters, needs=("lxml",), is_binary=True),
    Format("htmlz", "book", (".htmlz",), "chapters", htmlz_chapters, needs=("lxml",), is_binary=True),
)
