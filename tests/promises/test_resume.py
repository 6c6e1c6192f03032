"""Test that a resumed run ends with the weights of an uninterrupted one, and reports changed text or settings."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import finetale
from children import call
from finetale import models
from finetale.blocks import Blocks, pack
from finetale.config import Config, EvaluationSettings, TrainSettings, read_settings_file
from finetale.errors import ConfigError, InterruptedRun
from finetale.rundir import RunDirectory, sha256_of
from finetale.schema import Event, TrainEvent
from finetale.signals import StopRequest
from finetale.training import StepBudget, Training, newest_valid_checkpoint
from scene import TRAIN, Place, train_with
from tiny import model, save_model, store, story, tokenizer

SETTINGS = {"learning_rate": 2e-3, "batch_size": 6, "micro_batch_size": 2, "precision": "fp32", "seed": 11}
PATIENT = {"eval_every": 3, "patience": 3}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Blocks, Blocks]:
    made = [
        pack(store(tmp_path_factory.mktemp("stored"), [story(n, 60) for n in numbers]), "train", 64, fill=True)
        for numbers in (range(20), range(50, 56))
    ]
    return made[0], made[1]


def loop(
    folder: Path, blocks: tuple[Blocks, Blocks], seed: int, base: Path | None = None, moments: str = "fp32"
) -> Training:
    """Return a run of 2.5 epochs with 3 micro-batches per step, dropout, a schedule and early stopping.

    Args:
        seed: of the weights that are trained.
        base: folder of the base of an adapter; None trains all weights.
        moments: type of the optimizer's moments.
    """
    settings = TrainSettings.resolve(SETTINGS | {"optimizer_state": moments})
    evaluation = EvaluationSettings.resolve(PATIENT)
    adapted = None
    if base is None:
        tiny: Any = model(seed, dropout=0.1)
    else:
        loaded = models.load(str(base))
        assert loaded.located is not None
        adapted, tiny = models.AdaptedBase(loaded.located, loaded.provenance), loaded.model
        models.adapters.attach(tiny, Config.resolve({"method": "dora", "lora_rank": 2, "lora_dropout": 0.1}), seed)
    return Training(
        model=tiny,
        tokenizer=tokenizer(),
        train_blocks=blocks[0],
        validation_blocks=blocks[1],
        settings=settings,
        evaluation=evaluation,
        directory=RunDirectory(folder),
        budget=StepBudget(len(blocks[0]), 6, 2.5, None, 3, None),
        precision="fp32",
        adapted=adapted,
    )


def bits(folder: Path) -> bytes:
    """Return the weights, moments and counters of the newest checkpoint as bytes, without its timing."""
    newest, damaged = newest_valid_checkpoint(RunDirectory(folder))
    assert newest is not None
    assert not damaged
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    del state["seconds"]
    kept = sorted([*newest.glob("*.safetensors"), *folder.glob("adapter/*.safetensors")])
    assert len(kept) == 2 + (folder / "adapter").is_dir()
    files = [file.read_bytes() for file in (*kept, folder / "model/model.safetensors")]
    return b"".join([*files, json.dumps(state).encode()])


@pytest.mark.parametrize(("method", "moments"), [("full", "fp32"), ("dora", "fp32"), ("dora", "bf16")])
@pytest.mark.parametrize("stops", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_stopped_anywhere_resumes_to_the_same_weights(
    tmp_path: Path,
    blocks: tuple[Blocks, Blocks],
    stops: int,
    method: str,
    moments: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = save_model(tmp_path / "base", 3, dropout=0.1) if method == "dora" else None
    calls = {"made": 0, "stop": 0}
    check = StopRequest.check

    def counted(self: StopRequest) -> None:  # called per micro-batch and in evaluations
        calls["made"] += 1
        if calls["made"] == calls["stop"]:
            raise InterruptedRun("Stopped by a test.")
        check(self)

    monkeypatch.setattr(StopRequest, "check", counted)
    whole = loop(tmp_path / "whole", blocks, 3, base, moments)
    whole.run()
    total = calls["made"]
    assert whole.budget.total_steps >= 8
    assert whole.state.bad_evaluations >= 0
    expected, torch_state = bits(tmp_path / "whole"), torch.get_rng_state()
    for number, stop in enumerate(sorted(random.Random(5).sample(range(1, total), stops))):
        folder = tmp_path / str(number)
        calls |= {"made": 0, "stop": stop}
        torch.manual_seed(number)  # the state of the generator before the run must not matter
        with pytest.raises(InterruptedRun, match="Stopped by a test"):
            loop(folder, blocks, 3, base, moments).run()
        calls["stop"] = 0
        newest, _ = newest_valid_checkpoint(RunDirectory(folder))
        assert newest is not None
        loop(folder, blocks, 99, base, moments).run(newest)
        assert bits(folder) == expected
    torch.set_rng_state(torch_state)


@pytest.fixture
def stopped(place: Place) -> Any:
    """Start a run on a copy of the stories, and stop it after 2 steps."""
    shutil.copytree(place.folder / "stories", place.folder / "own")
    words = ["own" if word == "stories" else word for word in TRAIN]
    code, output = call(place.folder, *words, "--out", "stopped", hook=stop_after_two)
    assert code == 75, output
    yield RunDirectory(place.folder / "stopped")
    for name in ("own", "stopped"):
        shutil.rmtree(place.folder / name)


def stop_after_two() -> None:
    stop_after(2)


def stop_at_four() -> None:
    stop_after(4)


def stop_after(step: int) -> None:
    """Send this process SIGTERM after a step."""
    import os
    import signal

    emit = Training._emit

    def emit_and_stop(self: Training, event: Event) -> None:
        emit(self, event)
        if isinstance(event, TrainEvent) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    Training._emit = emit_and_stop  # type: ignore[method-assign]


def test_changed_text_is_refused_without_accept_changes(place: Place, stopped: RunDirectory) -> None:
    own = place.folder / "own"
    (own / "003.txt").write_text(story(500, 60), encoding="utf-8")
    (own / "new.txt").write_text(story(501, 60), encoding="utf-8")
    (own / "005.txt").unlink()
    before = stopped.manifest.read_bytes()
    code, output = call(place.folder, "resume", "stopped")
    assert code == 1, output
    for part in ("The text of stopped has changed", "changed: ", "003.txt", "new: ", "new.txt", "missing: ", "005.txt"):
        assert part in output
    assert "--accept-changes" in output
    assert stopped.manifest.read_bytes() == before
    code, output = call(place.folder, "resume", "stopped", "--accept-changes")
    assert code == 0, output
    assert "Continuing with these changes: the text: changed: " in output
    changes = stopped.read_manifest().changes
    assert [change.step for change in changes] == [2]
    assert "003.txt" in changes[0].what[0]
    assert stopped.read_manifest().steps == 6


def test_changed_settings_are_refused_without_accept_changes(place: Place, stopped: RunDirectory) -> None:
    text = stopped.config.read_text(encoding="utf-8")
    assert "max_steps: 6" in text
    stopped.config.write_text(text.replace("max_steps: 6", "max_steps: 8"), encoding="utf-8")
    code, output = call(place.folder, "resume", "stopped")
    assert code == 1, output
    assert "has changed since the run began: max_steps is 8, was 6." in output
    code, output = call(place.folder, "resume", "stopped", "--accept-changes")
    assert code == 0, output
    assert stopped.read_manifest().steps == 8
    assert stopped.read_manifest().changes[0].what == ["max_steps is 8, was 6"]


def test_a_setting_accepted_as_auto_is_not_reported_again(place: Place, stopped: RunDirectory) -> None:
    text = stopped.config.read_text(encoding="utf-8")
    assert "learning_rate: 0.003" in text
    stopped.config.write_text(text.replace("learning_rate: 0.003", "# learning_rate: null"), encoding="utf-8")
    code, output = call(place.folder, "resume", "stopped", "--accept-changes", hook=stop_at_four)
    assert code == 75, output
    code, output = call(place.folder, "resume", "stopped")
    assert code == 0, output


def convert_to_version_1(run: RunDirectory, **values: Any) -> None:
    """Replace the SHA-256 of the settings in run.json by a copy of the settings, as in schema version 1."""
    settings = Config.resolve(read_settings_file(run.config)).model_dump(mode="json")
    content = json.loads(run.manifest.read_text(encoding="utf-8"))
    del content["config_sha256"]
    content |= {"schema_version": 1, "config": settings | values}
    run.manifest.write_text(json.dumps(content), encoding="utf-8")


def test_run_json_refers_to_the_settings_and_has_no_copy(place: Place, stopped: RunDirectory) -> None:
    manifest = json.loads(stopped.manifest.read_text(encoding="utf-8"))
    assert "config" not in manifest
    assert manifest["config_sha256"] == hashlib.sha256(stopped.config.read_bytes()).hexdigest()
    newest, _ = newest_valid_checkpoint(stopped)
    assert newest is not None
    assert (newest / "config.yaml").read_bytes() == stopped.config.read_bytes()


def test_a_comment_in_the_settings_is_not_a_change(place: Place, stopped: RunDirectory) -> None:
    stopped.config.write_text("# mine\n" + stopped.config.read_text(encoding="utf-8"), encoding="utf-8")
    code, output = call(place.folder, "resume", "stopped")
    assert code == 0, output
    assert "changed" not in output
    assert place.weights_of("stopped") == place.digest


def test_changed_settings_of_a_version_1_run_are_reported(place: Place, stopped: RunDirectory) -> None:
    convert_to_version_1(stopped, learning_rate=0.5)
    code, output = call(place.folder, "resume", "stopped")
    assert code == 1, output
    assert "has changed since the run began: learning_rate is 0.003, was 0.5." in output


def test_a_base_that_is_gone_is_reported_before_training_continues(place: Place, stopped: RunDirectory) -> None:
    """Only the final comparison needs it, so the training is not lost."""
    (place.folder / "base").rename(place.folder / "moved")
    try:
        code, output = call(place.folder, "resume", "stopped")
    finally:
        (place.folder / "moved").rename(place.folder / "base")
    assert code == 1, output
    assert "is gone" in output
    assert output.index("the final comparison needs it") < output.index("error:")
    assert stopped.read_manifest().steps == 6
    code, output = call(place.folder, "resume", "stopped")
    assert code == 0, output
    assert place.weights_of("stopped") == place.digest


def test_changed_settings_without_a_checkpoint_are_refused_too(place: Place, stopped: RunDirectory) -> None:
    shutil.rmtree(stopped.checkpoints)
    text = stopped.config.read_text(encoding="utf-8")
    stopped.config.write_text(text.replace("max_steps: 6", "max_steps: 8"), encoding="utf-8")
    code, output = call(place.folder, "resume", "stopped")
    assert code == 1, output
    assert "has changed since the run began: its SHA-256 differs from the one in run.json." in output


def test_unchanged_text_and_settings_resume_without_a_warning(place: Place, stopped: RunDirectory) -> None:
    code, output = call(place.folder, "resume", "stopped")
    assert code == 0, output
    assert "changed" not in output
    assert place.weights_of("stopped") == place.digest
    assert stopped.read_manifest().changes == []


def test_a_run_with_the_old_name_of_a_setting_resumes_without_a_warning(place: Place, stopped: RunDirectory) -> None:
    convert_to_version_1(stopped)
    for file in (stopped.config, stopped.manifest):
        text = file.read_text(encoding="utf-8")
        assert "final_learning_rate_ratio" in text
        file.write_text(text.replace("final_learning_rate_ratio", "final_learning_rate"), encoding="utf-8")
    code, output = call(place.folder, "resume", "stopped")
    assert code == 0, output
    assert "changed" not in output
    assert place.weights_of("stopped") == place.digest


def test_a_run_without_a_setting_for_attention_goes_on_with_its_rate(place: Place) -> None:
    """Older versions trained with the model's rate, 0.1 here. New runs train with 0."""
    rate = {"attention_dropout": 0.1}
    assert call(place.folder, *train_with(**rate, out="expected"))[0] == 0
    assert "attention_dropout: 0.0\n" in (place.folder / "whole/config.yaml").read_text(encoding="utf-8")
    assert place.weights_of("expected") != place.digest
    for name, has_checkpoint in (("old", True), ("early", False)):
        code, output = call(place.folder, *train_with(**rate, out=name), hook=stop_after_two)
        assert code == 75, output
        run = RunDirectory(place.folder / name)
        text = run.config.read_text(encoding="utf-8")
        run.config.write_text(text.replace("attention_dropout: 0.1\n", ""), encoding="utf-8")
        run.update_manifest(config_sha256=sha256_of(run.config))
        if not has_checkpoint:
            shutil.rmtree(run.checkpoints)
        code, output = call(place.folder, "resume", name)
        assert code == 0, output
        assert place.weights_of(name) == place.weights_of("expected")


