"""Weights, optimizer and counters of a run ↔ a checkpoint folder. Knows nothing of the loop.

A checkpoint is safetensors and JSON, never pickle. It is written to a temporary folder, flushed, sealed with a manifest
of SHA-256 sums and renamed (see `rundir.write_folder`). Dropout needs no random state here: the loop seeds each
micro-batch from (seed, step, micro-batch).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from finetale.errors import RunError
from finetale.rundir import RunDirectory, read_json, verify_folder, write_folder, write_json


@dataclass
class TrainState:
    """Everything a run needs to go on, besides weights and optimizer moments."""

    step: int = 0
    tokens: int = 0  # targets so far
    seconds: float = 0.0
    micro_batch_size: int = 1
    evaluated_step: int = -1  # the last step after which there was an evaluation
    best_step: int = 0
    best_loss: float | None = None
    bad_evaluations: int = 0


def save_checkpoint(
    run: RunDirectory, state: TrainState, model: torch.nn.Module, optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Write the checkpoint of `state.step`, then delete all but the `keep` newest."""

    def fill(folder: Path) -> None:
        save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
        save_file(_moments(model, optimizer), str(folder / "optimizer.safetensors"))
        write_json(folder / "state.json", asdict(state))

    path = run.checkpoint(state.step)
    write_folder(path, fill, manifest=True)
    saved = list(run.saved_checkpoints())
    later = [old for step, old in saved if step > state.step]  # of steps that will be done again
    for old in later + [old for step, old in saved if step <= state.step][keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def newest_valid_checkpoint(run: RunDirectory) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files match its manifest, and a line for each damaged one that was skipped."""
    damaged: list[str] = []
    for _, folder in run.saved_checkpoints():
        problems = verify_folder(folder)
        if not problems:
            return folder, damaged
        damaged.append(f"{folder.name} is damaged and skipped ({problems[0]})")
    return None, damaged


def read_state(folder: Path) -> TrainState:
    """The counters of a checkpoint.

    Raises:
        RunError: it was written by another version.
    """
    values = read_json(folder / "state.json")
    if set(values) != {field.name for field in fields(TrainState)}:
        raise RunError(f"{folder / 'state.json'} was written by another version of Finetale.", "Start the run again.")
    return TrainState(**values)


def load_checkpoint(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Put weights and moments of a checkpoint into model and optimizer, in place; returns the counters."""
    load_model(model, str(folder / "model.safetensors"))
    stored = load_file(str(folder / "optimizer.safetensors"))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for index, (name, parameter) in enumerate(_optimized(model, optimizer)):
        if f"step.{name}" in stored:
            state[index] = {
                "step": stored[f"step.{name}"],
                "exp_avg": stored[f"exp_avg.{name}"].to(parameter.device),
                "exp_avg_sq": stored[f"exp_avg_sq.{name}"].to(parameter.device),
            }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return read_state(folder)


def _moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in _optimized(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.detach().contiguous().cpu()
    return tensors


def _optimized(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters with their names, in the optimizer's order."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter
