"""Test the choice of the text column: its share is reported, a minority is refused, and a source has one choice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import hub, read_parts
from finetale.text.account import FileAccount
from finetale.text.columns import ColumnAccount, SourceColumns
from finetale.text.findings import text_notes

LONG = "Once upon a time there was a miller who had three sons and a cat."
SHORT = "A short title"


def read(*sources: Path, on_problem: str = "raise", **settings: object) -> tuple[list[str], dict[str, Any]]:
    resolved = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, **settings})
    parts, report = read_parts([str(source) for source in sources], resolved, on_problem=on_problem)  # type: ignore[arg-type]
    return [part.text for part in parts], json.loads(json.dumps(report.to_dict()))


def write(folder: Path, name: str, content: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content.encode())
    return path


def table(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """Write a file of this kind with these rows."""
    path = folder / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if kind == "json":
        return write(folder, path.name, json.dumps(rows))
    if kind == "jsonl":
        return write(folder, path.name, "".join(json.dumps(row) + "\n" for row in rows))
    mark = "\t" if kind == "tsv" else ","
    return write(
        folder,
        path.name,
        "".join(mark.join(map(str, row)) + "\r\n" for row in [list(rows[0]), *map(dict.values, rows)]),
    )


# -- what is reported


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_the_chosen_and_the_other_columns_are_reported_with_their_shares(tmp_path: Path, kind: str) -> None:
    row = {
        "id": "0815-4711",
        "title": "abc defghi",
        "text": "x" * 20 + " " + "y" * 19,
        "date": "2026-11-27 10:00",
        "n": 7,
    }
    path = table(tmp_path, kind, [row] * 30)
    texts, report = read(path)
    assert texts == [row["text"]] * 30
    assert report["columns"] == [
        {
            "source": str(path),
            "taken": "text",
            "guessed": True,
            "characters": 1200,
            "share": 0.8,
            "files": 1,
            "records_measured": 30,
            "left_out": [{"name": "title", "characters": 300, "share": 0.2}],
            "more_left_out": 0,
        }
    ]
    (note,) = text_notes(report)
    assert note.matters
    assert note.sentence() == (
        "The text of a." + kind + " is the column 'text', with 80% of the characters; left out: 'title' (20%) "
        "(--text-column NAME takes another column)."
    )


def test_a_single_column_is_also_reported(tmp_path: Path) -> None:
    _, report = read(table(tmp_path, "csv", [{"id": "1", "text": "Once upon"}] * 3))
    (note,) = text_notes(report)
    assert (note.sentence(), note.matters) == (
        "The text of a.csv is the column 'text'; no other column holds text.",
        False,
    )


def test_shares_of_many_records_are_estimated_without_bias(tmp_path: Path) -> None:
    rows = [{"text": "word " * 8, "note": "word " * (2 if n < 1000 else 6)} for n in range(17_000)]
    _, report = read(table(tmp_path, "jsonl", rows), strip=False)
    (column,) = report["columns"]
    assert column["characters"] == pytest.approx(17_000 * 40, rel=0.001)
    assert column["left_out"][0]["characters"] == pytest.approx(1000 * 10 + 16_000 * 30, rel=0.001)
    assert column["records_measured"] < 3000


def test_a_parquet_file_is_measured_at_its_start_middle_and_end(tmp_path: Path) -> None:
    rows = [{"text": "word " * 8, "note": "word " * (1 if n < 1000 else 7)} for n in range(3000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
    (column,) = read(path)[1]["columns"]
    assert column["left_out"][0]["share"] == pytest.approx(25 / 65, abs=0.001)
    assert column["characters"] == 3000 * 40


# -- refused guesses

REFUSED = {
    "three columns": (
        [{"background": LONG, "outline": LONG, "content": SHORT}],
        "content",
        ["background", "outline", "content"],
    ),
    "a plan and a story": ([{"plan": LONG, "story": "yes"}], "story", ["plan", "story"]),
    "text and body": ([{"text": SHORT, "body": LONG}], "text", ["body", "text"]),
    "no known name": ([{"b": "a b", "c": LONG}, {"b": LONG * 3, "c": LONG}], "c", ["b", "c"]),
}


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("case", ["three columns", "a plan and a story", "text and body"])
@pytest.mark.parametrize("times", [1, 25, 400])
def test_a_guess_that_skips_most_of_the_text_is_refused(tmp_path: Path, kind: str, case: str, times: int) -> None:
    rows, taken, choices = REFUSED[case]
    path = table(tmp_path, kind, rows * times)
    with pytest.raises(
        SourceError, match=rf"the column '{taken}' would be read as the text, but contains only \d+%"
    ) as caught:
        read(path)
    for choice in choices:
        assert f"'{choice}'" in caught.value.message
        assert choice in caught.value.hint
    assert "--text-column" in caught.value.hint
    for choice in choices:
        texts, report = read(path, text_column=choice)
        assert texts == [rows[0][choice]] * times
        assert report["columns"][0]["guessed"] is False


def test_half_of_the_text_is_enough(tmp_path: Path) -> None:
    texts, report = read(table(tmp_path, "jsonl", [{"plan": "a b c d", "story": "d c b a"}] * 30))
    assert texts == ["d c b a"] * 30
    assert report["columns"][0]["share"] == 0.5


def test_a_chat_export_with_only_a_short_title_is_refused(tmp_path: Path) -> None:
    chat = [{"title": "c", "mapping": {"a": {"message": {"author": {"role": "user"}, "content": {"parts": [LONG]}}}}}]
    with pytest.raises(
        SourceError,
        match=r"'title' would be read as the text, but contains only 2% .*'mapping\.a\.message\.content\.parts\[\]'",
    ) as caught:
        read(write(tmp_path, "a.json", json.dumps(chat)))
    assert "Lists are read where each item is a message" in caught.value.hint


@pytest.mark.parametrize("key", ["messages", "turns"])
def test_lists_are_reported_if_no_column_is_text(tmp_path: Path, key: str) -> None:
    chat = {key: [{"who": "user", "content": "hi"}, {"who": "assistant", "content": "ho"}]}
    with pytest.raises(
        SourceError, match=rf"has no column of text; its columns are '{key}'; there is text in '{key}\[\]\.who'"
    ) as caught:
        read(write(tmp_path, "a.jsonl", json.dumps(chat)))
    assert "Lists are read where each item is a message" in caught.value.hint


@pytest.mark.parametrize(
    "value", ["2026-11-27 10:00:00", "https://example.org/a/b/c", "0815", "f81d4fae-7dec-11d0", "en"]
)
def test_numbers_dates_addresses_and_identifiers_are_not_text(tmp_path: Path, value: str) -> None:
    _, report = read(table(tmp_path, "csv", [{"other": value * 9 if value == "en" else value, "text": "a b"}] * 30))
    assert report["columns"][0]["left_out"] == []


def test_a_script_without_spaces_is_text(tmp_path: Path) -> None:
    rows = [{"text": "从前有座山", "summary": "山里有座庙"}] * 30
    assert read(table(tmp_path, "jsonl", rows))[1]["columns"][0]["left_out"] == [
        {"name": "summary", "characters": 150, "share": 0.5}
    ]


def test_check_collects_one_refusal_for_a_source(tmp_path: Path) -> None:
    for n in range(30):
        write(tmp_path / "d", f"{n:02}.json", json.dumps({"text": SHORT, "body": LONG}))
    _, report = read(tmp_path / "d", on_problem="collect")
    assert [(row["kind"], row["file"]) for row in report["problems"] if row["fatal"]] == [
        ("ambiguous_column", str(tmp_path / "d/19.json"))
    ]


# -- one choice for a source


def test_files_of_a_source_do_not_change_the_column(tmp_path: Path) -> None:
    """No column has a known name. On its own, the second file would be read as its summary."""
    write(tmp_path / "d", "a.json", json.dumps([{"words": LONG, "lead": SHORT}] * 3))
    write(tmp_path / "d", "b.json", json.dumps([{"words": "A word.", "lead": SHORT}]))
    texts, report = read(tmp_path / "d")
    assert texts == [LONG] * 3 + ["A word."]
    assert [(column["taken"], column["files"]) for column in report["columns"]] == [("words", 2)]


def test_training_text_uses_the_column_of_the_validation_text(tmp_path: Path) -> None:
    held = write(tmp_path, "v.jsonl", json.dumps({"words": LONG, "lead": SHORT}))
    path = write(
        tmp_path,
        "t.jsonl",
        json.dumps({"words": "The end of it.", "lead": "The end of all."}) + "\n" + held.read_text(),
    )
    assert read(path, validation=str(held))[0] == [LONG, "The end of it.", LONG]


def test_files_with_other_columns_get_their_own_choice(tmp_path: Path) -> None:
    write(tmp_path / "d", "a.jsonl", json.dumps({"text": LONG}))
    write(tmp_path / "d", "b.csv", f"story\n{LONG}\n")
    _, report = read(tmp_path / "d")
    assert [(column["taken"], column["files"]) for column in report["columns"]] == [("text", 1), ("story", 1)]


# -- nested records


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_dotted_paths_lead_into_nested_records(tmp_path: Path, kind: str) -> None:
    rows = [{"id": n, "data": {"lang": "en", "body": {"text": f"Story {n}", "html": "<p>"}}} for n in range(3)]
    path = table(tmp_path, kind, rows)
    texts, report = read(path, text_column="data.body.text")
    assert texts == ["Story 0", "Story 1", "Story 2"]
    assert report["files"][0]["text_column"] == "data.body.text"
    with pytest.raises(SourceError, match=r"has no column 'data\.text'"):
        read(path, text_column="data.text")
    with pytest.raises(SourceError, match=r"column 'data.body' holds an object, not text"):
        read(path, text_column="data.body")
    with pytest.raises(SourceError, match=r"has no column of text; .* 'data\.body\.text' \(\d+%\)") as caught:
        read(path)
    assert "data.body.text" in caught.value.hint


def test_a_column_name_can_contain_a_dot(tmp_path: Path) -> None:
    row = {"a.b": "one", "a": {"b": "two", "c.d": {"e": "three"}}}
    path = write(tmp_path, "a.jsonl", json.dumps(row))
    assert read(path, text_column="a.b")[0] == ["one"]
    assert read(path, text_column="a.c.d.e")[0] == ["three"]


def test_null_in_a_path_gives_an_empty_document(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"a": {"b": "one"}}\n{"a": null}\n{"a": {"b": null}}\n')
    assert read(path, text_column="a.b")[0] == ["one", "", ""]
    with pytest.raises(SourceError, match=r"a\.jsonl:2: has no column 'a\.b'"):
        read(
            write(tmp_path, "b.jsonl", '{"a": {"b": "one"}}\n{"a": {"c": "two"}}\n').rename(tmp_path / "a.jsonl"),
            text_column="a.b",
        )


# -- datasets


def read_dataset(rows: list[dict[str, Any]], column: str | None = None) -> tuple[list[str], list[dict[str, Any]]]:
    import datasets

    accounts: list[ColumnAccount] = []
    columns = SourceColumns("hf:mini", column, [], accounts)
    account = FileAccount("hf:mini:train", "dataset", Counter())
    texts = [text for _, text in hub.dataset_documents(datasets.Dataset.from_list(rows), columns, account)]
    columns.judge()
    return texts, [each.to_dict() for each in accounts]


def test_datasets_are_measured_refused_and_read_by_path_too() -> None:
    rows = [{"id": n, "text": "word " * 8, "title": "word " * 2, "meta": {"lead": "a lead " * 20}} for n in range(600)]
    with pytest.raises(
        SourceError, match=r"'text' would be read as the text, but contains only 21% .* 'meta\.lead' \(74%\)"
    ):
        read_dataset(rows)
    texts, (column,) = read_dataset(rows, "meta.lead")
    assert texts == ["a lead " * 20] * 600
    assert (column["characters"], column["records_measured"]) == (600 * 140, 200)
    texts, (column,) = read_dataset([{key: row[key] for key in ("id", "text", "title")} for row in rows])
    assert texts == ["word " * 8] * 600
    assert column["left_out"] == [{"name": "title", "characters": 6000, "share": 0.2}]


# -- one object in a file


def test_an_object_with_a_text_and_a_list_of_strings_is_one_record(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", json.dumps({"title": "Storm", "text": LONG, "tags": ["sea", "storm"]}))
    texts, report = read(path)
    assert texts == [LONG]
    assert report["columns"][0]["taken"] == "text"


@pytest.mark.parametrize(
    ("content", "expected", "detail"),
    [
        ({"year": 2026, "stories": ["one", "two"]}, ["one", "two"], "the records are the 2 strings of 'stories'"),
        (
            {"about": "Tales of a mill", "data": [{"text": LONG}, {"text": "two"}]},
            [LONG, "two"],
            "the records are the 2 objects of 'data'; the rest of the object is left out: 'about' (15 characters)",
        ),
        ({"data": [{"text": LONG}]}, [LONG], "the record is the 1 object of 'data'"),
        ({"title": "A", "text": LONG, "comments": [{"body": "Good."}]}, [LONG], None),
        ({"head": LONG, "comments": [{"by": "me"}, {"by": "you"}]}, [LONG], None),
    ],
)
def test_lists_within_an_object(tmp_path: Path, content: object, expected: list[str], detail: str | None) -> None:
    texts, report = read(write(tmp_path, "a.json", json.dumps(content)))
    assert texts == expected
    assert [row["detail"] for row in report["problems"] if row["kind"] == "records_in_list"] == (
        [detail] if detail else []
    )
    assert any(detail in note.what for note in text_notes(report)) if detail else True


@pytest.mark.parametrize(
    "content",
    [
        {"columns": ["id", "text"], "index": [0, 1], "data": [[0, LONG], [1, "two"]]},  # pandas, orient="split"
        {"columns": [{"name": "id"}, {"name": "text"}], "data": [[0, LONG], [1, "two"]]},
        {"tags": ["sea", "storm"], "pages": {"1": {"lines": [LONG]}}},
    ],
)
def test_a_list_with_less_text_than_its_object_is_not_the_records(tmp_path: Path, content: object) -> None:
    with pytest.raises(SourceError, match="has no column of text") as caught:
        read(write(tmp_path, "a.json", json.dumps(content)))
    assert "there is text in 'data[][]' (9" in str(caught.value) or "'pages.1.lines[]' (8" in str(caught.value)


def test_a_list_of_strings_beside_a_text_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", json.dumps({"title": "Storm", "text": LONG, "tags": ["sea", "storm"]}))
    texts, report = read(path, text_column="tags")
    assert texts == ["sea", "storm"]
    assert "'text' (65 characters)" in report["problems"][0]["detail"]
    assert read(path, text_column="title")[0] == ["Storm"]


def test_an_object_that_is_mostly_a_list_of_strings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"'language' would be read as the text, but contains only 3% .* 'stories\[\]' \(97%\)"
    ):
        read(write(tmp_path, "a.json", json.dumps({"language": "en", "stories": [LONG]})))


# -- keys and characters


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_repeated_keys_are_counted_and_reported(tmp_path: Path, name: str) -> None:
    lines = (
        '{"text":"one","text":"two"}\n{"text":"other"}\n{"n":1,"n":2,"text":"three","text":"four", "text": "five"}\n'
    )
    texts, report = read(write(tmp_path, name, lines))
    assert texts == ["two", "other", "five"]
    (problem,) = report["problems"]
    assert (problem["kind"], problem["line"], problem["count"], problem["fatal"]) == ("duplicate_key", 1, 3, False)
    assert "only the last value is used: 'text' (in 2 objects), 'n' (in 1 object)" in problem["detail"]
    assert any("'text' (in 2 objects)" in note.what and note.matters for note in text_notes(report))


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '{"%s": "a \\ud83d b"}'), ("a.json", '[{"%s": "a \\ud83d b"}]')]
)
@pytest.mark.parametrize("column", ["text", "prompt"])
def test_lone_surrogates_are_reported_in_every_format(tmp_path: Path, name: str, content: str, column: str) -> None:
    path = write(tmp_path, name, content % column)
    with pytest.raises(SourceError, match=r":1: holds a lone surrogate"):
        read(path)
    assert read(path, undecodable="replace")[0] == ["a \ufffd b"]


def test_a_surrogate_in_the_name_of_a_column(tmp_path: Path) -> None:
    texts, report = read(write(tmp_path, "a.jsonl", '{"\\ud83d": "a story of old"}'))
    assert texts == ["a story of old"]
    assert report["columns"][0]["taken"] == "\\ud83d"


def test_parquet_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    values = pa.array([b"caf\xe9", b"two"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: has text that is not UTF-8 \(byte 0xe9"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("other", ["https://example.org/a/long/address/of/a/page", "2026-11-27 10:00:00", "0" * 40])
def test_without_a_known_name_the_column_most_like_prose_is_chosen(tmp_path: Path, other: str) -> None:
    texts, report = read(table(tmp_path, "jsonl", [{"a": other, "b": "It sang and danced."}] * 3))
    assert texts == ["It sang and danced."] * 3
    assert report["columns"][0]["left_out"] == []