def test_an_unfinished_run_is_reported_as_unfinished(place: Place, stopped: RunDirectory) -> None:
    for words in (("generate", "stopped", "A heron", "--max-new-tokens", "2"), ("evaluate", "stopped", "own")):
        code, output = call(place.folder, *words)
        assert code == 0, output
        assert "The run stopped is not finished (2 of 6 steps); this is its best model so far" in output
    assert "not finished" not in call(place.folder, "generate", "whole", "A heron", "--max-new-tokens", "2")[1]


def test_settings_written_by_an_older_version_are_not_a_change(place: Place, stopped: RunDirectory) -> None:
    convert_to_version_1(stopped, deduplicate=False, drop_overlap=False)
    text = stopped.config.read_text(encoding="utf-8")
    assert "# deduplicate" in text or "deduplicate: 'off'" in text or "deduplicate: off" in text
    code, output = call(place.folder, "resume", "stopped")
    assert code == 0, output


# A finished run


def test_resuming_a_finished_run_changes_nothing(place: Place) -> None:
    # Job schedulers repeat a command until its exit code is 0.
    before = {path: path.read_bytes() for path in (place.folder / "whole").rglob("*") if path.is_file()}
    code, output = call(place.folder, "resume", "whole")
    assert code == 0, output
    assert "whole is finished already, after 6 steps. Nothing was done." in output
    assert "--epochs N" in output
    code, output = call(place.folder, "resume", "whole", "--json")
    assert code == 0
    assert json.loads(output)["verdict"]
    after = {path: path.read_bytes() for path in (place.folder / "whole").rglob("*") if path.is_file()}
    assert after == before


