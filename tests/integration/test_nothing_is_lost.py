"""Test that no command destroys a run, base or text, and that misleading comparisons are refused or reported."""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from finetale.cli import run
from finetale.pipeline import evaluating, training_run
from finetale.rundir import RunDirectory, recover
from tiny import save_model, story, write_stories

QUICK = ("--max-steps", "2", "--max-new-tokens", "5", "--num-prompts", "1", "--no-tensorboard")
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with stories/ and base/."""
    monkeypatch.setenv("FINETALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_stories(tmp_path / "stories", 40)
    save_model(tmp_path / "base")
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run_command(*words: str | Path) -> tuple[int, str]:
        capsys.readouterr()
        code = run([str(word) for word in words])
        return code, capsys.readouterr().err

    return run_command


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_run_created_in_the_meantime_is_not_deleted(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = training_run.prepare

    def slow(*args: Any, **options: Any) -> Any:
        RunDirectory(place / "out").update_manifest(status="running", name="somebody else's")
        return prepare(*args, **options)

    monkeypatch.setattr(training_run, "prepare", slow)
    code, err = call("train", "stories", "--model", "base", "--out", "out", *QUICK)
    assert code == 1
    assert "contains a run already" in err
    assert read(place / "out/run.json")["name"] == "somebody else's"


def test_a_run_is_not_replaced_if_the_new_run_reads_it(place: Path, call: Call) -> None:
    assert call("train", "stories", "--model", "base", "--out", "out", *QUICK)[0] == 0
    before = (place / "out/model/model.safetensors").read_bytes()
    shutil.copytree("stories", "out/texts")
    for needed, words in (("out", ("stories", "--model", "out")), ("out/texts", ("out/texts", "--model", "base"))):
        code, err = call("train", *words, "--out", "out", "--overwrite", *QUICK)
        assert code == 1
        assert f"out can't be replaced: the new run reads {needed}, which would be deleted." in err
    assert (place / "out/model/model.safetensors").read_bytes() == before
    assert call("train", "stories", "--model", "base", "--out", "out", "--overwrite", *QUICK)[0] == 0
    assert not (place / "out/texts").exists()


def test_the_settings_of_a_run_can_start_another_run(place: Path, call: Call) -> None:
    assert call("train", "stories", "--model", "base", "--out", "out", "--overwrite", *QUICK)[0] == 0
    settings = yaml.safe_load((place / "out/config.yaml").read_text(encoding="utf-8"))
    assert settings["overwrite"] is False
    assert "out" not in settings
    assert call("train", "--config", "out/config.yaml")[0] == 0
    assert (place / "runs/base-stories-1/report.html").is_file()


def test_an_empty_folder_behind_a_link_is_used(place: Path, call: Call) -> None:
    (place / "elsewhere").mkdir()
    (place / "link").symlink_to("elsewhere")
    assert call("train", "stories", "--model", "base", "--out", "link", *QUICK)[0] == 0
    assert read(place / "elsewhere/run.json")["status"] == "finished"


def test_a_run_can_be_used_from_another_folder(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("train", "stories", "--model", "base", "--out", "out", *QUICK)[0] == 0
    first = read(place / "out/comparison.json")
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    assert call("compare", "../out", "--quiet")[0] == 0
    assert read(place / "out/comparison.json") == first


def test_a_comparison_uses_the_original_text_of_the_run(place: Path, call: Call) -> None:
    """With 19 documents, parts of documents are held out; with 20, whole documents that the run was trained on."""
    write_stories(place / "few", 19)
    assert call("train", "few", "--model", "base", "--out", "out", *QUICK)[0] == 0
    before = (place / "out/comparison.json").read_bytes()
    (place / "few/new.txt").write_text(story(99), encoding="utf-8")
    assert call("compare", "out")[0] == 0
    assert (place / "out/comparison.json").read_bytes() == before
    assert call("compare", "base", "out")[0] == 0
    shutil.rmtree(place / "out/tokens")  # as in a run of an older version
    for words in (("compare", "out"), ("compare", "base", "out")):
        code, err = call(*words)
        assert code == 1
        assert "The text has changed since the run began" in err
    assert (place / "out/comparison.json").read_bytes() == before


def test_held_out_text_in_the_training_text_is_reported(place: Path, call: Call) -> None:
    shutil.copytree("stories", "held")
    for number in range(10, 40):
        (place / f"held/{number:03}.txt").unlink()
    words = ("train", "stories", "--model", "base", "--validation", "held", *QUICK)
    code, err = call(*words, "--out", "kept")
    assert code == 0
    assert "10 training documents also occur in the validation or test text" in err
    assert call(*words, "--out", "clean", "--drop-overlap", "exact")[0] == 0
    dropped = read(place / "clean/data.json")["dropped"]
    assert [(row["reason"], row["documents"]) for row in dropped] == [("also in validation or test", 10)]


def test_early_stopping_saves_a_checkpoint(place: Path, call: Call) -> None:
    options = [
        "--learning-rate",
        "0.5",
        "--patience",
        "1",
        "--eval-every",
        "1",
        "--save-every",
        "50",
        "--batch-size",
        "2",
        "--max-steps",
        "9",
    ]
    assert call("train", "stories", "--model", "base", "--out", "out", *options, *QUICK[2:])[0] == 0
    manifest = read(place / "out/run.json")
    assert manifest["steps"] < manifest["total_steps"] == 9
    assert [step for step, _ in RunDirectory(place / "out").saved_checkpoints()] == [manifest["steps"]]


def test_another_sampling_seed_does_not_change_a_random_base(place: Path, call: Call) -> None:
    assert call("train", "stories", "--model", "new:1m", "--vocab-size", "300", "--out", "out", *QUICK)[0] == 0
    first = read(place / "out/comparison.json")
    assert call("compare", "out", "--seed", "5")[0] == 0
    again = read(place / "out/comparison.json")
    assert again["before"]["validation"]["loss"] == first["before"]["validation"]["loss"]
    assert again["settings"]["seed"] == 5


def test_standard_input_can_be_the_validation_text(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(story(77, words=200).encode())))
    assert call("train", "stories", "--model", "base", "--validation", "-", "--out", "out", *QUICK)[0] == 0
    assert read(place / "out/comparison.json")["after"]["validation"]["documents"] == 1


def test_a_kill_between_the_two_renames_of_a_model_folder_is_repaired(place: Path, call: Call) -> None:
    assert call("train", "stories", "--model", "base", "--out", "out", *QUICK)[0] == 0
    directory = RunDirectory(place / "out")
    for file in (directory.report, directory.comparison):
        file.unlink()
    directory.update_manifest(status="running", error="something")
    directory.model.rename(place / "out/.model.99999.old")
    (place / "out/.model.99998.tmp").mkdir()
    code, err = call("resume", "out")
    assert code == 0, err
    assert [path.name for path in (place / "out").iterdir() if path.name.startswith(".")] == [".lock"]
    assert read(directory.manifest)["status"] == "finished"
    assert read(directory.manifest)["error"] is None
    assert (directory.model / "model.safetensors").is_file()


def test_evaluate_retries_with_smaller_batches_when_memory_runs_out(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "base", "stories", "--precision", "fp32", "--json"]
    assert run(words) == 0
    plenty = json.loads(capsys.readouterr().out)
    measure, tried = evaluating.measure, []

    def limited(forward: Any, blocks: Any, *, batch_size: int, **options: Any) -> Any:
        tried.append(batch_size)
        if batch_size > most:
            raise torch.OutOfMemoryError("out of memory")
        return measure(forward, blocks, batch_size=batch_size, **options)

    monkeypatch.setattr(evaluating, "measure", limited)
    most = 3
    assert run(words) == 0
    assert tried == [64, 32, 16, 8, 4, 2]
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(plenty["loss"], rel=1e-6)
    most = 0
    assert run(words) == 1
    assert "Memory ran out with one sequence of 64 tokens" in capsys.readouterr().err


def test_a_killed_run_is_not_shown_as_running(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name, pid in (("killed", gone.pid), ("alive", os.getpid())):
        process = {"pid": pid, "host": platform.node()}
        RunDirectory(place / "runs" / name).update_manifest(status="running", process=process, created=name)
    assert run(["runs", "--json"]) == 0
    rows = {row["run"]: row["status"] for row in json.loads(capsys.readouterr().out)}
    assert rows == {"runs/killed": "interrupted", "runs/alive": "running"}


def test_recovery_keeps_an_existing_folder(tmp_path: Path) -> None:
    for name in ("model", ".model.1.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    (tmp_path / ".step-00000004.7.tmp").mkdir()
    (tmp_path / ".run.json.7.tmp").write_text("{")
    recover(tmp_path)
    assert (tmp_path / "model/which").read_text() == "model"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num-beams", "2", "--num-samples", "3"), "num_samples 3 is larger than num_beams 2"),
        (("--stride", "65"), "stride 65 is longer than the block"),
        (("--test-fraction", "0.96"), "must stay below 1"),
    ],
)
def test_settings_that_would_fail_after_training_are_refused_before(
    place: Path, call: Call, words: tuple[str, ...], message: str
) -> None:
    code, err = call("train", "stories", "--model", "base", "--out", "out", *QUICK, *words)
    assert code == 1
    assert message in err
    assert not (place / "out").exists()


def test_a_run_can_be_inside_the_folder_of_its_text(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "stories")
    for number in ("1", "2"):
        code, err = call("train", ".", "--model", "../base", *QUICK)
        assert code == 0, err
        assert Path("runs", f"base-text-{number}", "report.html").is_file()
    code, err = call("compare", "runs/base-text-1")
    assert code == 0, err


def test_check_reports_empty_files_and_too_little_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "stories/empty.txt").write_text("")
    assert run(["check", "stories", "--model", "base"]) == 0
    assert "Read 40 of 41 files; left out: 1 without text.\n  stories/empty.txt\n" in capsys.readouterr().out
    (place / "short.txt").write_text("Hello there.")
    assert run(["check", "short.txt", "--model", "base"]) == 1
    assert "There is too little text to train on" in capsys.readouterr().out


def test_shared_passages_of_a_draft_and_its_revision_are_reported(place: Path, call: Call) -> None:
    """Draft and revision are cut at different places, so held-out passages also occur in the training text."""
    (place / "drafts").mkdir()
    for number in range(5):
        text = "\n\n".join(story(number * 10 + k, 60) for k in range(8))
        (place / f"drafts/{number}.txt").write_text(text)
        (place / f"drafts/{number}_v2.txt").write_text(f"{text}\n\n{story(number * 10 + 9, 200)}")
    code, err = call("train", "drafts", "--model", "base", *QUICK, "--out", "run")
    assert code == 0
    assert "also occur word for word in the training text, in passages of 20 words or more, so the figures" in err
    verdict = read(place / "run/comparison.json")["verdict"]
    assert "held-out text of which" in verdict
    assert "never saw" not in verdict
