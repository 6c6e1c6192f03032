"""A short run and its folder, shared by the tests of promises."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

TRAIN = (
    *("train", "stories", "--model", "base", "--precision", "fp32", "--threads", "1"),
    *("--batch-size", "4", "--micro-batch-size", "2", "--max-steps", "6", "--epochs", "9", "--learning-rate", "3e-3"),
    *("--eval-every", "2", "--save-every", "1", "--num-prompts", "1", "--num-samples", "1", "--max-new-tokens", "3"),
    "--no-tensorboard",
)
"""Command of a run of six steps that saves a checkpoint after each step."""


def train_with(**settings: object) -> tuple[str, ...]:
    """Return the command of the short run with other settings."""
    words = list(TRAIN)
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

    def weights_of(self, name: str) -> str:
        """Return the SHA-256 of a run's weights."""
        return digest_of(self.folder / name)


def digest_of(run: Path) -> str:
    return hashlib.sha256((run / "model/model.safetensors").read_bytes()).hexdigest()
