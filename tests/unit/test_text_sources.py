"""Test sources (files, folders, compressed files, standard input) and their errors."""

from __future__ import annotations

import gzip
import io
import os
import re
import sys
from pathlib import Path

import pytest
import zstandard

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import Part, TextReport, read_parts, suffix_of_records
from finetale.text.formats import formats


def read(*sources: Path | str, on_problem: str = "raise", **settings: object) -> tuple[list[Part], TextReport]:
    resolved = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, **settings})
    parts, report = read_parts([str(source) for source in sources], resolved, on_problem=on_problem)  # type: ignore[arg-type]
    return list(parts), report


def test_a_folder_is_read_in_order_and_skipped_files_are_counted(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a/z.md",
        "a/b/c.txt",
        "B.TXT",
        ".hidden.txt",
        ".git/config.txt",
        "cover.png",
        "x.psd",
        "y.psd",
        "README",
        "binary",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\0" * 99 if name == "binary" else name)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    parts, report = read(tmp_path)
    assert [part.text for part in parts] == ["B.TXT", "README", "a/b/c.txt", "a/z.md", "b.txt"]
    assert report.to_dict()["skipped"] == {
        "hidden": 2,
        "linked_folders": 1,
        "run_directories": 0,
        "held_out_files": 0,
        "special": 0,
        "unreadable": 0,
        "empty": 0,
        "dataset_splits": [],
        "other": {".psd": 2, ".png": 1, "(no suffix)": 1},
    }
    assert report.to_dict()["files_read"] == 5
    assert report.to_dict()["skipped_names"] == {
        "hidden": [str(tmp_path / ".git"), str(tmp_path / ".hidden.txt")],
        "linked_folders": [str(tmp_path / "loop")],
        "other": [str(tmp_path / name) for name in ("binary", "cover.png", "x.psd", "y.psd")],
    }


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_compressed_files(tmp_path: Path, name: str, suffix: str) -> None:
    content = {
        "a.jsonl": '{"text": "héllo"}\n',
        "a.json": '["héllo"]',
        "a.csv": "text\nhéllo\n",
        "a.tsv": "text\nhéllo\n",
    }
    data = content.get(name, "héllo\n").encode()
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    half = len(data) // 2
    (tmp_path / (name + suffix)).write_bytes(pack(data[:half]) + pack(data[half:]))  # two members, two frames
    assert [part.text for part in read(tmp_path)[0]] == ["héllo"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "other"])
def test_damaged_compressed_files(tmp_path: Path, suffix: str, damage: str) -> None:
    data = os.urandom(5000).hex().encode()
    packed = gzip.compress(data) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(data)
    if damage == "truncated":
        packed = packed[: len(packed) // 2]
    elif damage == "flipped":
        packed = packed[:2000] + bytes([packed[2000] ^ 0xFF]) + packed[2001:]
    else:
        packed = data
    path = tmp_path / f"story.txt{suffix}"
    path.write_bytes(packed)
    with pytest.raises(SourceError, match=r"story\.txt\.\w+: its (gzip|Zstandard) data is"):
        read(path)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("one\n\ntwo — three\n".encode())))
    parts, report = read("-", documents="blank-line")
    assert [(part.text, part.source, part.line) for part in parts] == [("one", "-", 1), ("two — three", "-", 3)]
    assert report.to_dict()["files"][0]["bytes"] == 19


def test_a_terminal_as_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(SourceError, match="standard input is a terminal, not text"):
        read("-")


@pytest.mark.parametrize("closed", [False, True])
def test_a_closed_standard_input_is_reported(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdin", stream if closed else None)
    with pytest.raises(SourceError, match="standard input is closed"):
        read("-")


def test_standard_input_twice_is_refused() -> None:
    with pytest.raises(SourceError, match="twice"):
        read("-", validation="-")


def test_a_missing_path_suggests_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "stories").mkdir()
    with pytest.raises(SourceError, match="there is no such file or folder") as caught:
        read(tmp_path / "storys" / "one.txt")
    assert str(tmp_path / "stories") in caught.value.hint


