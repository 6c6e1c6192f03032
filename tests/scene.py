"""A short run and its folder, shared by the tests of promises."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from children import call
from finetale import models
from finetale.config import Config
from finetale.models import adapters
from finetale.schema import Event, TrainEvent
from finetale.training import Training
from tiny import save_model, write_stories

TRAIN = (
    *("train", "stories", "--model", "base", "--precision", "fp32", "--threads", "1"),
    *("--batch-size", "4", "--micro-batch-size", "2", "--max-steps", "6", "--epochs", "9", "--learning-rate", "3e-3"),
    *("--eval-every", "2", "--save-every", "1", "--num-prompts", "1", "--num-samples", "1", "--max-new-tokens", "3"),
    "--no-tensorboard",
)
"""Command of a run of six steps that saves a checkpoint after each step."""


WITH_ADAPTER = {"lora_rank": 2, "lora_dropout": 0.1, "learning_rate": "1e-2"}
"""Settings of the short run with an adapter."""
METHODS = pytest.mark.parametrize("place", ["full", "lora"], indirect=True)
"""Run a test with all weights trained, and with an adapter."""


def train_with(**settings: object) -> tuple[str, ...]:
    """Return the command of the short run with other settings."""
    return _with(TRAIN, settings)


def _with(command: tuple[str, ...], settings: dict[str, object]) -> tuple[str, ...]:
    words = list(command)
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if flag in words:
            words[words.index(flag) + 1] = str(value)
        else:
            words += [flag, str(value)]
    return tuple(words)


@dataclass(frozen=True)
class Place:
    """A folder with stories/, base/, and an uninterrupted run in whole/, whose weights have the hash `digest`."""

    folder: Path
    digest: str
    method: str = "full"

    @property
    def train(self) -> tuple[str, ...]:
        """Return the command of the run in whole/, without its --out."""
        return command_of(self.method)

    def train_with(self, **settings: object) -> tuple[str, ...]:
        """Return that command with other settings."""
        return _with(self.train, settings)

    def weights_of(self, name: str) -> str:
        """Return the SHA-256 of a run's weights."""
        return digest_of(self.folder / name)


def command_of(method: str) -> tuple[str, ...]:
    """Return the command of the short run with a method."""
    return TRAIN if method == "full" else _with(TRAIN, {"method": method} | WITH_ADAPTER)


def digest_of(run: Path) -> str:
    """Return the SHA-256 of the weights of a run: those of its model, and those of its adapter if it has one."""
    files = (run / "model/model.safetensors", run / "adapter/adapter_model.safetensors")
    assert files[0].is_file()
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


def make_run(folder: Path, *command: str) -> Path:
    """Write stories/ and base/ into a folder, and run a command there that trains run/; return the folder."""
    write_stories(folder / "stories", 30, words=60)
    save_model(folder / "base", dropout=0.1)
    code, output = call(folder, *command, "--out", "run")
    assert code == 0, output
    return folder


def copy_run(finished: Path, to: Path) -> Path:
    """Copy stories/, base/ and run/ to another folder, and let the run's settings name it; return the settings file."""
    for name in ("base", "run", "stories"):
        shutil.copytree(finished / name, to / name)
    settings = to / "run" / "config.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace(str(finished), str(to)), encoding="utf-8")
    return settings


def stop_after_step_3() -> None:
    """Send this process SIGTERM after its third step."""
    emit = Training._emit

    def emit_and_stop(self: Training, event: Event) -> None:
        emit(self, event)
        if isinstance(event, TrainEvent) and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    Training._emit = emit_and_stop  # type: ignore[method-assign]


def write_adapter(folder: Path, base: Path, seed: int, **settings: Any) -> Path:
    """Write an adapter of a model folder with other matrices for each seed; return its folder."""
    loaded = models.load(str(base))
    adapters.attach(loaded.model, Config.resolve({"method": "lora", "lora_rank": 3} | settings), seed=seed)
    for parameter in (each for each in loaded.model.parameters() if each.requires_grad):
        parameter.data += 0.2 * (parameter.data - parameter.data.mean()).sin() + 0.05 * (seed + 1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sha256 = loaded.provenance.sha256
    adapters.write(loaded.model, folder, base=str(base), revision=None, base_sha256=sha256)
    return folder
