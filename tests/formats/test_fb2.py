"""Test FictionBook files: sections with titles are chapters; notes and pictures are counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.reading import read_parts

Read = Callable[..., tuple[list[str], dict[str, Any]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a book with this content, read its chapters, and return them and the entry of its file in the report."""

    def read(bodies: str, encoding: str = "utf-8", head: str = "") -> tuple[list[str], dict[str, Any]]:
        text = (
            f'<?xml version="1.0" encoding="{encoding}"?>{head}<FictionBook '
            'xmlns="http://www.gribuser.ru/xml/fictionbook/2.0" xmlns:l="http://www.w3.org/1999/xlink"><description>'
            f"<title-info><book-title>No text</book-title></title-info></description>{bodies}"
            '<binary id="a.png" content-type="image/png">AAAA</binary></FictionBook>'
        )
        path = tmp_path / "book.fb2"
        path.write_bytes(text.encode(encoding))
        settings = TextSettings(validation_fraction=0, test_fraction=0, documents="chapter")
        parts, report = read_parts([str(path)], settings)
        return [part.text for part in parts], report.to_dict()["files"][0]

    return read


def test_sections_with_titles_are_chapters(read: Read) -> None:
    texts, account = read(
        "<body><title><p>The pier</p><p>A tale</p></title><epigraph><p>A motto.</p><text-author>Ben</text-author>"
        "</epigraph><section><title><p>One</p></title><image l:href='#a.png'/><p>The <emphasis>ferry</emphasis>\n   "
        "was late.<a l:href='#n1' type='note'>[1]</a></p><empty-line/><subtitle>* * *</subtitle><poem><stanza>"
        "<v>The tide</v><v>the moon</v></stanza><stanza><v>again</v></stanza></poem></section>"
        "<section><title><p>Two</p></title><section><p>Late.</p></section></section></body>"
        "<body name='notes'><section id='n1'><title><p>1</p></title><p>A note.</p></section>"
        "<section><p>x</p></section></body>"
    )
    assert texts == [
        "The pier\nA tale\n\nA motto.\n\nBen",
        "One\n\nThe ferry was late.\n\n* * *\n\nThe tide\nthe moon\n\nagain",
        "Two\n\nLate.",
    ]
    assert account["left_out"] == {"footnote": 2, "picture": 1}


def test_other_encodings_are_read(read: Read) -> None:
    assert read("<body><section><p>Паром опоздал.</p></section></body>", "windows-1251")[0] == ["Паром опоздал."]


def test_hostile_and_damaged_books_give_one_error_sentence(read: Read) -> None:
    with pytest.raises(SourceError, match=r"book\.fb2: it is XML with declarations in its DOCTYPE"):
        read("<body><p>&b;</p></body>", head='<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>')
    with pytest.raises(SourceError, match=r"nested in each other"):
        read("<body>" + "<section>" * 10_000)
    with pytest.raises(SourceError, match=r"book\.fb2: it is not well-formed XML"):
        read("<body><p>x</body>")
