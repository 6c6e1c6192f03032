"""Provide a finished run of the real command on a tiny model, shared by the tests that read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetale.cli import run
from tiny import save_model, write_stories

TRAIN = [
    "--epochs",
    "3",
    "--batch-size",
    "8",
    "--learning-rate",
    "3e-3",
    "--precision",
    "fp32",
    "--max-new-tokens",
    "20",
    "--quiet",
]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with stories/ (60 files), base/ (a tiny model) and run/ (base trained on stories)."""
    folder = tmp_path_factory.mktemp("workplace")
    patch = pytest.MonkeyPatch()
    patch.setenv("FINETALE_CACHE", str(folder / "cache"))
    patch.chdir(folder)
    try:
        write_stories(folder / "stories", 60)
        save_model(folder / "base", dropout=0.1)
        assert run(["train", "stories", "--model", "base", "--out", "run", *TRAIN]) == 0
    finally:
        patch.undo()
    return folder


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to the folder of `workplace` and use its cache."""
    monkeypatch.setenv("FINETALE_CACHE", str(workplace / "cache"))
    monkeypatch.chdir(workplace)
    return workplace
