"""Test e-books: reading order, chapters, omitted pages, copy protection, damaged files."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.reading import read_parts

CONTAINER = (
    '<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/content.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
ONE = "<h1>The pier</h1><p>The ferry was late again.</p>"
TWO = "<h1>The moon</h1><p>It moves the water.</p>"
ENCRYPTION = (
    '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><EncryptedData '
    'xmlns="http://www.w3.org/2001/04/xmlenc#"><EncryptionMethod Algorithm="{}"/><CipherData>'
    '<CipherReference URI="OEBPS/{}"/></CipherData></EncryptedData></encryption>'
)

Read = Callable[..., tuple[list[str], dict[str, Any]]]


def page(body: str, attributes: str = "") -> str:
    """Return a page of XHTML."""
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<html xmlns="http://www.w3.org/1999/xhtml" '
        f'xmlns:epub="http://www.idpf.org/2007/ops"><head><title/></head><body {attributes}>{body}</body></html>'
    )


def book(
    pages: dict[str, str],
    *,
    spine: list[str] | None = None,
    properties: dict[str, str] | None = None,
    guide: str = "",
    others: dict[str, str] | None = None,
    kinds: dict[str, str] | None = None,
) -> bytes:
    """Return an e-book.

    Args:
        pages: href → content of <body>, or the whole page.
        spine: attributes of the itemrefs; None for all pages in order.
        properties: href → properties of its item.
        guide: content of the guide.
        others: member → content of further members.
        kinds: href → media type.
    """
    items = "".join(
        f'<item id="{number}" href="{href}" media-type="{(kinds or {}).get(href, "application/xhtml+xml")}" '
        f'properties="{(properties or {}).get(href, "")}"/>'
        for number, href in enumerate(pages)
    )
    references = spine if spine is not None else [f'idref="{number}"' for number in range(len(pages))]
    itemrefs = "".join(f"<itemref {each}/>" for each in references)
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata/><manifest>'
        f'{items}<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest>'
        f"<spine>{itemrefs}</spine><guide>{guide}</guide></package>"
    )
    members = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER, "OEBPS/content.opf": package}
    members |= {f"OEBPS/{href}": text if text.startswith("<?xml") else page(text) for href, text in pages.items()}
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in (members | (others or {})).items():
            file.writestr(name, text)
    return target.getvalue()


def ncx(*points: tuple[str, str]) -> dict[str, str]:
    """Return the table of contents of EPUB 2 as a member."""
    inner = "".join(
        f'<navPoint id="n{number}"><navLabel><text>{title}</text></navLabel><content src="{href}"/></navPoint>'
        for number, (title, href) in enumerate(points)
    )
    return {"OEBPS/toc.ncx": f'<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>{inner}</navMap></ncx>'}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a book, read its chapters, and return them and the entry of its file in the report."""

    def read(data: bytes, documents: str = "chapter") -> tuple[list[str], dict[str, Any]]:
        path = tmp_path / "book.epub"
        path.write_bytes(data)
        settings = TextSettings(validation_fraction=0, test_fraction=0, documents=documents)
        parts, report = read_parts([str(path)], settings)
        return [part.text for part in parts], report.to_dict()["files"][0]

    return read


CHAPTERS = ["The pier\n\nThe ferry was late again.", "The moon\n\nIt moves the water."]


def test_the_spine_gives_the_order_and_each_page_is_a_chapter(read: Read) -> None:
    data = book({"b.xhtml": TWO, "a.xhtml": ONE}, spine=['idref="1"', 'idref="0"'])
    texts, account = read(data)
    assert texts == CHAPTERS
    assert account["bytes"] == len(data)
    assert account["kind"] == "epub"
    assert read(data, "auto")[0] == ["\n\n".join(CHAPTERS)]


def test_percent_encoded_and_wrong_case_links_are_found(read: Read) -> None:
    data = book({"Text/a%20b%C3%A9.xhtml": ONE, "two.XHTML": TWO})
    data = _renamed(data, "OEBPS/two.XHTML", "OEBPS/Two.xhtml")
    assert read(_renamed(data, "OEBPS/Text/a%20b%C3%A9.xhtml", "OEBPS/Text/a bé.xhtml"))[0] == CHAPTERS


