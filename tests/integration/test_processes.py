"""Train in several processes with the real command: `--processes`, and started as torchrun would start them."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import finetale
from children import call
from finetale.ranks import Ranks
from finetale.schema import Event, TrainEvent
from finetale.training import Training
from processes import command, failures, together
from scene import train_with
from tiny import save_model, write_stories

# One block per pass, so that the dropout does not depend on the number of processes.
WORDS = train_with(micro_batch_size=1, batch_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stories/, base/ and the run of one process in alone/."""
    folder = tmp_path_factory.mktemp("several")
    write_stories(folder / "stories", 30, words=60)
    save_model(folder / "base", dropout=0.1)
    code, output = call(folder, *WORDS, "--out", "alone")
    assert code == 0, output
    return folder


def losses(run: Path) -> dict[tuple[str, int], float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {(row["event"], row["step"]): row["loss"] for row in rows if row["event"] in ("train", "evaluation")}


def same(run: Path, alone: Path) -> None:
    found, expected = losses(run), losses(alone)
    assert found.keys() == expected.keys()
    assert len(found) >= 10
    np.testing.assert_allclose([found[key] for key in expected], list(expected.values()), rtol=1e-5)


def stop_after(step: int) -> None:
    """Send the main process SIGTERM after a step."""
    emit = Training._emit

    def emit_and_stop(self: Training, event: Event) -> None:
        emit(self, event)
        if isinstance(event, TrainEvent) and event.step == step and self.ranks.is_main:
            os.kill(os.getpid(), signal.SIGTERM)

    Training._emit = emit_and_stop  # type: ignore[method-assign]


def test_a_run_goes_on_with_another_number_of_processes(folder: Path) -> None:
    words: tuple[str, ...] = (*WORDS, "--out", "moved")
    for world, step, shard in ((1, 1, ""), (2, 2, "--shard"), (4, 4, "--no-shard"), (3, 5, "--shard")):
        words = (*words, *filter(None, [shard]))
        codes, output = command(folder, world, words, functools.partial(stop_after, step))
        assert codes == [75] * world, output
        assert "Stopped by SIGTERM" in output[0]
        assert output[1:] == [""] * (world - 1), "the main process alone prints"
        assert json.loads((folder / "moved/run.json").read_text())["status"] == "interrupted"
        words = ("resume", "moved")
    codes, output = command(folder, 2, words)
    assert codes == [0, 0], output
    assert "Report   moved/report.html" in output[0]
    same(folder / "moved", folder / "alone")
    codes, output = command(folder, 2, words)
    assert (codes, output[1]) == ([0, 0], "")
    assert "finished already" in output[0]


@pytest.mark.parametrize("settings", [{"method": "lora", "lora_rank": 2}, {"model": "new:64x1", "vocab_size": 300}])
def test_the_other_processes_load_what_the_main_one_made(folder: Path, settings: dict[str, object]) -> None:
    words = [*train_with(micro_batch_size=1, max_steps=2, **settings), "--out"]
    name = "-".join(settings)
    code, printed = call(folder, *words, f"{name}-1")
    assert code == 0, printed
    codes, output = command(folder, 2, [*words, f"{name}-2"])
    assert codes == [0, 0], output
    one, two = losses(folder / f"{name}-1"), losses(folder / f"{name}-2")
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train", "nowhere", "--model", "base"), "nowhere"),
        (("resume", "stories"), "stories"),
        (("train", "stories", "--model", "base", "--block-size", "9999"), "9999"),
    ],
)
def test_a_failure_before_training_is_said_once_and_ends_all(
    folder: Path, words: tuple[str, ...], sentence: str
) -> None:
    codes, output = command(folder, 2, words)
    assert codes == [1, 1]
    assert output[0].count("error: ") == 1
    assert sentence in output[0]
    assert output[1] == ""


def test_processes_are_a_number_or_auto(folder: Path) -> None:
    for value in ("0", "-1", "two", "1.5"):
        code, output = call(folder, "train", "stories", "--model", "base", f"--processes={value}")
        assert code == 1
        assert f"--processes is '{value}', and must be a number of at least 1, or auto." in output


def test_a_launcher_that_does_not_say_where_the_others_are_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
        done = subprocess.run(
            [sys.executable, "-m", "finetale", *WORDS, "--out", "other"], cwd=folder, capture_output=True, text=True
        )
        monkeypatch.delenv(name)
        assert done.returncode == 1
        assert f"Several processes were started ({name}=2)" in done.stderr


@pytest.mark.slow
def test_processes_killed_at_random_lose_at_most_the_steps_after_a_checkpoint(folder: Path) -> None:
    chance = random.Random(0)
    long = train_with(micro_batch_size=1, batch_size=6, max_steps=400, epochs=999, save_every=10, eval_every=50)
    code, output = call(folder, *long, "--out", "whole")
    assert code == 0, output
    words: tuple[str, ...] = (*long, "--out", "hunted")
    kills = 0
    while kills < 50:
        world = chance.choice((2, 3))
        codes, _ = command(folder, world, words, kill=(chance.randrange(world), chance.uniform(0.5, 2.5)))
        if codes == [0] * world:
            break
        kills += 1
        if (folder / "hunted/run.json").is_file():
            words = ("resume", "hunted")
    assert kills >= 10
    codes, printed = command(folder, 2, words)
    assert codes == [0, 0], printed
    same(folder / "hunted", folder / "whole")


