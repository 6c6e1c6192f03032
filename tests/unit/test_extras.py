"""Test the behaviour without optional packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from finetale import extras
from finetale.cli import run
from finetale.config import Config
from finetale.errors import ConfigError
from tiny import save_model, write_stories

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an installation without extras."""
    find = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name in extras.EXTRA_OF else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)


def test_each_extra_is_declared() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    assert set(extras.EXTRA_OF.values()) == {
        "answers",
        "datasets",
        "export-gguf",
        "export-onnx",
        "formats",
        "gguf",
        "sentencepiece",
        "serve",
        "tensorboard",
        "track-mlflow",
        "track-trackio",
        "track-wandb",
    }
    for package, extra in extras.EXTRA_OF.items():
        distribution = {"mlflow": "mlflow-skinny"}.get(package, package)
        assert f'"{distribution}>=' in declared.split(f"\n{extra} = [")[1].split("]")[0]


def test_the_error_for_a_missing_package_names_its_extra(bare: None) -> None:
    with pytest.raises(ConfigError) as caught:
        extras.require("tensorboard", "--tensorboard")
    assert caught.value.message == "--tensorboard needs the package tensorboard, which is not installed."
    assert "pip install 'finetale[tensorboard]'" in caught.value.hint


def test_a_dataset_without_the_library_is_refused(bare: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "hf:someone/stories"]) == 1
    printed = capsys.readouterr().err
    assert "error: Reading hf:someone/stories needs the package datasets, which is not installed." in printed
    assert "pip install 'finetale[datasets]'" in printed


def test_training_needs_tensorboard_only_if_it_was_requested(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_stories(tmp_path / "stories", 12, words=30)
    save_model(tmp_path / "base")
    words = ["train", "stories", "--model", "base", "--out", "run", "--max-steps", "1", "--max-new-tokens", "2"]
    assert run([*words, "--tensorboard"]) == 1
    assert "--tensorboard needs the package tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run([*words, "-q"]) == 0
    assert not (tmp_path / "run/tensorboard").exists()
    assert "\ntensorboard: false\n" in (tmp_path / "run/config.yaml").read_text(encoding="utf-8")
    assert Config().tensorboard is None
