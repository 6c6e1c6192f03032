"""Test that a document with tracked changes, hidden text and a text box reads the same in several formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetale.config import TextSettings
from finetale.text.reading import read_parts

FILES = sorted((Path(__file__).parent / "changes").iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_changes_are_read_as_accepted(path: Path) -> None:
    parts, report = read_parts([str(path)], TextSettings(validation_fraction=0, test_fraction=0))
    assert [part.text for part in parts] == ["The clock ate much salt.\n\nA end.\n\nboxed"]
    assert report.to_dict()["files"][0]["left_out"] == {"hidden passage": 1, "tracked deletion": 1}


def test_all_files_exist() -> None:
    assert [path.name for path in FILES] == ["soffice.docx", "soffice.odt", "soffice.rtf", "source.fodt"]
