"""Test that one process at a time works on a run directory, and that its lock ends with the process."""

from __future__ import annotations

import time

import pytest

from children import call, finish, start
from finetale.errors import RunError
from finetale.rundir import RunDirectory
from scene import TRAIN, Place, train_with
from tiny import write_stories


def hang_at_step_2() -> None:
    """Make step 2 hang."""
    from finetale.training import Training

    update = Training._update

    def slow(self: Training, **options: bool) -> float:
        if self.state.step == 1:
            time.sleep(600)
        return update(self, **options)

    Training._update = slow  # type: ignore[method-assign]


def test_a_second_command_on_a_run_is_refused(place: Place) -> None:
    run = RunDirectory(place.folder / "busy")
    working = start(place.folder, (*TRAIN, "--out", "busy"), hang_at_step_2)
    try:
        while not run.metrics.is_file() or b'"train"' not in run.metrics.read_bytes():
            assert working.is_alive()
            time.sleep(0.01)
        before = run.manifest.read_bytes()
        for words in (
            ("resume", "busy"),
            (*TRAIN, "--out", "busy", "--overwrite"),
            ("compare", "busy"),
            ("report", "busy"),
        ):
            code, output = call(place.folder, *words)
            assert code == 1, output
            assert f"busy is in use: another process is working on this run (process {working.pid}" in output
        assert run.manifest.read_bytes() == before
        assert (
            call(place.folder, "generate", "busy", "A heron", "--max-new-tokens", "2")[0] == 0
        )  # reading needs no lock
    finally:
        working.kill()
        working.join()
    code, output = call(place.folder, "resume", "busy")
    assert code == 0, output
    assert place.weights_of("busy") == place.digest


def test_one_of_two_new_runs_in_the_same_folder_is_refused(place: Place) -> None:
    runs = [start(place.folder, (*TRAIN, "--out", "same")) for _ in range(2)]
    assert sorted(finish(run) for run in runs) == [0, 1]
    assert place.weights_of("same") == place.digest


def test_simultaneous_runs_of_the_same_text_share_the_cache(place: Place) -> None:
    """All of them tokenise the text at the same time."""
    write_stories(place.folder / "shared", 25, words=50)
    words = ["shared" if word == "stories" else word for word in train_with(max_steps=1)]
    runs = [start(place.folder, (*words, "--out", f"shared-{number}")) for number in range(6)]
    assert [finish(run) for run in runs] == [0] * 6
    sums = {RunDirectory(place.folder / f"shared-{number}").read_manifest().data_sha256 for number in range(6)}
    assert len(sums) == 1
    assert not list((place.folder / "cache/tokens").glob(".*"))


def test_a_lock_is_released(place: Place) -> None:
    run = RunDirectory(place.folder / "locked")
    with run.locked(), pytest.raises(RunError, match="in use"), RunDirectory(run.root).locked():
        pass
    with run.locked():
        pass
    assert not run.holds_anything()
