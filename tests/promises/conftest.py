"""Provide a folder with text, a base model and an uninterrupted run."""

from __future__ import annotations

import pytest

from children import call
from scene import TRAIN, Place, digest_of
from tiny import save_model, write_stories


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("promises")
    write_stories(folder / "stories", 30, words=60)
    save_model(folder / "base", dropout=0.1)
    code, output = call(folder, *TRAIN, "--out", "whole")
    assert code == 0, output
    return Place(folder, digest_of(folder / "whole"))
