"""Test records in jsonl, json, csv, tsv, parquet and datasets: documents, columns, and errors with lines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetale.config import TextSettings
from finetale.errors import HubError, SourceError
from finetale.text import Part, TextReport, hub, lines, read_parts
from finetale.text.account import FileAccount
from finetale.text.formats import json_records


def read(source: Path | str, **settings: object) -> tuple[list[Part], TextReport]:
    resolved = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, **settings})
    parts, report = read_parts([str(source)], resolved)
    return list(parts), report


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(parts: list[Part]) -> list[tuple[int, str]]:
    return [(part.line, part.text) for part in parts]


def test_jsonl(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.jsonl", '{"id": "x", "Text": "one\\r\\ntwo"}\r\n\r\n{"id": "y", "Text": null}\r\n"three"\r\n'
    )
    parts, report = read(path)
    assert [(part.line, part.text, part.dropped) for part in parts] == [
        (1, "one\ntwo", None),
        (3, "", "empty"),
        (4, "three", None),
    ]
    assert report.to_dict()["files"][0]["text_column"] == "Text"
    assert report.to_dict()["cleaning"]["newlines"] == 5


JSON_FORMS = {
    "array of objects": '[\n {"text": "one"},\n {"text": "two"}\n]\n',
    "array of strings": '["one",\n\n"two"]',
    "object with one array": '{"version": 1, "tags": [1, 2], "data":\n[{"text": "one"}, {"text": "two"}]}',
    "columns": '{"text": ["one", "two"], "year": [1, 2]}',
    "lines": '{"text": "one"}\n{"text": "two"}\n',
    "objects without line ends": '{"text": "one"} {"text": "two"}',
}


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("content", JSON_FORMS.values(), ids=JSON_FORMS.keys())
def test_json_forms(content: str, block: int) -> None:
    blocks = (content[start : start + block] for start in range(0, len(content), block))
    found = [
        record["text"] if isinstance(record, dict) else record
        for _, record in json_records.json_records(blocks, FileAccount("a.json", "json", Counter()))
    ]
    assert found == ["one", "two"]


def test_json_items_have_their_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '[\n{"text":\n"one"},\n\n{"text": "two"}]')
    assert texts(read(path)[0]) == [(2, "one"), (5, "two")]


def test_one_json_object_is_one_document(tmp_path: Path) -> None:
    assert texts(read(write(tmp_path, "a.json", '{"title": "A", "story": "Once."}'))[0]) == [(1, "Once.")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": "two"\n', r"a\.jsonl:2: is not valid JSON"),
        ("a.jsonl", '{"text": "one"}\n[1]\n', r"a\.jsonl:2: holds a list"),
        ("a.jsonl", '{"text": "one"}\n{"body": "two"}\n', r"a\.jsonl:2: has no column 'text'.*'body'"),
        ("a.jsonl", '{"text": "one"}\n{"text": 5}\n', r"a\.jsonl:2: column 'text' holds a number"),
        ("a.jsonl", '{"a": 1, "b": [2]}\n', r"a\.jsonl:1: has no column of text; its columns are 'a', 'b'"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: is not valid JSON \(it is nested too deeply\)"),
        ("a.jsonl", '{"text": "half \\ud83d"}\n', r"a\.jsonl:1: holds a lone surrogate"),
        ("a.json", '[{"text": "one"},\n{"text": }]', r"a\.json:2: is not valid JSON"),
        ("a.json", '[{"text": "one"}\n{"text": "two"}]', r"a\.json:2: is not valid JSON \('\{' where , or \]"),
        ("a.json", '[{"text": "one"},', r"a\.json:1: is not valid JSON"),
        ("a.json", '["one"] x', r"a\.json:1: is not valid JSON \(there is more"),
        ("a.json", '{"text": "never closed', r"a\.json:1: is not valid JSON \(Unterminated"),
        ("a.json", '{"a": ["x"], "b": ["y"]}', r"holds 2 arrays of records \('a', 'b'\)"),
        ("a.json", "5", r"a\.json:1: holds a number"),
        ("a.csv", 'id,text\n1,"one\ntwo"\n2,a,b\n', r"a\.csv:4: has 3 fields, but the first line has 2 columns"),
        ("a.csv", 'id,text\n1,"never closed\n', r"a\.csv:2: is not a well-formed row"),
        ("a.csv", "text,text\na,b\n", r"a\.csv:1: .*twice"),
        ("a.csv", "text\nOnce, twice\n", r"a\.csv:2: has 2 fields, but the first line has 1 column"),
        ("a.parquet", "PAR1 no", r"a\.parquet: is not a Parquet file"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read(write(tmp_path, name, content))
    assert caught.value.hint


def test_lone_surrogates_can_be_replaced(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "half \\ud83d, whole \\ud83d\\ude00"}\n')
    parts, report = read(path, undecodable="replace")
    assert parts[0].text == "half \ufffd, whole \U0001f600"
    assert report.to_dict()["files"][0]["problems"] == {"lone_surrogate": 1}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_the_text_column(tmp_path: Path, name: str) -> None:
    rows = [{"title": "A title that is short", "content": "A text that is longer than its title", "n": "1"}] * 3
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "a.jsonl":
        write(tmp_path, name, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "\t" if name == "a.tsv" else ","
        write(
            tmp_path, name, "".join(mark.join(row) + "\n" for row in [list(rows[0]), *(row.values() for row in rows)])
        )
    assert [part.text for part in read(path)[0]] == [rows[0]["content"]] * 3
    assert {part.text for part in read(path, text_column="title")[0]} == {rows[0]["title"]}
    with pytest.raises(SourceError, match=r"has no column 'body'; its columns are 'title', 'content', 'n'"):
        read(path, text_column="body")


def test_without_a_known_name_the_longest_column_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "url,words\nhttp://x,Once upon a time\nhttp://y,there was a king\n")
    parts, report = read(path)
    assert [part.text for part in parts] == ["Once upon a time", "there was a king"]
    assert report.to_dict()["files"][0]["text_column"] == "words"


def test_csv_with_long_fields_byte_order_marks_and_semicolons(tmp_path: Path) -> None:
    long = "word " * 60_000  # more than the default limit of the csv module, 128 KiB
    path = write(tmp_path, "a.csv", f'\ufeffid;text\r\n1;"one; ""two""\r\n\r\nthree"\r\n\r\n2;{long}\r\n')
    parts, report = read(path)
    assert texts(parts) == [(2, 'one; "two"\n\nthree'), (6, long.strip())]
    assert report.to_dict()["files"][0]["encoding"] == "utf-8 with byte order mark"


def test_parquet_rows_are_counted_from_one_and_may_be_null(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", None, "three"]}), path, row_group_size=1)
    assert texts(read(path)[0]) == [(1, "one"), (2, ""), (3, "three")]
    import gzip

    packed = write(tmp_path, "b.parquet.gz", gzip.compress(path.read_bytes()))
    assert texts(read(packed)[0]) == [(1, "one"), (2, ""), (3, "three")]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_lines_do_not_depend_on_the_blocks(size: int) -> None:
    content = "one\n\ntwo\nthree\n\n\nend"
    blocks = [content[start : start + size] for start in range(0, len(content), size)]
    expected = list(enumerate(content.split("\n"), 1))
    assert list(lines.cut_lines(iter(blocks))) == expected
    assert "".join(line for _, line in lines.cut_lines(iter(blocks), keep_ends=True)) == content


# -- datasets: a local folder goes through the same library calls as a dataset of the hub


@pytest.fixture
def datasets_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    for split in ("train", "validation", "test", "extra"):
        for folder in ("mini", "owner/mini"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            write(
                tmp_path / folder,
                f"{split}.jsonl",
                "".join(f'{{"id": {n}, "text": "{split} {n}"}}\n' for n in range(3)),
            )
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["mini", "owner/mini"])
def test_the_splits_of_a_dataset_are_used(datasets_home: Path, name: str, streaming: bool) -> None:
    parts, report = read_parts([f"hf:{name}"], TextSettings(streaming=streaming))
    found = [(part.split, part.text, part.line, part.source) for part in parts]
    assert len(found) == 9
    assert found[0] == ("test", "test 0", 1, f"hf:{name}:test")
    assert found[3] == ("validation", "validation 0", 1, f"hf:{name}:validation")
    assert found[8] == ("train", "train 2", 3, f"hf:{name}:train")
    assert report.to_dict()["skipped"]["dataset_splits"] == []


def test_a_single_split_is_divided_like_other_text(datasets_home: Path) -> None:
    parts, _ = read("hf:mini:validation")
    assert [(part.split, part.text) for part in parts] == [("train", f"validation {n}") for n in range(3)]


def test_a_given_validation_text_replaces_the_split_of_the_dataset(datasets_home: Path) -> None:
    path = write(datasets_home, "v.txt", "mine")
    parts, report = read_parts(["hf:mini"], TextSettings.resolve({"validation": str(path)}))
    assert [part.text for part in parts if part.split == "validation"] == ["mine"]
    assert report.to_dict()["skipped"]["dataset_splits"] == ["hf:mini:validation"]


def test_a_dataset_is_mixed_and_watched_by_one_split_each(datasets_home: Path) -> None:
    path = write(datasets_home, "own.jsonl", "".join(f'{{"text": "own {n}"}}\n' for n in range(3)))
    for mixed, left_out in (
        ("hf:mini", ["hf:mini:test", "hf:mini:validation"]),
        ("hf:owner/mini:train", []),
    ):
        settings = TextSettings.resolve(
            {"mix": f"{mixed}:0.5", "watch": "hf:mini:test", "validation_fraction": 0.0, "test_fraction": 0.0}
        )
        parts, report = read_parts([str(path)], settings)
        found = [(part.split, part.text, part.beside) for part in parts]
        assert found[:3] == [("watched", f"test {n}", 0) for n in range(3)]
        assert found[3:6] == [("train", f"own {n}", None) for n in range(3)]
        assert found[6:] == [("train", f"train {n}", 0) for n in range(3)]
        assert sorted(report.to_dict()["skipped"]["dataset_splits"]) == sorted(left_out)
        assert [entry["source"] for entry in report.to_dict()["mixed"]] == [mixed]
    with pytest.raises(SourceError, match=r"has no split for watched"):
        read_parts([str(path)], TextSettings.resolve({"watch": "hf:mini"}))


@pytest.mark.parametrize(("source", "message"), [("hf:mini:nope", "nope"), ("hf:mini/zz:train", "zz")])
def test_unknown_splits_and_configs(datasets_home: Path, source: str, message: str) -> None:
    with pytest.raises((SourceError, HubError), match=message):
        read_parts([source], TextSettings(), offline=True)


def test_a_dataset_missing_from_the_cache_offline(datasets_home: Path) -> None:
    with pytest.raises(HubError, match="was not downloaded before") as caught:
        read_parts(["hf:nobody/nothing"], TextSettings(), offline=True)
    assert "HF_ENDPOINT" in caught.value.hint
    assert "--offline" in caught.value.hint
    assert "folder" in caught.value.hint


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(HubError, match="can't be reached") as caught:
        read_parts(["hf:owner/name"], TextSettings())
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "candidates", "split"),
    [
        ("hf:tales", [("tales", None)], None),
        ("hf:tales:train[:10]", [("tales", None)], "train[:10]"),
        ("hf:a/b", [("a/b", None), ("a", "b")], None),
        ("hf:a/b/c:test", [("a/b", "c")], "test"),
    ],
)
def test_names_of_datasets(source: str, candidates: list[tuple[str, str | None]], split: str | None) -> None:
    assert hub.parse(source) == (candidates, split)


@pytest.mark.parametrize("source", ["hf:", "hf:/a", "hf:a/b/c/d", "hf:a:", "hf:a//b"])
def test_invalid_names_of_datasets(source: str) -> None:
    with pytest.raises(SourceError, match="does not name a dataset"):
        hub.parse(source)
