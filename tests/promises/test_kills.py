"""Test that a run killed at any moment resumes from its last complete checkpoint and ends with the same weights."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from pathlib import Path

import pytest

from children import call, start
from finetale.rundir import RunDirectory
from finetale.schema import CheckpointEvent
from finetale.training import newest_valid_checkpoint
from scene import METHODS, Place


def completed(run: RunDirectory) -> int:
    """Return the last step whose checkpoint the killed process reported as complete, or -1."""
    if not run.metrics.is_file():
        return -1
    rows = run.read_events()
    return max((row.step for row in rows if isinstance(row, CheckpointEvent)), default=-1)


def kill_and_resume(place: Place, name: str, delay: float, *, saving: bool) -> str:
    """Kill a run `delay` seconds after its directory appeared, and resume it. Return the interrupted stage.

    Args:
        saving: after the delay, wait until the run writes a folder, and kill it `delay` milliseconds later.
    """
    run = RunDirectory(place.folder / name)
    process = start(place.folder, (*place.train, "--out", name))
    while not run.root.exists() and process.is_alive():
        time.sleep(0.0005)
    time.sleep(delay)
    if saving:
        while process.is_alive() and not _half_written(run):
            pass
        time.sleep(delay / 1000)
    process.kill()
    process.join()
    if not run.is_run():  # killed before run.json was written, so a new run can use the folder
        code, output = call(place.folder, *place.train, "--out", name)
        assert code == 0, output
        assert place.weights_of(name) == place.digest
        shutil.rmtree(run.root)
        return "the beginning"
    leftovers = _half_written(run)
    known, (newest, damaged) = completed(run), newest_valid_checkpoint(run)
    assert not damaged
    assert (int(newest.name.removeprefix("step-")) if newest else -1) >= known
    if run.read_manifest().status == "finished" and run.report.is_file():
        stage = "after the end"
    else:
        code, output = call(place.folder, "resume", name)
        assert code == 0, output
        stage = "saving" if leftovers else "other work"
    assert place.weights_of(name) == place.digest
    assert not _half_written(run)
    assert json.loads(run.manifest.read_text(encoding="utf-8"))["status"] == "finished"
    shutil.rmtree(run.root)
    return stage


def _half_written(run: RunDirectory) -> list[Path]:
    """Return the temporary and the replaced folders and files."""
    found = []
    for folder in (run.root, run.checkpoints):
        with contextlib.suppress(OSError):
            found += [path for path in folder.iterdir() if path.name.endswith((".tmp", ".old"))]
    return found


def seconds_of_a_run(place: Place) -> float:
    """Return the seconds from the creation of the directory to the end of a run."""
    run = RunDirectory(place.folder / "timed")
    process = start(place.folder, (*place.train, "--out", "timed"))
    while not run.root.exists():
        time.sleep(0.0005)
    began = time.perf_counter()
    process.join()
    shutil.rmtree(run.root)
    return time.perf_counter() - began


@METHODS
@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_killed_run_resumes(place: Place, kills: int, record_property: pytest.FixtureRequest) -> None:
    rng, length = random.Random(7), seconds_of_a_run(place)
    # Some kills come within 20 ms, while the directory is being filled.
    delays = [rng.uniform(0, 0.02 if number % 10 == 0 else length) for number in range(kills)]
    stages = [
        kill_and_resume(place, f"killed-{number}", delay, saving=number % 3 == 1) for number, delay in enumerate(delays)
    ]
    counts = {what: stages.count(what) for what in sorted(set(stages))}
    print(f"{kills} kills, all resumed to the same weights; stages: {counts}")
    assert kills < 100 or counts["saving"] >= kills // 10


def test_files_reach_the_disk_in_the_promised_order(tmp_path: Path) -> None:
    """Files are flushed before the manifest is written, the folder before it is renamed, its parent afterwards."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    import re
    import subprocess
    import sys

    program = (
        "from pathlib import Path\n"
        "from finetale.rundir import write_sealed_folder\n"
        f"place = Path({str(tmp_path)!r}) / 'step-00000001'\n"
        "def fill(folder):\n"
        "    (folder / 'a.bin').write_bytes(b'a' * 10000)\n"
        "    (folder / 'b.json').write_text('{}')\n"
        "write_sealed_folder(place, fill)\n"
    )
    traced = tmp_path / "trace"
    calls = "trace=openat,fsync,rename,renameat,renameat2,close"
    command = [strace, "-f", "-y", "-e", calls, "-o", str(traced), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("processes can't be traced here")
    assert done.returncode == 0, done.stderr
    events = []
    for line in traced.read_text(encoding="utf-8").splitlines():
        if str(tmp_path) not in line or "ENOENT" in line:
            continue
        if found := re.search(r"fsync\(\d+<([^>]+)>", line):
            events.append(("fsync", Path(found[1]).name))
        elif "rename" in line:
            names = re.findall(r'"([^"]+)"', line)
            events.append(("rename", Path(names[1]).name))
    folder = next(name for kind, name in events if name.startswith(".step"))
    assert events == [
        ("fsync", "a.bin"),
        ("fsync", "b.json"),
        ("fsync", next(name for kind, name in events if "manifest" in name and kind == "fsync")),
        ("rename", "manifest.json"),
        ("fsync", folder),
        ("fsync", folder),
        ("rename", "step-00000001"),
        ("fsync", tmp_path.name),
    ]
