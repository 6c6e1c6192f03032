"""Test that files of one story, written by real programs, read as this story, and that omitted content is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from story import STORY, normalised, paragraphs, plain, titles, without_chinese

from finetale.config import TextSettings
from finetale.text.account import TextReport
from finetale.text.formats import format_of, suffix_of
from finetale.text.formats.refused import REFUSED
from finetale.text.reading import read_parts

FILES = sorted((Path(__file__).parent / "files").iterdir())
REFUSED_HERE = {".doc", ".mobi", ".azw3", ".ipynb", ".xls"}
TABLES = {".xlsx", ".ods"}
AS_WRITTEN = {".md", ".rst", ".org"}
"""Suffixes of files whose markup is part of the text."""
WITHOUT_OUTLINE = {"calibre.fb2", "pdflatex.pdf", "pdflatex.two-columns.pdf"}
"""Files without marked chapters."""
LEFT_OUT: dict[str, dict[str, int]] = {
    "calibre.docx": {"table of contents": 1},
    "calibre.fb2": {},
    "calibre.pdf": {},
    "pandoc.tex": {"footnote": 1, "preamble": 1},
    "pdflatex.pdf": {"footnote": 1, "page number": 2},
    "pdflatex.two-columns.pdf": {"footnote": 1, "page number": 1},
    "soffice.pdf": {"footnote": 1, "page number": 2},
    "soffice.docx": {"footnote": 1, "page footer": 1},
    "pandoc.epub": {"footnote": 1, "title page": 1},
    "pandoc.epub2.epub": {"footnote": 1, "title page": 1},
    "soffice.html": {"footnote": 1, "page footer": 1},
    "calibre.rtf": {},
    "soffice.rtf": {"footnote": 1, "page footer": 1},
    "pandoc.odt": {"footnote": 1, "page footer": 1},
    "soffice.odt": {"footnote": 1, "page footer": 1},
    "soffice.fodt": {"footnote": 1, "page footer": 1},
}
"""File → what its account leaves out, where this is not just the footnote."""
REWRITTEN: dict[str, tuple[tuple[str, str], ...]] = {
    "calibre.docx": (
        ("Table of Contents\n\n", ""),
        ("behind the dial.1", "behind the dial."),
        ("\n\nThe tower has 213 steps today; one was added for the inspector.", ""),
    ),
    "calibre.fb2": (
        ("behind the dial.1", "behind the dial."),
        ("\n\nThe tower has 213 steps today; one was added for the inspector.", ""),
        (
            "Year\n\nPinches\n\nRemark\n\n1861\n\n2\n\ncontent\n\n1884\n\n3\n\nhums at night\n\n1902\n\n7\n\n"
            "asks for names",
            "Year | Pinches | Remark\n1861 | 2 | content\n1884 | 3 | hums at night\n1902 | 7 | asks for names",
        ),
        ("leaves its shoes;\n\nthe tide", "leaves its shoes;\nthe tide"),
    ),
    "calibre.rtf": (
        ("behind the dial.1", "behind the dial."),
        ("\n\nThe tower has 213 steps today; one was added for the inspector.", ""),
        (
            "YearPinchesRemark18612content18843hums at night19027asks for names",
            "Year | Pinches | Remark\n1861 | 2 | content\n1884 | 3 | hums at night\n1902 | 7 | asks for names\n\n",
        ),
    ),
    "calibre.pdf": (
        ("behind the dial.1", "behind the dial."),
        ("The tower has 213 steps today; one was added for the inspector.", ""),
    ),
}
"""File → (text of the file, text of the story). Calibre makes text of footnotes, and its RTF and FB2 have no tables."""


def readable() -> list[Path]:
    """Return the files that hold the story and are not refused."""
    return [path for path in FILES if suffix_of(path) not in REFUSED_HERE | TABLES | AS_WRITTEN]


def read(path: Path, documents: str = "auto") -> tuple[list[str], TextReport]:
    """Return the documents of one file and its report."""
    settings = TextSettings(documents=documents, validation_fraction=0, test_fraction=0)
    parts, report = read_parts([str(path)], settings)
    return [part.text for part in parts], report


def undo_changes(path: Path, texts: list[str]) -> list[str]:
    """Return documents with the changes by the program undone. Each change must occur once."""
    whole = "\0".join(texts)
    for written, story in REWRITTEN.get(path.name, ()):
        assert whole.count(written) == 1
        whole = whole.replace(written, story)
    return [text for text in whole.split("\0") if text]


@pytest.mark.parametrize("path", readable(), ids=lambda path: path.name)
def test_the_file_reads_as_the_story(path: Path) -> None:
    story = without_chinese(STORY) if path.name.startswith("pdflatex") else STORY
    texts, report = read(path)
    (text,) = undo_changes(path, texts)
    assert normalised(text) == paragraphs(story)
    (account,) = report.to_dict()["files"]
    assert account.get("left_out", {}) == LEFT_OUT.get(path.name, {"footnote": 1})
    verse = next(plain(block.text) for block in STORY if "<br>" in getattr(block, "text", ""))
    assert verse in text


@pytest.mark.parametrize("path", readable(), ids=lambda path: path.name)
def test_chapters_become_documents(path: Path) -> None:
    story = without_chinese(STORY) if path.name.startswith("pdflatex") else STORY
    texts = undo_changes(path, read(path, documents="chapter")[0])
    assert [normalised(text)[0] for text in texts] == titles(story)[: 1 if path.name in WITHOUT_OUTLINE else None]
    assert [line for text in texts for line in normalised(text)] == paragraphs(story)


def test_markup_is_read_as_written() -> None:
    for suffix in AS_WRITTEN:
        path = Path(__file__).parent / "files" / f"pandoc{suffix}"
        (text,), _ = read(path)
        written = path.read_text(encoding="utf-8").strip()
        assert text == (written.split("---\n\n", 1)[1] if suffix == ".md" else written)  # without front matter
    texts, _ = read(FILES[0].with_name("pandoc.md"), documents="chapter")
    assert [text.split("\n")[0] for text in texts] == [f"# {title}" for title in titles(STORY)]
    assert len(AS_WRITTEN) == 3


def test_the_normalised_form_detects_missing_and_joined_paragraphs() -> None:
    expected = paragraphs(STORY)
    assert len(expected) == 38
    assert len(titles(STORY)) == 3
    assert normalised("\n\n".join(expected)) == expected
    assert normalised("\n\n".join(expected[:-1])) != expected
    assert normalised("\n".join(expected)) != expected


def test_no_file_of_the_story_is_skipped() -> None:
    """The tables are read in test_sheets.py, the refused files in test_refused.py."""
    others = [path for path in FILES if path not in readable()]
    assert (len(FILES), len(readable()), len(others)) == (33, 23, 10)
    for path in FILES:
        assert (suffix_of(path) in REFUSED) == (suffix_of(path) in REFUSED_HERE)
        assert (format_of(path) is None) == (suffix_of(path) in REFUSED_HERE)
