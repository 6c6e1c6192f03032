"""Run the training loop on the tiny model, and compare runs. Used by `tests/invariant`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finetale import speed
from finetale.blocks import Blocks
from finetale.config import EvaluationSettings, TrainSettings
from finetale.models import AdaptedBase
from finetale.ranks import ALONE, Ranks
from finetale.rundir import RunDirectory
from finetale.training import StepBudget, Training
from finetale.training.checkpoints import TrainState, load_moments, load_weights, moments_of, read_state
from tiny import DEVICE, model, tokenizer

SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 8,
    "micro_batch_size": 8,
    "precision": "fp32",
    "max_grad_norm": 1.0,
    "schedule": "linear",
    "final_learning_rate_ratio": 0.0,
    "warmup_steps": 0,
}


def train(
    folder: Path,
    blocks: Blocks,
    *,
    validation: Blocks | None = None,
    dropout: float = 0.0,
    epochs: float = 2.0,
    max_steps: int | None = None,
    eval_every: int | None = None,
    listeners: tuple[Any, ...] = (),
    tiny: torch.nn.Module | None = None,
    checkpoint: Path | None = None,
    patience: int = 0,
    compiled: bool = False,
    adapted: AdaptedBase | None = None,
    ranks: Ranks = ALONE,
    **settings: Any,
) -> Training:
    """Run the loop on the tiny model and return it."""
    wanted = TrainSettings.resolve(SETTINGS | settings)
    assert wanted.batch_size is not None
    training = Training(
        model=tiny if tiny is not None else model(3, dropout=dropout),  # type: ignore[arg-type]
        tokenizer=tokenizer(),
        train_blocks=blocks,
        validation_blocks=validation,
        settings=wanted,
        evaluation=EvaluationSettings.resolve({"patience": patience, "eval_every": eval_every, "log_every": 1}),
        directory=RunDirectory(folder),
        budget=StepBudget(len(blocks), wanted.batch_size, epochs, max_steps, eval_every, None),
        precision=wanted.precision,
        compiled=compiled,
        adapted=adapted,
        ranks=ranks,
        listeners=list(listeners),
    )
    training.run(checkpoint)
    return training


def moments(tiny: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the state of the optimizer of a model that is not divided, by name."""
    return moments_of(optimizer, dict(tiny.named_parameters()), lambda name, tensor: tensor)


def load_checkpoint(folder: Path, tiny: Any, optimizer: torch.optim.Optimizer) -> TrainState:
    """Load a checkpoint into a model that is not divided and its optimizer."""
    load_weights(folder, tiny)
    load_moments(folder, optimizer, dict(tiny.named_parameters()), lambda name, tensor: tensor)
    return read_state(folder)


def sped_up(tiny: torch.nn.Module, precision: str = "fp32") -> torch.nn.Module:
    """Set up the speed layer for training as `finetale train` does."""
    speed.set_up(tiny, enabled=True, attention="auto", precision=precision, training=True)
    return tiny


def losses_of(folder: Path, blocks: Blocks, **settings: Any) -> list[float]:
    rows: list[Any] = []
    train(folder, blocks, listeners=(rows.append,), **settings)
    return [row.loss for row in rows if row.event == "train"]


def weights(tiny: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tiny.state_dict().items()}


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether weights are equal: to the bit on a CPU, within a thousandth of their norm on a GPU."""
    if one.keys() != other.keys():
        return False
    if DEVICE.type == "cpu":
        return all(torch.equal(one[name], other[name]) for name in one)
    distance = sum(float((one[name] - other[name]).norm() ** 2) for name in one)
    return distance <= 1e-6 * sum(float(one[name].norm() ** 2) for name in one)