def with_steps(steps: int) -> list[str]:
    words = list(WORDS)
    for flag in ("--max-steps", "--epochs"):
        words[words.index(flag) + 1] = str(steps)
    return words


def start(folder: Path, name: str, *flags: str, steps: int = 5000) -> subprocess.Popen[bytes]:
    """Start a run in several processes, which prints into folder/said; return the launcher once it trains."""
    words = [*with_steps(steps), "--out", name, *flags]
    with (folder / "said").open("w") as said:
        started = subprocess.Popen([sys.executable, "-m", "finetale", *words], cwd=folder, stdout=said, stderr=said)
    metrics = folder / name / "metrics.jsonl"
    for _ in range(600):
        if started.poll() is not None or (metrics.is_file() and '"train"' in metrics.read_text()):
            break
        time.sleep(0.1)
    return started


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_a_sentence(folder: Path, rank: int) -> None:
    started = start(folder, f"bereft-{rank}", "--processes", "2")
    workers = psutil.Process(started.pid).children()
    first, second = sorted(workers, key=lambda worker: int(worker.environ()["RANK"]))
    (second if rank else first).kill()
    code = started.wait(20)
    output = (folder / "said").read_text()
    assert code == 1, output
    assert output.count("error: ") == 1, output
    assert f"error: Process {rank + 1} of 2 was ended by SIGKILL, so the run was stopped." in output
    assert "Traceback" not in output
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.parametrize("flags", [(), ("--processes", "2", "--shard")], ids=["one", "sharded"])
def test_a_run_is_resumed_after_a_kill(folder: Path, flags: tuple[str, ...]) -> None:
    alone, name = folder / "alone-60", f"restarted-{len(flags)}"
    if not alone.exists():
        code, output = call(folder, *with_steps(60), "--out", alone.name)
        assert code == 0, output
    started = start(folder, name, "--max-restarts", "1", *flags, steps=60)
    psutil.Process(started.pid).children()[-1].kill()
    code = started.wait(120)
    output = (folder / "said").read_text()
    assert code == 0, output
    assert " was ended by SIGKILL. The run continues from its last checkpoint (restart 1 of 1)." in output
    assert "Traceback" not in output
    assert "error:" not in output
    same(folder / name, alone)
    assert json.loads((folder / name / "run.json").read_text())["status"] == "finished"


def test_no_restart_is_left_after_the_last_kill(folder: Path) -> None:
    started = start(folder, "hopeless", "--max-restarts", "1")
    for _ in range(2):
        (worker,) = psutil.Process(started.pid).children()
        worker.kill()
        for _ in range(600):  # until it is replaced or the command ends
            children = psutil.Process(started.pid).children() if started.poll() is None else []
            if children != [worker] or started.poll() is not None:
                break
            time.sleep(0.1)
        for _ in range(600):
            if started.poll() is not None or psutil.Process(started.pid).children():
                break
            time.sleep(0.1)
    code = started.wait(60)
    output = (folder / "said").read_text()
    assert code == 1, output
    assert output.count("(restart 1 of 1)") == 1
    assert "error: Process 1 of 1 was ended by SIGKILL, so the run was stopped." in output


def test_processes_without_their_launcher_save_and_leave(folder: Path) -> None:
    started = start(folder, "orphans", "--processes", "2")
    workers = psutil.Process(started.pid).children()
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert json.loads((folder / "orphans/run.json").read_text())["status"] == "interrupted"


def test_processes_starts_them_and_a_signal_stops_all_with_the_code_of_a_run_to_resume(folder: Path) -> None:
    started = start(folder, "launched", "--processes", "2")
    started.send_signal(signal.SIGTERM)
    code = started.wait(60)
    output = (folder / "said").read_text()
    assert code == 75, output
    assert output.count("error: Stopped by SIGTERM. ") == 1, output
    assert "Traceback" not in output
    assert json.loads((folder / "launched/run.json").read_text())["status"] == "interrupted"
    done = json.loads((folder / "launched/run.json").read_text())["steps"]
    code, output = call(folder, "resume", "launched", "--max-steps", str(done + 1), "--processes", "auto")
    assert code == 0, output


def train_twice(ranks: Ranks, folder: Path) -> None:
    """Train two runs from Python, one after the other, and resume the second."""
    os.chdir(folder)
    names = ("first", "second")
    options = {"model": "base", "max_steps": 1, "precision": "fp32", "tensorboard": False}
    runs = [finetale.train("stories", out=f"twice-{name}", **options) for name in names]
    runs.append(finetale.resume("twice-second", max_steps=2))
    assert [str(run.path.name) for run in runs] == ["twice-first", "twice-second", "twice-second"]
    assert runs[-1].comparison.after.perplexity > 1


def test_a_program_can_train_several_runs(folder: Path) -> None:
    assert together(2, train_twice, folder, join=False) == [0, 0], failures(folder, 2)
    assert json.loads((folder / "twice-second/run.json").read_text())["steps"] == 2