def test_all_missing_sources_are_reported_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_bytes(b"%PDF-")
    with pytest.raises(SourceError) as caught:
        read_parts([str(tmp_path / name) for name in ("good.txt", "x.txt", "y.txt")], TextSettings())
    assert "x.txt" in caught.value.message
    assert "y.txt" in caught.value.message


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "story.txt").write_text("at home")
    assert read("~/story.txt")[0][0].text == "at home"


def test_folders_with_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no file that can be read"):
        read(tmp_path)
    (tmp_path / "cover.png").write_bytes(b"")
    with pytest.raises(SourceError, match="1 of other kinds"):
        read(tmp_path)


def test_the_hint_names_each_format_by_its_kind(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        read(tmp_path)
    named = re.findall(r"\.\w+", str(caught.value).split("as they are")[0])
    usual = [form.suffixes[0] for form in formats() if form.suffixes]
    assert len(usual) >= 25
    assert sorted(named) == sorted(usual)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.txt").write_text("a")
    real = os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match=r"locked: can't be listed \(Permission denied\)"):
        read(tmp_path)


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(SourceError, match=r"a\.txt: can't be read"):
        read(tmp_path)


def test_sources_without_training_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n ")
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(SourceError, match="no training text") as caught:
        read(tmp_path)
    assert "2 empty files" in caught.value.message
    with pytest.raises(SourceError, match="no training text"):
        read(tmp_path, on_problem="collect")
    with pytest.raises(SourceError, match="No source"):
        read()


def test_collect_continues_after_each_bad_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": \n{"text": "lost"}\n')
    (tmp_path / "b.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"x" * 100)[:-9])
    (tmp_path / "d.txt").write_text("fine")
    parts, report = read(tmp_path, tmp_path / "missing", on_problem="collect")
    assert [part.text for part in parts] == ["good", "fine"]
    problems = report.to_dict()["problems"]
    assert [(Path(p["file"]).name, p["line"], p["kind"], p["fatal"]) for p in problems] == [
        ("missing", None, "missing", True),
        ("a.jsonl", 2, "bad_json", True),
        ("b.txt", None, "binary", True),
        ("c.txt.gz", None, "damaged", True),
    ]


def test_collect_with_only_problems_does_not_raise(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    parts, report = read(tmp_path, on_problem="collect")
    assert parts == []
    assert report.has_fatal_problems


def test_validation_files_inside_the_training_folder_are_not_trained_on(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "v.txt"):
        (tmp_path / name).write_text(name)
    parts, report = read(tmp_path, validation=str(tmp_path / "v.txt"))
    assert [(part.text, part.split) for part in parts] == [
        ("v.txt", "validation"),
        ("a.txt", "train"),
        ("b.txt", "train"),
    ]
    assert report.to_dict()["skipped"]["held_out_files"] == 1


def test_run_directories_in_a_folder_of_text_are_skipped(tmp_path: Path) -> None:
    """A run started in the folder of the text is created there, and its files are not text."""
    (tmp_path / "story.txt").write_text("A story.\n")
    run = tmp_path / "runs" / "gpt2-story-1"
    run.mkdir(parents=True)
    for name in ("run.json", "config.yaml", "data.json", "card.md"):
        (run / name).write_text("{}")
    parts, report = read(tmp_path)
    assert [part.text for part in parts] == ["A story."]
    assert report.to_dict()["skipped"]["run_directories"] == 1
    (run / "data.txt").write_text("Named, so read.")
    parts, _ = read(run / "data.txt")
    assert len(parts) == 1


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        ('{"prompt": "a", "completion": "b"}\r\n{"prompt": "c"}', "jsonl"),
        ('\ufeff\n {"text": "a"}\n', "jsonl"),
        ('[\n  {"text": "a"}]', "json"),
        ("{a story} of braces", "txt"),
        ('["so" she said]', "txt"),
        ("{1, 2}", "txt"),
        ("Once upon a time", "txt"),
    ],
)
def test_records_without_a_file_name_are_recognised(data: str, suffix: str) -> None:
    assert suffix_of_records(data.encode()) == suffix
