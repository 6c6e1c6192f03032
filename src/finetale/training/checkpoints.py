"""Save and load checkpoints: weights, optimizer state and counters of a run. Does not know about the loop.

A checkpoint is a model folder with two more files, one in safetensors format and one in JSON. The model folder is
written like every other one, so its tensors have the names of the base's files. Where an adapter is trained, it holds
the adapter in place of the model, with the SHA-256 of its base. No file is a pickle. A checkpoint is
written to a temporary folder, flushed, sealed with a manifest of SHA-256 sums and renamed (see
`rundir.write_sealed_folder`). It holds no random state, because the loop seeds dropout by (seed, step, micro-batch).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.linalg import vector_norm

from finetale import models
from finetale.errors import DivergedError, RunError
from finetale.rundir import RunDirectory, read_json, verify_folder, write_bytes, write_json, write_sealed_folder
from finetale.training.optimizer import MOMENTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPTIMIZER_NAME, STATE_NAME = "optimizer.safetensors", "state.json"
SETTINGS_NAME = "config.yaml"
Parameters = Mapping[str, torch.nn.Parameter]
Change = Callable[[str, torch.Tensor], torch.Tensor]
"""Receives the name of a weight and a tensor of its shape, or a process's part of one."""


@dataclass
class TrainState:
    """The state of a run, without weights and optimizer moments."""

    step: int = 0
    tokens: int = 0  # targets so far
    seconds: float = 0.0
    micro_batch_size: int = 1
    evaluated_step: int = -1  # step of the last evaluation
    best_step: int = 0
    best_loss: float | None = None
    bad_evaluations: int = 0
    skipped: int = 0  # number of skipped updates, see `divergence`
    recent: list[float] = field(default_factory=list)  # losses of the last steps, newest last


def save_checkpoint(
    run: RunDirectory,
    state: TrainState,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    moments: dict[str, torch.Tensor],
    keep: int,
    settings_file: bytes | None = None,
    adapted: models.AdaptedBase | None = None,
) -> Path:
    """Write the checkpoint of `state.step`, then delete all but the `keep` newest and the best.

    Args:
        moments: the optimizer's state, from `moments_of`.
        keep: number of checkpoints to keep besides the best.
        settings_file: content of the run's config.yaml. A resumed run compares its settings with this copy.
        adapted: the base of the adapter that is trained; None where all weights are.

    Raises:
        DivergedError: a weight or a moment is not finite. Nothing is written.
    """
    weights = model.state_dict() if adapted is None else models.adapters.tensors_of(model)
    check_finite({**weights, **moments}, state.step)

    def fill(folder: Path) -> None:
        if adapted is None:
            models.save(model, tokenizer, folder)
        else:
            adapted.save_adapter(model, folder)
        save_file(moments, str(folder / OPTIMIZER_NAME))
        write_json(folder / STATE_NAME, asdict(state))
        if settings_file is not None:
            write_bytes(folder / SETTINGS_NAME, settings_file)

    path = run.checkpoint(state.step)
    write_sealed_folder(path, fill)
    saved = list(run.saved_checkpoints())
    later = [old for step, old in saved if step > state.step]  # a resumed run repeats these steps
    earlier = [(step, old) for step, old in saved if step <= state.step][keep:]
    for old in later + [old for step, old in earlier if step != state.best_step]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def check_finite(tensors: dict[str, torch.Tensor], step: int) -> None:
    """Refuse tensors that contain NaN or infinity.

    Raises:
        DivergedError: names the first such tensor.
    """
    for name, tensor in tensors.items():
        # The maximum norm is not finite if any value is not. It needs no copy of the tensor.
        if tensor.is_floating_point() and tensor.numel() and not bool(vector_norm(tensor, math.inf).isfinite()):
            if step == 0:
                raise DivergedError(
                    f"Step 0: the base model's {name} holds numbers that are not finite.",
                    "The base model itself is corrupted. Download it again, or choose another model.",
                )
            raise DivergedError(
                f"After step {step}, {name} holds numbers that are not finite. This step was not saved.",
                "Use a lower --learning-rate or --precision fp32. The last good checkpoint is kept.",
            )


def newest_valid_checkpoint(run: RunDirectory) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint whose files match its manifest, and a message for each corrupted newer one."""
    corrupted: list[str] = []
    for _, folder in run.saved_checkpoints():
        problems = verify_folder(folder)
        if not problems:
            return folder, corrupted
        corrupted.append(f"{folder.name} is corrupted and was skipped ({problems[0]})")
    return None, corrupted


def read_state(folder: Path) -> TrainState:
    """Return the counters of a checkpoint.

    Raises:
        RunError: another version of Finetale wrote the checkpoint.
    """
    values = read_json(folder / STATE_NAME)
    if set(values) != {field.name for field in fields(TrainState)}:
        raise RunError(f"{folder / STATE_NAME} was written by another version of Finetale.", "Start the run again.")
    return TrainState(**values)


def load_weights(folder: Path, model: PreTrainedModel) -> None:
    """Load the weights of a checkpoint into a model, in place."""
    if models.adapters.is_attached(model):
        models.adapters.load_into(model, folder)
    else:
        models.load_weights(model, folder)


def load_moments(folder: Path, optimizer: torch.optim.Optimizer, parameters: Parameters, part_of: Change) -> None:
    """Load the moments of a checkpoint into an optimizer.

    Args:
        parameters: those that the optimizer updates, by name.
        part_of: returns what this process keeps of the moments of a parameter.
    """
    stored = load_file(str(folder / OPTIMIZER_NAME))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for index, (name, parameter) in enumerate(_in_order(optimizer, parameters)):
        if f"step.{name}" in stored:
            state[index] = {"step": stored[f"step.{name}"]} | {
                key: part_of(name, stored[f"{key}.{name}"].to(parameter.device)) for key in MOMENTS
            }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def moments_of(
    optimizer: torch.optim.Optimizer, parameters: Parameters, whole_of: Change, *, here: bool = True
) -> dict[str, torch.Tensor]:
    """Return the state of an optimizer by names such as exp_avg.WEIGHT, on the CPU.

    Args:
        parameters: those that the optimizer updates, by name.
        whole_of: returns the whole of a moment from what this process keeps of it.
        here: whether this process needs them. Otherwise the result is empty.
    """
    tensors = {}
    for name, parameter in _in_order(optimizer, parameters):
        for key, value in optimizer.state.get(parameter, {}).items():
            whole = whole_of(name, value) if key in MOMENTS else value
            if here:
                tensors[f"{key}.{name}"] = whole.detach().contiguous().cpu()
    return tensors


def _in_order(optimizer: torch.optim.Optimizer, parameters: Parameters) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the parameters with their names, in the optimizer's order."""
    names: dict[Any, str] = {parameter: name for name, parameter in parameters.items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter
