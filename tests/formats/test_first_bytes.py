"""Test that the first bytes decide the format of files with a wrong suffix, and that this is reported."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.findings import text_notes
from finetale.text.formats.zipped import OLE_MAGIC
from finetale.text.reading import read_parts

FILES = Path(__file__).parent / "files"
RTF = rb"{\rtf1\ansi Once upon a time.\par}"


def read(*paths: Path, **settings: Any) -> tuple[list[str], dict[str, Any]]:
    resolved = TextSettings(validation_fraction=0, test_fraction=0, **settings)
    parts, report = read_parts([str(path) for path in paths], resolved)
    return [part.text for part in parts], report.to_dict()


@pytest.mark.parametrize("suffix", ["doc", "docx", "txt", "jsonl", "odt", "md", "DOT", "epub", "parquet"])
def test_rtf_with_another_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(RTF)
    for source in (path, tmp_path):
        texts, report = read(source)
        assert texts == ["Once upon a time."]
        assert report["files"][0]["kind"] == "rtf"
        (note,) = [note for note in text_notes(report) if "first bytes" in note.what]
        assert note.what == f"In a.{suffix}, the first bytes are those of rtf, so it is read as rtf despite its name"
        assert (note.places, note.matters) == ((str(path),), False)


@pytest.mark.parametrize("real", ["docx", "odt", "epub", "fodt"])
@pytest.mark.parametrize("suffix", ["doc", "rtf", "txt"])
def test_zipped_documents_with_another_suffix(tmp_path: Path, real: str, suffix: str) -> None:
    source = FILES / f"{'soffice' if real != 'epub' else 'pandoc'}.{real}"
    path = tmp_path / f"a.{suffix}"
    shutil.copy(source, path)
    if real == "fodt":
        if suffix == "rtf":
            with pytest.raises(SourceError, match="does not start as RTF does"):
                read(path)
        else:
            assert "<office:document" in read(path)[0][0]  # text with markup
        return
    texts, report = read(path)
    assert texts == read(source)[0]
    assert report["files"][0]["kind"] == real
    assert f"those of {real}" in report["problems"][0]["detail"]


def test_docx_with_the_suffix_of_odt_and_the_reverse(tmp_path: Path) -> None:
    for real, suffix in (("docx", "odt"), ("odt", "docx"), ("odt", "epub")):
        path = tmp_path / f"a.{suffix}"
        shutil.copy(FILES / f"soffice.{real}", path)
        assert read(path)[1]["files"][0]["kind"] == real


def test_correct_suffixes_are_not_reported(tmp_path: Path) -> None:
    for name in ("soffice.docx", "soffice.odt", "soffice.rtf", "soffice.fodt", "pandoc.epub"):
        assert read(FILES / name)[1]["problems"] == []


def test_html_and_text_as_doc(tmp_path: Path) -> None:
    path = tmp_path / "a.doc"
    path.write_text("<html><body><p>Once upon a time</p></body></html>")
    texts, report = read(path)
    assert (texts, report["files"][0]["kind"]) == (["Once upon a time"], "html")
    path.write_text("Once upon a time")
    texts, report = read(path)
    assert (texts, report["files"][0]["kind"]) == (["Once upon a time"], "text")


def test_markup_in_a_text_file_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("<html>Once</html>")
    assert read(path)[0] == ["<html>Once</html>"]


def test_an_old_word_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.doc"
    path.write_bytes(OLE_MAGIC + b"\0" * 600)
    with pytest.raises(SourceError) as caught:
        read(path)
    assert caught.value.message == f"{path}: is a Word document of an old version, and Finetale does not read these."
    assert caught.value.hint == "Save it as .docx, or convert it with `soffice --headless --convert-to docx FILE`."
    (tmp_path / "b.txt").write_text("text")
    texts, report = read(tmp_path)
    assert (texts, report["skipped"]["other"]) == (["text"], {".doc": 1})


def test_unreadable_documents_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(OLE_MAGIC + "EncryptedPackage".encode("utf-16-le"))
    (tmp_path / "b.odt").write_bytes((FILES / "soffice.odt").read_bytes()[:5000])
    (tmp_path / "c.rtf").write_bytes(RTF[:-1])
    (tmp_path / "d.txt").write_text("text")
    with pytest.raises(SourceError, match="encrypted with a password"):
        read(tmp_path)
    texts, report = read(tmp_path, skip_unreadable=True)
    assert (texts, report["skipped"]["unreadable"]) == (["text"], 3)
