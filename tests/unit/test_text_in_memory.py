"""Test that texts, records and tables in memory become sources in the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import read_parts
from finetale.text.findings import text_notes
from finetale.text.in_memory import as_source_names, write_texts
from finetale.text.source_names import kind_of_saved_text, source_name

TEXTS = ["The first text.\nIt has two lines.", "第二篇。", 'A third, with a quote " and a tab\t.']


def read(source: str) -> list[str]:
    settings = TextSettings(validation_fraction=0, test_fraction=0)
    return [part.text for part in read_parts([source], settings)[0]]


@pytest.mark.parametrize(
    "data",
    [
        TEXTS,
        tuple(TEXTS),
        iter(TEXTS),
        pd.Series(TEXTS),
        [{"text": text, "number": 1} for text in TEXTS],
        pd.DataFrame({"text": TEXTS, "number": [1, 2, 3]}, index=[7, 8, 9]),
        pa.table({"text": TEXTS}),
        pa.RecordBatch.from_pydict({"text": TEXTS}),
    ],
    ids=["list", "tuple", "iterator", "series", "records", "frame", "arrow", "batch"],
)
def test_each_kind_of_data_is_read_back_unchanged(data: Any, tmp_path: Path) -> None:
    (name,) = as_source_names(data, tmp_path)
    assert Path(name).parent == tmp_path
    assert read(name) == TEXTS


def test_a_dataset_of_the_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": [*TEXTS, "left out"]}).select(range(3))
    (name,) = as_source_names(dataset, tmp_path)
    assert read(name) == TEXTS
    with pytest.raises(SourceError, match=r"several splits was given: 'train', 'test'"):
        as_source_names(datasets.DatasetDict(train=dataset, test=dataset), tmp_path)


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (TEXTS, "the list of texts", "texts"),
        ([{"text": text} for text in TEXTS], "the list of records", "records"),
        (pd.DataFrame({"text": TEXTS}), "the table", "table"),
    ],
    ids=["texts", "records", "table"],
)
def test_data_in_memory_is_described_by_its_type(data: Any, name: str, kind: str, tmp_path: Path) -> None:
    (source,) = as_source_names(data, tmp_path / "in-memory")
    assert (source_name(source), kind_of_saved_text(source)) == (name, kind)
    parts, report = read_parts([source], TextSettings(validation_fraction=0, test_fraction=0))
    assert len(list(parts)) == 3
    written = json.dumps(report.to_dict())
    assert "in-memory" not in written
    assert Path(source).name not in written
    assert report.to_dict()["sources"] == [name]
    assert [file["file"] for file in report.to_dict()["files"]] == [name]
    notes = [note.sentence() for note in text_notes(report.to_dict())]
    column = f"The text of {name} is the column 'text'; no other column holds text."
    assert notes == ([] if kind == "texts" else [column])


def test_other_sources_are_described_by_their_path() -> None:
    for suffix in ("txt", "json", "jsonl"):
        saved = f"cache/stdin/{'0a' * 32}.{suffix}"
        assert (source_name(saved), kind_of_saved_text(saved)) == ("standard input", "stdin")
    for source in ("stories/", "in-memory/notes.txt", f"texts-{'0a' * 16}.jsonl", "hf:a/b", "bundled:tales", "."):
        assert (source_name(source), kind_of_saved_text(source)) == (source, None)
    assert source_name("a\nb.txt") == "a\\x0ab.txt"


def test_the_same_data_is_written_once(tmp_path: Path) -> None:
    first = as_source_names(TEXTS, tmp_path)
    Path(first[0]).write_bytes(b"damaged")
    assert as_source_names(list(TEXTS), tmp_path) == first
    assert [json.loads(line)["text"] for line in Path(first[0]).read_text().splitlines()] == TEXTS
    assert len(list(tmp_path.iterdir())) == 1


def test_paths_and_names_do_not_change(tmp_path: Path) -> None:
    assert as_source_names("stories/", tmp_path) == ("stories/",)
    assert as_source_names(Path("a b.txt"), tmp_path) == ("a b.txt",)
    assert as_source_names(["stories", Path("more"), "hf:a/b", "-"], tmp_path) == ("stories", "more", "hf:a/b", "-")
    assert as_source_names([], tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def test_short_strings_are_texts_only_in_the_texts_argument(tmp_path: Path) -> None:
    short = ["Once upon a time.", "There was a boy."]
    with pytest.raises(SourceError) as caught:
        as_source_names(short, tmp_path)
    assert caught.value.message == "None of the 2 strings names a file; the first is 'Once upon a time.'."
    assert "texts=[…]" in caught.value.hint
    with pytest.raises(SourceError, match=r"^The string 'Once upon a time.' does not name a file\."):
        as_source_names(short[:1], tmp_path)
    assert read(write_texts(short, tmp_path)) == short
    (tmp_path / "my story.txt").touch()
    assert as_source_names([str(tmp_path / "my story.txt")], tmp_path) == (str(tmp_path / "my story.txt"),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("One.\nTwo.", "A text of 9 characters was given where names of files are expected."),
        (17, "A value of type int can't be read as text."),
        ({"text": "One."}, "A value of type dict can't be read as text."),
        (["One.\nTwo.", None], "Text number 1 of 2 (counted from 0) is of type NoneType, not str."),
        (pd.Series(["One.", 2.5]), "Text number 1 of 2 (counted from 0) is of type float, not str."),
        (iter(()), "The list of texts is empty."),
        (pd.DataFrame({"text": []}), "The table has no rows."),
    ],
)
def test_the_error_for_other_data_names_its_type(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        as_source_names(data, tmp_path)
    assert caught.value.message == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"Once upon a time.", bytearray(b"Once")])
def test_bytes_are_not_a_list_of_numbers(tmp_path: Path, data: object) -> None:
    with pytest.raises(SourceError, match=rf"A value of type {type(data).__name__} can't be read as text"):
        as_source_names(data, tmp_path)
