"""Test templates, which build the text of a document from columns or from the title and body of a chapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples import marked, read
from finetale.blocks import IGNORE, pack
from finetale.chat import chat_renderer
from finetale.config import TextSettings
from finetale.config.templates import parse_template
from finetale.errors import ConfigError, SourceError
from finetale.text import read_parts
from finetale.text.account import FileAccount
from finetale.text.columns import SourceColumns
from finetale.text.findings import text_notes
from finetale.text.hub import dataset_documents
from finetale.tokens import build_store
from tiny import tokenizer

ROWS: list[dict[str, Any]] = [
    {"title": "The ferry", "body": "It ran at noon.", "year": 1912, "note": "a note on the side of the page"},
    {"title": "The bridge", "body": "It was long.", "year": None, "note": "another one of these notes"},
]
TEMPLATE = r"Title: {title} ({year})\n\n{body}"
TEXTS = ["Title: The ferry (1912)\n\nIt ran at noon.", "Title: The bridge ()\n\nIt was long."]


def write(folder: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        lines = [",".join("" if value is None else str(value) for value in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]))
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    return path


# -- the form of a template


def test_escapes_and_literal_braces() -> None:
    assert parse_template(r"{{{a}}}\t{b.c} \\n {a}\n").pieces == (
        ("{", "a"), ("}\t", "b.c"), (" \\n ", "a"), ("\n", None),
    )  # fmt: skip
    assert parse_template("{ a }{b}{a}").columns == ("a", "b")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("Title: {title", "the { at character 8 of the template has no partner; write {{ for a literal brace"),
        ("title} {body}", "the } at character 6 of the template has no partner; write }} for a literal brace"),
        ("{a{b}}", "the { at character 1 of the template has no partner"),
        ("{} and {b}", "the braces at character 1 of the template name no column"),
        ("no column", "the template names no column; write one in braces, as in {title}"),
        ("", "the template names no column"),
    ],
)
def test_a_template_is_checked_before_sources_are_read(template: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TextSettings.resolve({"template": template})
    assert words in caught.value.message


@pytest.mark.parametrize(("name", "value"), [("text_column", "body"), ("speaker", "Mara")])
def test_settings_that_contradict_a_template(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="give one of the two"):
        TextSettings.resolve({"template": "{a}", name: value})


# -- records


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_records_of_every_format(kind: str, tmp_path: Path) -> None:
    rows = ROWS if kind != "parquet" else [row | {"year": str(row["year"] or "")} for row in ROWS]
    parts, report = read(write(tmp_path, rows, kind), TEMPLATE)
    assert [part.text for part in parts] == TEXTS
    (column,) = report["columns"]
    assert (column["taken"], column["template"], column["guessed"]) == ("title + year + body", True, False)
    assert [each["name"] for each in column["left_out"]] == ["note"]
    assert "is the template with 'title + year + body', with" in text_notes(report)[0].what


def test_numbers_dates_and_missing_values_of_parquet(tmp_path: Path) -> None:
    import datetime

    rows = [{"n": 3, "x": 0.5, "day": datetime.date(2024, 1, 2), "ok": True, "text": "a", "in": {"deep": "b"}}]
    path = write(tmp_path, [*rows, dict.fromkeys(rows[0])], "parquet")
    parts, _ = read(path, "{n}|{x}|{day}|{ok}|{text}|{in.deep}")
    assert [part.text for part in parts] == ["3|0.5|2024-01-02|true|a|b", "|||||"]


def test_rows_of_a_dataset() -> None:
    datasets = pytest.importorskip("datasets")
    columns = SourceColumns("hf:x", None, [], [], template=parse_template(TEMPLATE))
    from collections import Counter

    account = FileAccount("hf:x", "dataset", Counter())
    found = list(dataset_documents(datasets.Dataset.from_list(ROWS), columns, account))
    assert found == [(1, TEXTS[0]), (2, TEXTS[1])]
    assert account.text_column == "title + year + body"


def test_dotted_paths_and_missing_keys(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": {"b": "one"}, "c": "C"}, {"c": "D"}, {"a": None, "c": "E"}, {"a.b": "x"}]
    assert [part.text for part in read(write(tmp_path, rows, "jsonl"), "{a.b}-{c}")[0]] == ["one-C", "-D", "-E", "x-"]


def test_a_table_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1,It ran at noon today.\n2,It was a long bridge.\n")
    assert [part.text for part in read(path, "{0}: {1}")[0]] == ["1: It ran at noon today.", "2: It was a long bridge."]


def test_strings_are_records_with_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('["one", "two"]')
    assert [part.text for part in read(path, "<{text}>")[0]] == ["<one>", "<two>"]


def test_the_list_with_the_columns_is_found_inside_an_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "Tales", "tales": ROWS, "authors": [{"name": "Mara"}]}))
    assert [part.text for part in read(path, TEMPLATE)[0]] == TEXTS
    assert [part.text for part in read(path, "All: {name}")[0]] == ["All: Tales"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_error_for_an_unknown_column_lists_the_columns(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, ROWS, kind)
    with pytest.raises(SourceError) as caught:
        read(path, "{headline} {body} {author}")
    assert caught.value.message.endswith(
        ": has no columns 'headline' and 'author', which the template names; "
        "its columns are 'title', 'body', 'year', 'note'."
    )


def test_a_list_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"rows\.jsonl:1: column 'a' holds a list, not text"):
        read(write(tmp_path, [{"a": ["x"]}], "jsonl"), "{a}")


# -- prompts and completions

PAIRS = [{"question": "Who sat there?", "answer": "The old man."}, {"question": "Why?", "answer": ""}]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_completion_is_learned_and_the_rest_is_context(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, PAIRS, kind)
    parts, report = read(path, r"Q: {question}\nA: {answer}\n--")
    assert [marked(part) for part in parts] == ["[Q: Who sat there?\nA:] The old man.[\n--]", "Q: Why?\nA:\n--"]
    assert [part.dropped for part in parts] == [None, "no answer"]
    assert report["columns"][0]["taken"] == "question → answer"
    assert report["examples"]["answers"] == 1
    parts, report = read(path, r"Q: {question}\nA: {answer}\n--", loss="all")
    assert [marked(part) for part in parts][:1] == ["Q: Who sat there?\nA: The old man.\n--"]


def test_without_the_completion_the_whole_text_is_learned(tmp_path: Path) -> None:
    parts, report = read(write(tmp_path, PAIRS, "jsonl"), "Only {question}")
    assert [marked(part) for part in parts] == ["Only Who sat there?", "Only Why?"]
    assert report["examples"] is None


def test_the_completion_column_can_be_named(tmp_path: Path) -> None:
    rows = [{"frage": "Wer?", "antwort": "Der Mann."}]
    parts, _ = read(write(tmp_path, rows, "jsonl"), "{frage} -> {antwort}", completion_column="antwort",
                    prompt_column="frage")  # fmt: skip
    assert [marked(part) for part in parts] == ["[Wer? ->] Der Mann."]


def test_text_after_the_answer_is_context_in_the_blocks_too(tmp_path: Path) -> None:
    path = write(tmp_path, PAIRS[:1] * 9, "jsonl")
    settings = TextSettings.resolve(
        {"validation_fraction": 0, "test_fraction": 0, "template": r"Q: {question}\nA: {answer}\n-- and so on"}
    )
    parts, report = read_parts([str(path)], settings, renderer=chat_renderer(tokenizer(), "answers"))
    store = build_store(parts, tokenizer(), tmp_path / "store", report=report.to_dict)
    answer = len(tokenizer()(" The old man.", add_special_tokens=False)["input_ids"])
    assert store.account["tokens"]["trained"] == 9 * (answer + 1)  # each with an end-of-text
    for size in (8, 16, 64):
        blocks = pack(store, "train", size)
        batch = blocks.batch(np.arange(len(blocks)))
        assert int((batch.labels != IGNORE).sum()) == 9 * (answer + 1)


# -- texts


def test_chapters_have_a_title_and_a_body(tmp_path: Path) -> None:
    path = tmp_path / "book.md"
    path.write_text("# The ferry\n\nIt ran at noon.\n\n# The bridge\n\nIt was long.\n\nVery long.\n")
    parts, _ = read(path, r"<{title}>\n{body}")
    assert [part.text for part in parts] == ["<The ferry>\nIt ran at noon.", "<The bridge>\nIt was long.\n\nVery long."]
    (whole,), _ = read(path, r"<{title}>\n{body}", documents="file")
    assert whole.text.startswith("<>\n# The ferry\n\nIt ran")


def test_plain_text_has_only_a_body(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One line.\nAnother.\n")
    assert [part.text for part in read(path, "Story: {body}", documents="line")[0]] == [
        "Story: One line.",
        "Story: Another.",
    ]
    with pytest.raises(SourceError, match="has no column 'author', which the template names; a text has 'title' and"):
        read(path, "{author}: {body}")


def test_messages_of_mail_have_a_body(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    path = tmp_path / "a.eml"
    path.write_text("From: mara@example.org\nSubject: Ferry\nContent-Type: text/plain\n\nThe ferry sank.\n")
    (part,), _ = read(path, "Mail: {body}")
    assert part.text.startswith("Mail: ")
    assert part.text.endswith("The ferry sank.")


def test_rows_of_a_spreadsheet(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["title", "body", "year"], ["The ferry", "It ran at noon.", 1912]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    parts, report = read(tmp_path / "a.xlsx", TEMPLATE)
    assert [part.text for part in parts] == TEXTS[:1]
    assert report["columns"][0]["taken"] == "title + year + body"
