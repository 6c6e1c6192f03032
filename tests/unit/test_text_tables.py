"""Test csv and tsv files: separators, header lines, line ends."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import read_parts


def read(
    folder: Path, content: str, name: str = "a.csv", **settings: object
) -> tuple[list[tuple[int, str]], dict[str, Any]]:
    path = folder / name
    path.write_bytes(content.encode())
    resolved = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, **settings})
    parts, report = read_parts([str(path)], resolved)
    return [(part.line, part.text) for part in parts], report.to_dict()


@pytest.mark.parametrize(
    ("content", "column", "expected"),
    [
        ('id;"text, cleaned"\n1;Hello there\n2;Goodbye now\n', "text, cleaned", ["Hello there", "Goodbye now"]),
        ("id;text, cleaned\n1;Hello, there\n2;Goodbye, now\n", "text, cleaned", ["Hello, there", "Goodbye, now"]),
        ("id;text, cleaned, checked\n1;a b, c, d\n2;e f, g, h\n", "text, cleaned, checked", ["a b, c, d", "e f, g, h"]),
        ("id,text\n1,Hello; there\n2,Goodbye; now\n", "text", ["Hello; there", "Goodbye; now"]),
        ('id,"text; cleaned"\n1,"Hello there"\n', "text; cleaned", ["Hello there"]),
        ("id\ttext\n1\tHello, there\n", "text", ["Hello, there"]),
        ("text\nHello there\n", "text", ["Hello there"]),
        ("text\nHello; there\nGoodbye\n", "text", ["Hello; there", "Goodbye"]),
        ('text;id\n"Two\nlines, here";1\n"Two\nlines; there";2\n', "text", ["Two\nlines, here", "Two\nlines; there"]),
    ],
)
def test_the_separator_must_fit_all_rows(tmp_path: Path, content: str, column: str, expected: list[str]) -> None:
    documents, report = read(tmp_path, content)
    assert [text for _, text in documents] == expected
    assert report["columns"][0]["taken"] == column


@pytest.mark.parametrize("first", ["sep=;\n", "sep=;\r\n", '"sep=;"\n', "SEP=;\n", "\ufeffsep=;\r\n"])
def test_the_separator_line_of_excel_is_skipped_and_used(tmp_path: Path, first: str) -> None:
    documents, report = read(tmp_path, f"{first}id;text\n1;Hello, there\n2;Goodbye, now\n")
    assert documents == [(3, "Hello, there"), (4, "Goodbye, now")]
    assert report["problems"] == []
    assert read(tmp_path, "sep=|\nid|text\n1|a;b,c\n")[0] == [(3, "a;b,c")]


# -- no header line

HEADERLESS = {
    "a number": (
        "1,Once upon a time\n2,There was a frog\n3,It sang\n",
        "1",
        ["Once upon a time", "There was a frog", "It sang"],
    ),
    "a date": ("2026-11-27,Rain\n2026-11-28,Sun and wind\n", "1", ["Rain", "Sun and wind"]),
    "a sentence": ("It sang.\nIt danced.\n", "0", ["It sang.", "It danced."]),
    "many words": ("Once upon a time\nThere was a frog\n", "0", ["Once upon a time", "There was a frog"]),
    "lines in a field": (
        '"First Citizen:\nHear me."\r\n"All:\nSpeak."\r\n',
        "0",
        ["First Citizen:\nHear me.", "All:\nSpeak."],
    ),
    "a long field": (f"{'Once upon a time. ' * 9}\nmore\n", "0", [("Once upon a time. " * 9).strip(), "more"]),
}


@pytest.mark.parametrize("case", HEADERLESS)
def test_a_first_row_of_data_is_a_document_and_reported(tmp_path: Path, case: str) -> None:
    content, column, expected = HEADERLESS[case]
    documents, report = read(tmp_path, content)
    assert [text for _, text in documents] == expected
    assert documents[0][0] == 1
    assert report["columns"][0]["taken"] == column
    assert [(row["kind"], row["line"], row["fatal"]) for row in report["problems"]] == [("no_header", 1, False)]
    assert "so the columns are counted from 0" in report["problems"][0]["detail"]


@pytest.mark.parametrize(
    "header",
    [
        "text",
        "id,text",
        "Titel,Beschreibung (de)",
        "country,1990,text",
        "0,1",
        ",text",
        "Text of the story,id",
        "No.,words",
    ],
)
def test_a_first_row_of_names_is_a_header(tmp_path: Path, header: str) -> None:
    row = ",".join(["Once upon a time"] * len(header.split(",")))
    documents, report = read(tmp_path, f"{header}\n{row}\n", text_column=header.rpartition(",")[2])
    assert documents == [(2, "Once upon a time")]
    assert report["problems"] == []


def test_a_number_counts_the_columns_of_a_headerless_table(tmp_path: Path) -> None:
    content = "one,two words\nthree,four words\n"
    assert read(tmp_path, content, text_column="0")[0] == [(1, "one"), (2, "three")]
    assert read(tmp_path, content, text_column="1")[0] == [(1, "two words"), (2, "four words")]
    assert read(tmp_path, content.replace(",", "\t"), "a.tsv", text_column="1")[0] == [
        (1, "two words"),
        (2, "four words"),
    ]
    with pytest.raises(SourceError, match=r"has no column '2'; its columns are '0', '1'"):
        read(tmp_path, content, text_column="2")
    with pytest.raises(SourceError, match=r"has no column '1'; its columns are 'id', 'text'"):
        read(tmp_path, "id,text\n1,one\n", text_column="1")
    with pytest.raises(SourceError, match=r"has no column 'text'; its columns are '0', '1'"):
        read(tmp_path, "1,one\n2,two\n", text_column="text")


# -- line ends


def test_rows_of_pythons_csv_writer_do_not_count_as_mixed_newlines(tmp_path: Path) -> None:
    with (tmp_path / "w.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], ["1", "one\ntwo"], ["2", "three\nfour"]])
    documents, report = read(tmp_path, (tmp_path / "w.csv").read_bytes().decode())
    assert documents == [(2, "one\ntwo"), (4, "three\nfour")]
    assert report["problems"] == []


def test_mixed_newlines_of_other_files_are_still_reported(tmp_path: Path) -> None:
    assert read(tmp_path, "one\r\ntwo\n", "a.txt")[1]["problems"][0]["kind"] == "mixed_newlines"
