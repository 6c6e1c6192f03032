"""Test the disk space of a run: the forecast, the refusal of runs that do not fit, and a disk that fills up."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from children import call
from finetale.blocks import Blocks
from finetale.rundir import RunDirectory, atomic, verify_folder
from scene import METHODS, Place


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def record_sizes() -> None:
    """Append the size of the run to the file `sizes` whenever a folder is about to be renamed to its final name."""
    swap = atomic._swap

    def watched(new: Path, place: Path, keep: bool = False) -> None:
        root = Path("sized").absolute()
        with Path("sizes").open("a", encoding="utf-8") as file:
            file.write(f"{bytes_in(root)}\n")
        swap(new, place, keep)

    atomic._swap = watched


def step_2_is_best_until_8() -> None:
    """Make step 2 the best until step 8 is the best, by changing the validation losses after step 2; record sizes."""
    from finetale.training import Training

    record_sizes()
    measured = Training._measure

    def worse(self: Training, model: Any, blocks: Blocks) -> SimpleNamespace:
        shift = 0 if self.state.step <= 2 else -2 if self.state.step == 8 else 1
        return SimpleNamespace(loss=measured(self, model, blocks).loss + shift)

    Training._measure = worse  # type: ignore[assignment,method-assign]


@METHODS
@pytest.mark.parametrize("keep", [1, 3])
def test_the_forecast_of_disk_space_is_right(place: Place, keep: int) -> None:
    """At step 8 the best checkpoint is an old one, so it takes space in addition to the newest ones."""
    large = (
        {} if place.method == "full" else {"lora_rank": 64, "learning_rate": "1e-3"}
    )  # so that weights take more space than the report
    words = place.train_with(keep_checkpoints=keep, max_steps=8, patience=0, **large)
    code, output = call(place.folder, "plan", *words[1:], "--json")
    assert code == 0, output
    forecast = json.loads(output)["disk"]["peak_bytes"]
    (place.folder / "sizes").unlink(missing_ok=True)
    code, output = call(place.folder, *words, "--out", "sized", hook=step_2_is_best_until_8)
    assert code == 0, output
    assert [step for step, _ in RunDirectory(place.folder / "sized").saved_checkpoints()] == [*range(8, 8 - keep, -1)]
    taken = max(int(line) for line in (place.folder / "sizes").read_text().split())
    shutil.rmtree(place.folder / "sized")
    assert 0.95 * forecast <= taken <= forecast


@METHODS
def test_a_run_that_does_not_fit_on_the_disk_is_refused_at_the_start(place: Place) -> None:
    code, output = call(place.folder, *place.train, "--out", "nowhere", hook=pretend_a_full_disk)
    assert code == 1, output
    assert "The run needs " in output
    assert "are free in " in output
    assert not (place.folder / "nowhere").exists()


def pretend_a_full_disk() -> None:
    """Report that only 100 kB are free."""
    usage = shutil.disk_usage

    def little(path: str) -> tuple[int, int, int]:
        return type(usage(path))(10**9, 10**9 - 10**5, 10**5)

    shutil.disk_usage = little  # type: ignore[assignment]


@pytest.fixture
def small_disk(place: Place, tmp_path: Path) -> Iterator[Path]:
    """Mount a file system in memory that has no space for the whole run; skip the test without the permission."""
    disk = tmp_path / "small"
    disk.mkdir()
    size = "2m" if place.method == "full" else "512k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def skip_disk_check() -> None:
    """Skip the check of the disk space."""
    from finetale.pipeline import training_run

    training_run.check_disk = lambda root, plan: None


@METHODS
def test_a_disk_that_fills_up_leaves_only_whole_checkpoints(place: Place, small_disk: Path) -> None:
    run = RunDirectory(small_disk / "run")
    code, output = call(
        place.folder, *place.train, "--out", str(run.root), "--keep-checkpoints", "9", hook=skip_disk_check
    )
    assert code == 1, output
    assert "can't be written" in output
    assert "Free some disk space" in output
    saved = [folder for _, folder in run.saved_checkpoints()]
    assert saved
    assert all(verify_folder(folder) == [] for folder in saved)
    assert verify_folder(run.model) == []
    assert run.adapter.exists() is (place.method == "lora")
    assert not run.adapter.exists() or verify_folder(run.adapter) == []
    assert not [path for path in run.root.rglob(".*") if path.name.endswith(".tmp")]
    moved = place.folder / "moved"
    shutil.copytree(run.root, moved, ignore=shutil.ignore_patterns(".lock"))
    code, output = call(place.folder, "resume", "moved")
    assert code == 0, output
    assert place.weights_of("moved") == place.digest
    shutil.rmtree(moved)
