"""Test the errors for read-only disks and missing texts, and that nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from children import call
from finetale.rundir import RunDirectory
from scene import METHODS, Place


def mark_interrupted(root: Path) -> Path:
    """Turn a finished run into one that was interrupted before its report; return its folder."""
    run = RunDirectory(root)
    run.update_manifest(status="interrupted")
    run.report.unlink()
    return root


@pytest.fixture
def read_only(place: Place, tmp_path: Path) -> Iterator[Path]:
    """Mount a read-only file system with base/, a finished run whole/ and an interrupted run half/."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    shutil.copytree(place.folder / "base", disk / "base")
    shutil.copytree(place.folder / "whole", disk / "whole")
    mark_interrupted(shutil.copytree(place.folder / "whole", disk / "half"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@METHODS
def test_the_error_names_a_read_only_disk(place: Place, read_only: Path) -> None:
    cases = {
        ("train", *place.train_with(out=read_only / "new")[1:]): f"{read_only / 'new'} can't be written: Read-only",
        ("resume", str(read_only / "half")): "can't be written: Read-only",
        ("compare", str(read_only / "whole")): "can't be written: Read-only",
        ("report", str(read_only / "whole")): "can't be written: Read-only",
        (
            *place.train,
            "--out",
            "unwritten",
            "--cache-dir",
            str(read_only / "cache"),
        ): "choose another place with --cache-dir",
    }
    for words, says in cases.items():
        code, output = call(place.folder, *words)
        assert code == 1, output
        assert says in output, output
        assert "hint:" in output
        assert "Traceback" not in output
    assert not (place.folder / "unwritten").exists()
    code, output = call(place.folder, "generate", str(read_only / "whole"), "The lamp", "--max-new-tokens", "2")
    assert code == 0, "reading works"
    code, output = call(place.folder, *place.train_with(model=read_only / "base", out="from-read-only"))
    assert code == 0, output
    assert place.weights_of("from-read-only") == place.digest
    shutil.rmtree(place.folder / "from-read-only")


@METHODS
def test_the_error_names_a_missing_text_and_the_run_resumes_later(place: Place, tmp_path: Path) -> None:
    """Runs of older versions have no tokens/, so they need their text."""
    half = mark_interrupted(shutil.copytree(place.folder / "whole", place.folder / "half"))
    shutil.rmtree(half / "tokens")
    stories = place.folder / "stories"
    stories.rename(tmp_path / "gone")
    for command in ("resume", "compare"):
        code, output = call(place.folder, command, "half")
        assert code == 1
        assert "stories: there is no such file or folder" in output
        assert "Traceback" not in output
    (tmp_path / "gone").rename(stories)
    code, output = call(place.folder, "resume", "half")
    assert code == 0, output
    assert place.weights_of("half") == place.digest
    shutil.rmtree(half)
