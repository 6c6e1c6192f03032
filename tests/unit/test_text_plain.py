"""Test chapters of plain text: headings start them, and lines of prose do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetale.config import TextSettings
from finetale.text import Part, read_parts


def chapters(path: Path) -> list[Part]:
    settings = TextSettings.resolve({"documents": "chapter", "validation_fraction": 0, "test_fraction": 0})
    return list(read_parts([str(path)], settings)[0])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Chapter 1", "Chapter 2"),
        ("CHAPTER I.", "CHAPTER II."),
        ("Chapter One: The Lamp", "Chapter Two: The Boat"),
        ("Kapitel 1", "Kapitel 2"),
        ("Chapitre premier", "Chapitre deux"),
        ("Глава 1", "Глава 2"),
        ("Prologue", "Epilogue"),
        ("第一章 灯", "第二章 船"),
        ("第十二回　灯火照人归", "第十三回　小船去不回"),
        ("楔子", "尾声"),
        ("第1章", "第2章"),
    ],
)
def test_headings_start_chapters(first: str, second: str, tmp_path: Path) -> None:
    body = "The lamp stood on the sill.\n\nNobody came."
    (tmp_path / "a.txt").write_text(f"A title\n\n{first}\n\n{body}\n\n{second}\n\n{body}\n", encoding="utf-8")
    parts = chapters(tmp_path / "a.txt")
    assert [part.text for part in parts] == ["A title", f"{first}\n\n{body}", f"{second}\n\n{body}"]
    assert [part.line for part in parts] == [1, 3, 9]


@pytest.mark.parametrize(
    "line",
    [
        "Chapter 3 was the one that she never finished.",
        "Chapter and verse, he said,",
        "“Chapter 3!”",
        "the chapter 3",
        "第三回他来的时候，天已经黑了。",
        "第一次看见海",
        "Prologue to nothing at all",
        "Chapter 3 " + "of a very long line " * 5,
    ],
)
def test_prose_is_not_a_heading(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"Before.\n\n{line}\n\nAfter.\n", encoding="utf-8")
    assert len(chapters(tmp_path / "a.txt")) == 1


def test_a_heading_in_latin_script_follows_a_blank_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("She opened the book at\nChapter 3\nand read.\n", encoding="utf-8")
    assert len(chapters(tmp_path / "a.txt")) == 1


def test_a_text_without_headings_is_one_chapter(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n", encoding="utf-8")
    assert [part.text for part in chapters(tmp_path / "a.txt")] == ["One.\n\nTwo."]
