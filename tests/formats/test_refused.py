"""Test unsupported formats: the error has a hint, also in a folder and with a wrong suffix."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.findings import text_notes
from finetale.text.formats import formats
from finetale.text.formats.refused import REFUSED
from finetale.text.reading import read_parts

FILES = Path(__file__).parent / "files"


def refusal(path: Path) -> tuple[str, str]:
    """Read a file that is refused; return the message and the hint."""
    with pytest.raises(SourceError) as error:
        list(read_parts([str(path)], TextSettings())[0])
    return error.value.message.replace(str(path), path.name), error.value.hint


def test_refused_suffixes_have_no_reader_but_a_hint() -> None:
    assert len(REFUSED) >= 100
    assert set(REFUSED).isdisjoint(suffix for form in formats() for suffix in form.suffixes)
    for suffix, refused in REFUSED.items():
        assert suffix == suffix.lower()
        assert suffix.startswith(".")
        assert refused.what.startswith(("a ", "an "))
        assert refused.hint.endswith(".")
        assert not refused.way_out.endswith(".")


@pytest.mark.parametrize(
    ("name", "what", "way"),
    [
        ("soffice.doc", "a Word document of an old version", "--convert-to docx"),
        ("soffice.xls", "an Excel workbook of an old or binary version", "--convert-to xlsx"),
        ("calibre.mobi", "a Kindle e-book", "ebook-convert"),
        ("calibre.azw3", "a Kindle e-book", "ebook-convert"),
        ("pandoc.ipynb", "a Jupyter notebook", "nbconvert"),
    ],
)
def test_real_files_of_refused_formats(name: str, what: str, way: str) -> None:
    message, hint = refusal(FILES / name)
    assert message == f"{name}: is {what}, and Finetale does not read these."
    assert way in hint


@pytest.mark.parametrize("suffix", [".docx", ".xlsx", ".odt", ".ods"])
def test_an_old_office_file_with_a_new_suffix(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"old{suffix}"
    path.write_bytes((FILES / "soffice.doc").read_bytes())
    message, hint = refusal(path)
    detail = "it is a file of an old Office version (.doc, .xls or .ppt) with another suffix"
    assert message == f"old{suffix}: {detail}."
    assert "soffice --headless --convert-to docx" in hint


@pytest.mark.parametrize("suffix", [".txt", ".rtf", ".html", ".md", ".csv"])
def test_an_old_office_file_with_the_suffix_of_text(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"old{suffix}"
    path.write_bytes((FILES / "soffice.doc").read_bytes())
    message, _ = refusal(path)
    assert message.startswith(f"old{suffix}: ")
    assert "old Office document" in message


def test_a_folder_reports_all_hints_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A tale.")
    for name in ("b.doc", "c.doc", "d.pages", "e.png", "f.7z"):
        (tmp_path / name).write_bytes((FILES / "soffice.doc").read_bytes())
    parts, report = read_parts([str(tmp_path)], TextSettings(validation_fraction=0, test_fraction=0))
    assert len(list(parts)) == 1
    (note,) = text_notes(report.to_dict())
    assert note.what == (
        "Read 1 of 6 files; left out: 5 of kinds that are not read "
        "(2 .doc: save as .docx; 1 .7z: unpack; 1 .pages: export as .docx; 1 .png)"
    )
