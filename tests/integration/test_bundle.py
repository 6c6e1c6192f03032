"""Test the recipe of the bundled model with a tiny run."""

from __future__ import annotations

import gzip
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny import story

RECIPES = Path(__file__).parents[2] / "recipes"


def write_books(path: Path, title: str, numbers: range) -> Path:
    records = [{"text": story(n), "book": title, "author": "A. Heron", "year": "1901"} for n in numbers]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    return path


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPES))
    module = runpy.run_path(str(RECIPES / "bundle.py"))

    def call(*words: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", ["bundle.py", *map(str, words)])
        module["main"]()

    return call


def test_a_run_becomes_a_bundled_model(
    here: Path, tmp_path: Path, bundle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_books(tmp_path / "train.jsonl.gz", "One", range(60))
    heldout = write_books(tmp_path / "heldout.jsonl.gz", "Other", range(100, 110))
    bundle("run", train, heldout, "--out", tmp_path / "model")
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert printed["bits_per_byte"]["fp16"] == pytest.approx(printed["bits_per_byte"]["fp32"], rel=1e-3)
    weights = load_file(tmp_path / "model/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    card = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    assert "60 documents" in card
    assert "10 documents" in card
    assert f"**{printed['bits_per_byte']['fp16']:.3f}**" in card
    assert "One (A. Heron, 1901)" in card
    assert card.count("\n   > ") >= 10


def test_held_out_text_in_the_training_text_is_refused(here: Path, tmp_path: Path, bundle: Any) -> None:
    train = write_books(tmp_path / "train.jsonl.gz", "One", range(60))
    heldout = write_books(tmp_path / "heldout.jsonl.gz", "Other", range(50, 70))
    with pytest.raises(SystemExit, match="Some of the held-out text is also in the training text"):
        bundle("run", train, heldout, "--out", tmp_path / "model")
    assert not (tmp_path / "model").exists()