def test_extending_a_finished_run_equals_a_longer_run(place: Place) -> None:
    constant = {"schedule": "constant", "max_steps": 4, "epochs": 9}
    for name, settings in (("short", constant), ("long", constant | {"max_steps": 7})):
        code, output = call(place.folder, *train_with(**settings, out=name))
        assert code == 0, output
        assert f"The run ends after {settings['max_steps']} steps, because it reaches --max-steps first" in output
    code, output = call(place.folder, "resume", "short", "--max-steps", "7")
    assert code == 0, output
    assert "Continuing from step 4 to 7. The constant schedule now spans all 7 steps" in output
    assert "the learning rate changes from 0.003 to 0.003." in output
    assert place.weights_of("short") == place.weights_of("long")
    run = RunDirectory.open(place.folder / "short")
    manifest = run.read_manifest()
    assert (manifest.status, manifest.steps) == ("finished", 7)
    assert manifest.changes[0].what == ["epochs is auto, was 9.0", "max_steps is 7, was 4"]
    assert call(place.folder, "resume", "short")[0] == 0
    code, output = call(place.folder, "resume", "short", "--epochs", "0.1")
    assert code == 1
    assert "short has done 7 steps already, and the new budget ends after 1." in output


def test_extending_a_run_resets_the_patience(place: Place) -> None:
    # A rate this high makes every evaluation worse than the base.
    bad = train_with(learning_rate=0.9, max_grad_norm=0, patience=1, skip_updates=9, out="bad", schedule="constant")
    code, output = call(place.folder, *bad)
    assert code == 0, output
    run = RunDirectory.open(place.folder / "bad")
    assert run.read_manifest().steps == 2
    code, output = call(place.folder, "resume", "bad", "--max-steps", "9")
    assert code == 0, output
    assert run.read_manifest().steps == 4, "the run ends after one more evaluation, which is worse again"


def test_the_library_extends_a_run_too(place: Place) -> None:
    code, output = call(place.folder, *train_with(max_steps=2, epochs=9, out="library"))
    assert code == 0, output
    run = finetale.resume(place.folder / "library", max_steps=4, quiet=True)
    assert run.manifest.steps == 4
    assert finetale.resume(run, quiet=True).path == run.path
    with pytest.raises(ConfigError, match="can't be changed when a run is resumed: learning_rate"):
        finetale.resume(run, learning_rate=0.1)
