"""Test which files of a folder are read: skipped files are reported and counted, and pipes and devices not opened."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import fingerprint, read_parts
from finetale.text.findings import text_notes

needs_posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


def read(*sources: Path | str, on_problem: str = "raise", **settings: object) -> tuple[list[str], dict[str, Any]]:
    resolved = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, **settings})
    parts, report = read_parts([str(source) for source in sources], resolved, on_problem=on_problem)  # type: ignore[arg-type]
    return [part.text for part in parts], json.loads(json.dumps(report.to_dict(), ensure_ascii=False).encode())


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make files named locked… unreadable, also for root."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).name.startswith("locked") and real(path, mode))


def test_skipped_files_are_reported_in_one_sentence_with_names(tmp_path: Path) -> None:
    for name in ("a.txt", "README", "x.psd", "y.psd", "z.XCF", "run", "deep/w.psd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\n" if name == "run" else "text")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "link").symlink_to(tmp_path / "deep", target_is_directory=True)
    (note,) = text_notes(read(tmp_path)[1])
    assert note.what == (
        "Read 2 of 8 files; left out: 5 of kinds that are not read (3 .psd, 1 (no suffix), 1 .xcf) and 1 without text; "
        "not entered or read: 1 linked folder"
    )
    assert note.line().endswith("1 linked folder: w.psd, empty.txt, link, run, x.psd, ….")
    assert not note.matters


def test_no_sentence_if_no_file_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert text_notes(read(tmp_path)[1]) == []


def test_lists_of_names_are_capped_but_counts_are_exact(tmp_path: Path) -> None:
    for number in range(1200):
        (tmp_path / f"{number:04}.txt").write_text(f"text {number}")
        if number < 30:
            (tmp_path / f"{number:04}.psd").touch()
    _, report = read(tmp_path)
    assert (len(report["files"]), report["more_files"], report["files_read"]) == (1000, 200, 1200)
    assert report["skipped"]["other"] == {".psd": 30}
    assert len(report["skipped_names"]["other"]) == 10


# -- unreadable files


@needs_posix
def test_all_unreadable_files_are_reported_together(tmp_path: Path, unreadable: None) -> None:
    for name in ("locked1.txt", "good.txt", "locked2.csv", "locked3.parquet", "d/locked4.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "circle.txt").symlink_to(tmp_path / "circle.txt")
    with pytest.raises(SourceError) as caught:
        read(tmp_path)
    for name in ("locked1.txt", "locked2.csv", "locked3.parquet", "locked4.txt", "dangling.txt", "circle.txt"):
        assert f"{name} (" in caught.value.message
    assert caught.value.message.startswith("6 files or folders can't be read: ")
    assert "good.txt" not in caught.value.message
    assert "--skip-unreadable" in caught.value.hint
    _, report = read(tmp_path, on_problem="collect")
    assert [row["kind"] for row in report["problems"] if row["fatal"]] == ["unreadable"] * 6


@needs_posix
def test_many_unreadable_files_are_counted(tmp_path: Path, unreadable: None) -> None:
    for number in range(25):
        (tmp_path / f"locked{number:02}.txt").touch()
    with pytest.raises(
        SourceError, match=r"^25 files or folders can't be read: .*locked09\.txt \(Permission denied\), and 15 more\. "
    ) as caught:
        read(tmp_path)
    assert "locked10.txt" not in caught.value.message


@needs_posix
def test_unreadable_files_can_be_skipped(tmp_path: Path, unreadable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("locked.txt", "good.txt", "later.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone.txt")
    real = Path.open

    def opened(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "later.txt":
            raise OSError(5, "Input/output error")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    texts, report = read(tmp_path, skip_unreadable=True)
    assert texts == ["good.txt"]
    assert report["skipped"]["unreadable"] == 3
    assert report["skipped_names"]["unreadable"] == [
        str(tmp_path / f"{name}.txt") for name in ("dangling", "later", "locked")
    ]
    assert report["problems"] == []
    (note,) = text_notes(report)
    assert note.what == "Read 1 of 4 files; left out: 3 that can't be read"
    assert note.matters
    with pytest.raises(SourceError, match="no training text in"):
        read(tmp_path / "locked.txt", skip_unreadable=True)


@needs_posix
def test_a_folder_that_cannot_be_listed_can_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.txt").write_text("a")
    real = os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    texts, report = read(tmp_path, skip_unreadable=True)
    assert texts == ["a"]
    assert report["skipped_names"]["unreadable"] == [str(tmp_path / "locked")]


@needs_posix
def test_the_cache_key_depends_on_the_skipped_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    alone = fingerprint([str(tmp_path)], TextSettings())
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    assert fingerprint([str(tmp_path)], TextSettings()) is None
    assert fingerprint([str(tmp_path)], TextSettings(skip_unreadable=True)) == alone
    (tmp_path / "gone.txt").write_text("b")
    assert fingerprint([str(tmp_path)], TextSettings(skip_unreadable=True)) != alone


# -- special files


@needs_posix
def test_pipes_sockets_and_devices_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    os.mkfifo(folder / "pipe.txt")
    (folder / "null.txt").symlink_to("/dev/null")
    monkeypatch.chdir(folder)  # socket names have a length limit
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket.txt")
    texts, report = read(folder)
    server.close()
    assert texts == ["text"]
    assert report["skipped"]["special"] == 3
    assert [Path(name).name for name in report["skipped_names"]["special"]] == ["null.txt", "pipe.txt", "socket.txt"]
    assert text_notes(report)[0].what == "Read 1 of 4 files; left out: 3 that are not regular files"
    for name, what in (("pipe.txt", "a named pipe"), ("null.txt", "a device"), ("socket.txt", "a socket")):
        with pytest.raises(SourceError, match=rf"{name}: is {what}, not a regular file, and is not opened") as caught:
            read(folder / name)
        assert "standard input" in caught.value.hint


# -- formats


@pytest.mark.parametrize(
    ("name", "what", "way"),
    [
        ("feed.xml", "an XML file", ".txt"),
        ("FEED.XML", "an XML file", ".txt"),
        ("feed.xml.gz", "an XML file", ".txt"),
        ("a.odp", "a presentation", ".pdf"),
        ("a.djvu", "a DjVu document", "djvutxt"),
        ("a.numbers", "a Numbers spreadsheet", ".xlsx"),
        ("a.ipynb", "a Jupyter notebook", "nbconvert"),
        ("a.png", "a picture", ".txt"),
        ("a.mp3", "a recording", ".txt"),
    ],
)
def test_formats_that_are_not_plain_text_are_refused_by_name(tmp_path: Path, name: str, what: str, way: str) -> None:
    (tmp_path / name).write_text("<html><style>p {}</style><p>Once upon a time</p></html>")
    (tmp_path / "a.txt").write_text("text")
    for settings in ({}, {"validation": str(tmp_path / name)}):
        with pytest.raises(SourceError, match=rf"{name}: is {what}, and Finetale does not read these") as caught:
            read(tmp_path / ("a.txt" if settings else name), **settings)
        assert way in caught.value.hint
    assert read(tmp_path)[0] == ["text"]


@pytest.mark.parametrize("name", ["notes", "story.bbl", "story.log", "story.rst", "main.py", "subtitles.sbv"])
def test_other_names_are_read_as_plain_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Once.")
    assert read(tmp_path / name)[0] == ["Once."]


@pytest.mark.parametrize(
    "name", ["a.txt", "a.md", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.docx", "a.odt", "a.fodt"]
)
@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_a_file_without_text_is_not_a_document(tmp_path: Path, name: str, content: str) -> None:
    if name in ("a.parquet", "a.docx", "a.odt", "a.fodt", "a.rtf") and content:
        pytest.skip("white space is no such file")
    (tmp_path / name).write_text(content)
    (tmp_path / "good.txt").write_text("text")
    texts, report = read(tmp_path, strip=False)
    assert texts == ["text"]
    assert report["documents"] == 1
    assert report["skipped"]["empty"] == 1
    assert report["skipped_names"]["empty"] == [str(tmp_path / name)]
    with pytest.raises(SourceError, match=r"no training text in .* \(1 empty file\)"):
        read(tmp_path / name)


# -- names


@needs_posix
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xe9.txt", "caf\\xe9.txt"),
        (b"\xff\xfe.jsonl", "\\xff\\xfe.jsonl"),
        (b"two\nlines.txt", "two\\x0alines.txt"),
        (b"\x1b[31mred.txt", "\\x1b[31mred.txt"),
        ("café.txt".encode(), "café.txt"),
    ],
)
def test_unprintable_names_are_escaped(tmp_path: Path, name: bytes, shown: str) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    content = b'{"text": "hello"}' if name.endswith(b"l") else b"hello"
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError:
        pytest.skip("this file system takes no such names")
    with open(os.path.join(os.fsencode(tmp_path), name[:-4] + b".mp3"), "wb"):
        pass
    for source in (str(tmp_path), os.fsdecode(path)):
        texts, report = read(source)
        assert texts == ["hello"]
        assert report["files"][0]["file"] == str(tmp_path / shown)
        json.dumps(report, ensure_ascii=False).encode("utf-8")
    assert fingerprint([os.fsdecode(path)], TextSettings())
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SourceError) as caught:
        read(tmp_path)
    assert shown in caught.value.message
    caught.value.message.encode("utf-8")
    with pytest.raises(SourceError, match="no such file") as caught:
        read(os.fsdecode(path) + "x")
    caught.value.message.encode("utf-8")
    caught.value.hint.encode("utf-8")


def test_check_shows_a_table_whose_encoding_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from finetale.cli import run

    pq.write_table(pa.table({"text": ["One document."]}), tmp_path / "a.parquet")
    assert run(["check", str(tmp_path / "a.parquet"), "--offline"]) == 0
    assert capsys.readouterr().out.startswith("1 document, 13 characters, 2 words\n")


# -- folders and files that only look like text


@pytest.mark.parametrize("files", [("state.json", "dataset_info.json", "data.arrow"), ("dataset_dict.json",)])
def test_the_error_for_a_saved_dataset_says_how_to_read_it(tmp_path: Path, files: tuple[str, ...]) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in files:
        (folder / name).write_text('{"splits": ["train", "test"], "citation": "A text of some words"}')
    (tmp_path / "a.txt").write_text("text")
    for source in (folder, tmp_path):
        with pytest.raises(SourceError, match=r"saved: can't be read \(a data set that save_to_disk wrote") as caught:
            read(source)
        assert "load_from_disk" in caught.value.hint
    texts, report = read(tmp_path, skip_unreadable=True)
    assert (texts, report["skipped"]["unreadable"]) == (["text"], 1)


def test_skip_unreadable_skips_binary_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_bytes(b"abc\0def\0" * 20)
    with pytest.raises(SourceError, match="is binary data") as caught:
        read(tmp_path)
    assert "--skip-unreadable" in caught.value.hint
    texts, report = read(tmp_path, skip_unreadable=True)
    assert (texts, report["skipped"]["unreadable"]) == (["text"], 1)
    assert text_notes(report)[0].what == "Read 1 of 2 files; left out: 1 that can't be read"


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert read(".")[0] == ["text"]
    with pytest.raises(SourceError, match="the name of a source is empty"):
        read(name)


def test_a_missing_file_without_similar_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        read("stories")
    assert caught.value.hint == "Check the path: the current folder holds nothing of a similar name."
