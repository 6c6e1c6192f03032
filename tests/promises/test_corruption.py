"""Test that a changed byte in a checkpoint or model is found, and that an older valid checkpoint is used instead."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from children import call
from finetale import models
from finetale.rundir import MANIFEST_NAME, RunDirectory, add_file, is_sealed, verify_folder
from finetale.training import newest_valid_checkpoint
from scene import METHODS, Place


def flip(file: Path, rng: random.Random) -> None:
    """Change one random byte of a file."""
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    file.write_bytes(data)


def sealed_folders(run: RunDirectory) -> list[Path]:
    adapter = [run.adapter] if run.adapter.is_dir() else []
    return [run.model, *adapter, *(folder for _, folder in run.saved_checkpoints())]


@METHODS
@pytest.mark.parametrize("trials", [100])
def test_one_changed_byte_is_always_found(place: Place, trials: int) -> None:
    rng, tried = random.Random(3), 0
    folders = sealed_folders(RunDirectory(place.folder / "whole"))
    assert len(folders) == (3 if place.method == "full" else 4)
    files = [file for folder in folders for file in sorted(folder.iterdir())]
    assert {"model.safetensors", "optimizer.safetensors", "state.json", MANIFEST_NAME, "README.md"} <= {
        file.name for file in files
    }
    while tried < trials:
        for file in files:
            whole = file.read_bytes()
            assert verify_folder(file.parent) == []
            flip(file, rng)
            problems = verify_folder(file.parent)
            assert len(problems) == 1
            assert problems[0].startswith(file.name) or file.name == MANIFEST_NAME
            file.write_bytes(whole)
            tried += 1


@METHODS
def test_a_corrupted_checkpoint_is_reported_and_the_previous_one_used(place: Place) -> None:
    run = stopped_run(place, "damaged")
    (last, newest), (before, _) = list(run.saved_checkpoints())[:2]
    flip(newest / "optimizer.safetensors", random.Random(1))
    found, damaged = newest_valid_checkpoint(run)
    assert found == run.checkpoint(before)
    assert len(damaged) == 1
    assert newest.name in damaged[0]
    code, output = call(place.folder, "resume", "damaged")
    assert code == 0, output
    assert f"{newest.name} is corrupted and was skipped (optimizer.safetensors: content differs" in output
    assert before < last
    assert place.weights_of("damaged") == place.digest
    shutil.rmtree(run.root)


def test_the_best_checkpoint_replaces_a_corrupted_model(place: Place) -> None:
    name = "changed-byte"
    shutil.copytree(place.folder / "whole", place.folder / name)
    run = RunDirectory(place.folder / name)
    best = run.read_manifest().best_step
    whole = models.load(str(place.folder / "whole"))
    assert whole.warning is None
    flip(run.model / "model.safetensors", random.Random(2))
    loaded = models.load(str(run.root))
    assert loaded.warning is not None
    assert "model.safetensors: content differs" in loaded.warning
    assert f"the checkpoint of step {best} is used" in loaded.warning
    same = [bool((a == b).all()) for a, b in zip(whole.model.parameters(), loaded.model.parameters(), strict=True)]
    assert all(same)
    code, output = call(place.folder, "generate", name, "A heron", "--max-new-tokens", "3")
    assert code == 0
    assert "is corrupted" in output
    code, output = call(place.folder, "generate", f"{name}/model", "A heron")
    assert code == 1
    assert "is corrupted (model.safetensors: content differs from its SHA-256)" in output
    for _, folder in run.saved_checkpoints():
        flip(folder / "config.json", random.Random(2))
    code, output = call(place.folder, "generate", name, "A heron")
    assert code == 1
    assert "and so is every checkpoint" in output
    shutil.rmtree(run.root)


def stopped_run(place: Place, name: str) -> RunDirectory:
    """Return an uninterrupted run without its last checkpoint, report and comparison."""
    code, output = call(place.folder, *place.train, "--out", name, "--keep-checkpoints", "4")
    assert code == 0, output
    run = RunDirectory(place.folder / name)
    shutil.rmtree(run.checkpoint(6))
    run.report.unlink()
    run.comparison.unlink()
    run.update_manifest(status="interrupted")
    return run


def test_transformers_loads_a_checkpoint_as_a_model(place: Place) -> None:
    from transformers import AutoModelForCausalLM

    run = RunDirectory(place.folder / "whole")
    (_, folder), *_ = run.saved_checkpoints()
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ours = models.load(str(folder)).model
    assert all(bool((a == b).all()) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight


def test_checksums_are_updated_when_a_file_is_replaced(tmp_path: Path, place: Place) -> None:
    shutil.copytree(place.folder / "whole/model", tmp_path / "model")
    folder = tmp_path / "model"
    assert is_sealed(folder)
    add_file(folder, "README.md", b"another")
    assert verify_folder(folder) == []
    (folder / "README.md").write_bytes(b"changed")
    assert verify_folder(folder) == ["README.md: content differs from its SHA-256"]
    (folder / "notes.txt").write_text("mine")  # files added by hand are ignored
    (folder / "README.md").write_bytes(b"another")
    assert verify_folder(folder) == []