def _renamed(data: bytes, old: str, new: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(target, "w") as after:
        for info in before.infolist():
            after.writestr(new if info.filename == old else info.filename, before.read(info))
    return target.getvalue()


def test_entries_of_the_contents_divide_a_page(read: Read) -> None:
    body = "<p>A motto.</p><p id='one'>1</p><p>The ferry.</p><p>Late.<a id='two'/></p><p id='two'>2</p><p>The moon.</p>"
    others = ncx(("First", "a.xhtml#one"), ("Second", "a.xhtml#tw%6F"))
    texts, _ = read(book({"a.xhtml": body.replace("<a id='two'/>", "")}, others=others))
    assert texts == ["A motto.\n\n1\n\nThe ferry.\n\nLate.", "2\n\nThe moon."]
    nav = "<nav epub:type='toc'><h1>Contents</h1><ol><li><a href='a.xhtml#one'>First</a></li><li><a href='a.xhtml#two'>\
Second</a><ol><li><a href='a.xhtml#two'>Inner</a></li></ol></li></ol></nav>"
    data = book({"a.xhtml": body.replace("<a id='two'/>", ""), "nav.xhtml": nav}, properties={"nav.xhtml": "nav"})
    assert read(data)[0] == texts
    assert read(data)[1]["left_out"] == {"contents page": 1}


def test_a_page_without_entry_and_heading_continues_its_chapter(read: Read) -> None:
    pages = {"a.xhtml": ONE, "b.xhtml": "<p>It was still late.</p>", "c.xhtml": TWO}
    others = ncx(("The pier", "a.xhtml"), ("The moon", "c.xhtml"))
    assert read(book(pages, others=others))[0] == [f"{CHAPTERS[0]}\n\nIt was still late.", CHAPTERS[1]]
    assert read(book(pages))[0] == [CHAPTERS[0], "It was still late.", CHAPTERS[1]]


def test_a_book_in_one_page_is_divided_by_its_headings(read: Read) -> None:
    assert read(book({"a.xhtml": ONE + TWO}))[0] == CHAPTERS
    guide = '<reference type="toc" href="a.xhtml#toc"/><reference type="cover" href="a.xhtml"/>'
    filler = "<p>" + "The water rose. " * 700 + "</p>"
    assert len(read(book({"a.xhtml": ONE + filler + TWO}, guide=guide))[0]) == 2


def test_auxiliary_pages_are_omitted_and_counted(read: Read) -> None:
    links = "".join(f'<p><a href="a.xhtml#{n}">Chapter {n}</a></p>' for n in range(9))
    pages = {
        "cover.xhtml": "<img src='cover.png' alt='A cover'/>",
        "title.xhtml": page("<h1>The book</h1><p>by Anna</p>", 'epub:type="titlepage"'),
        "imprint.xhtml": "<section epub:type='copyright-page'><p>All rights.</p></section>",
        "list.xhtml": links,
        "front.xhtml": "<p>The very book.</p>",
        "a.xhtml": ONE + "<p>Noted.<a epub:type='noteref' href='notes.xhtml#n1'>*</a><img src='x.png'/></p>"
        "<p>It<span epub:type='pagebreak' title='5'>5</span> ends.</p><aside epub:type='footnote'>A note.</aside>",
        "notes.xhtml": page("<ol><li>One.</li><li>Two.</li></ol>", 'epub:type="endnotes"'),
        "extra.xhtml": "<p>Not in order.</p>",
        "map.svg": "<svg/>",
    }
    guide = '<reference type="title-page" href="front.xhtml"/>'
    spine = [f'idref="{n}"' + (' linear="no"' if name == "extra.xhtml" else "") for n, name in enumerate(pages)]
    texts, account = read(book(pages, guide=guide, spine=spine, kinds={"map.svg": "image/svg+xml"}))
    assert texts == [f"{CHAPTERS[0]}\n\nNoted.\n\nIt ends."]
    assert account["left_out"] == {
        "contents page": 1,
        "copyright page": 1,
        "footnote": 3,
        "page number": 1,
        "page outside of the reading order": 1,
        "picture": 3,
        "title page": 2,
    }


@pytest.mark.parametrize("algorithm", ["http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"])
def test_obfuscated_fonts_do_not_count_as_copy_protection(read: Read, algorithm: str) -> None:
    others = {"META-INF/encryption.xml": ENCRYPTION.format(algorithm, "font.otf")}
    assert read(book({"a.xhtml": ONE}, others=others))[0] == CHAPTERS[:1]


@pytest.mark.parametrize(
    ("others", "how"),
    [
        ({"META-INF/encryption.xml": ENCRYPTION.format("http://www.w3.org/2001/04/xmlenc#aes128-cbc", "a.xhtml")},
         "encryption aes128-cbc"),
        ({"META-INF/rights.xml": "<rights/>"}, "Adobe"),
        ({"META-INF/sinf.xml": "<sinf/>"}, "Apple"),
        ({"META-INF/license.lcpl": "{}"}, "Readium LCP"),
    ],
)  # fmt: skip
def test_a_copy_protected_book_is_refused(read: Read, others: dict[str, str], how: str) -> None:
    with pytest.raises(SourceError, match=rf"book\.epub: is a DRM-protected e-book \({how}\), which") as caught:
        read(book({"a.xhtml": ONE}, others=others))
    assert "without DRM" in caught.value.hint


LAUGHS = '<?xml version="1.0"?><!DOCTYPE html [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><html><p>&b;</p></html>'


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"not a zip", "is not zip data"),
        (book({"a.xhtml": ONE})[:-40], "zip data is cut off or damaged"),
        (book({"a.xhtml": LAUGHS}), "its part OEBPS/a.xhtml declares its own entities"),
        (book({"a.xhtml": ONE}, spine=['idref="9"']), "its reading order names '9', which its list of files does not"),
        (book({"../../../etc/passwd": ONE}), "names the page ../../etc/passwd, which it does not hold"),
        (book({"./content.opf": ONE}), "its reading order names OEBPS/content.opf, which is not a page"),
        (book({"a.xhtml": ONE}, kinds={"a.xhtml": "text/css"}), "names OEBPS/a.xhtml, which is not a page (its type"),
        (book({"a.xhtml": ONE}, spine=[]), "its package OEBPS/content.opf names no pages"),
        (_renamed(book({"a.xhtml": ONE}), "OEBPS/content.opf", "x"), "holds no package document"),
        (_renamed(book({"a.xhtml": ONE}), "OEBPS/a.xhtml", "x"), "the page OEBPS/a.xhtml, which it does not hold"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_damaged_book_gives_one_error_sentence(read: Read, data: bytes, sentence: str) -> None:
    start = time.process_time()
    with pytest.raises(SourceError) as caught:
        read(data)
    assert sentence in caught.value.message
    assert "\n" not in caught.value.message
    assert time.process_time() - start < 5


def test_a_page_listed_twice_in_the_spine_is_read_once(read: Read) -> None:
    assert read(book({"a.xhtml": ONE}, spine=['idref="0"'] * 3))[0] == CHAPTERS[:1]


def test_paths_outside_of_the_book_are_never_written_or_read(read: Read, tmp_path: Path) -> None:
    data = book({"a.xhtml": ONE}, others={"../../slip.txt": "slip", "/tmp/slip.txt": "slip"})
    before = sorted(tmp_path.iterdir())
    assert read(data)[0] == CHAPTERS[:1]
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "book.epub"])
    assert not (tmp_path.parent.parent / "slip.txt").exists()


@pytest.mark.parametrize("suffix", [".mobi", ".azw", ".azw3"])
def test_kindle_books_are_refused_with_a_hint(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"book{suffix}"
    path.write_bytes(b"BOOKMOBI")
    with pytest.raises(SourceError, match=rf"book{suffix}: is a Kindle e-book, and Finetale does not read") as caught:
        read_parts([str(path)], TextSettings())
    assert caught.value.hint == (
        "Convert it with Calibre: `ebook-convert book.azw3 book.epub`. "
        "A book that is protected by DRM can't be converted."
    )
