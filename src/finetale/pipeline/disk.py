"""Forecast the disk space of a run before it begins."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetale.errors import RunError
from finetale.formatting import size
from finetale.pipeline.prepare import Prepared

_STEP_BYTES = 300
"""A line of metrics.jsonl; the events of TensorBoard take as much."""
_REPORT_BYTES = 200_000
_RECORD_BYTES = 20_000
"""run.json, data.json and config.yaml."""
_ENTRY_BYTES = 120
"""A tensor in the header of a safetensors file."""
_CONFIG_BYTES = 8_000
"""config.json, generation_config.json, tokenizer_config.json, config.yaml, manifest.json and model card."""


@dataclass(frozen=True)
class DiskPlan:
    """The size of one checkpoint, and the peak disk space of the run, in bytes.

    The peak is usually while a checkpoint is written, when the kept, the best and the new checkpoint all exist.
    `linked_bytes` of the peak are expected to be hard links to files of the cache, which need no more space.
    """

    checkpoint_bytes: int
    peak_bytes: int
    linked_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"peak_bytes": self.peak_bytes, "checkpoint_bytes": self.checkpoint_bytes}


def plan_disk(prepared: Prepared) -> DiskPlan:
    """Return the most disk space that a run takes in its directory. The token cache is already written."""
    config, model, budget = prepared.config, prepared.loaded.model, prepared.budget
    parameters = list(model.parameters())
    moment = 2 if config.optimizer_state == "bf16" else 4
    weights = sum(4 * p.numel() + _ENTRY_BYTES for p in parameters)
    moments = sum(2 * moment * p.numel() + 3 * _ENTRY_BYTES for p in parameters if p.requires_grad)
    text = _tokenizer_bytes(prepared.loaded.tokenizer) + _CONFIG_BYTES
    checkpoint, saved, beside = weights + moments + text, weights + text, 0
    if prepared.adapted is not None:
        adapter = sum(4 * p.numel() + _ENTRY_BYTES for p in parameters if p.requires_grad)
        checkpoint, saved, beside = adapter + moments + _CONFIG_BYTES, weights - adapter + text, adapter + text
    saves = (step for step in range(1, budget.total_steps + 1) if budget.saves(step))
    standing = len(list(islice(saves, config.keep_checkpoints + 2)))
    lines = budget.total_steps // (config.log_every or 1) * _STEP_BYTES * (2 if config.tensorboard else 1)
    data = lines + _RECORD_BYTES
    moments_of_most = (
        standing * checkpoint + saved,  # while a checkpoint is written
        (standing - 1) * checkpoint + 2 * saved,  # while a model is written beside the one it replaces
        (standing - 1) * checkpoint + saved + _REPORT_BYTES,  # at the end
    )
    tokens = sum(file.stat().st_size for file in prepared.store.folder.iterdir())
    is_linked = _device(prepared.store.folder) == _device(config.out or Path("runs"))
    return DiskPlan(checkpoint, max(moments_of_most) + beside + data + tokens, tokens if is_linked else 0)


def check_disk(root: Path, plan: DiskPlan) -> None:
    """Refuse a run that does not fit on the disk. The present content of its directory counts as free.

    Raises:
        RunError: names the space that is needed and the space that is free.
    """
    free = free_bytes(root) + sum(
        file.stat().st_size for file in root.rglob("*") if file.is_file() and not file.is_symlink()
    )
    if free >= plan.peak_bytes - plan.linked_bytes:
        return
    raise RunError(
        f"The run needs {size(plan.peak_bytes)} of disk ({size(plan.checkpoint_bytes)} per checkpoint), "
        f"and {size(free)} are free in {root.absolute().parent}.",
        "Free some disk space, choose another place with --out, or keep fewer checkpoints with --keep-checkpoints 1.",
    )


def free_bytes(path: Path) -> int:
    """Return the free disk space where a path is, or would be, in bytes."""
    return shutil.disk_usage(_existing(path)).free


def _device(path: Path) -> int:
    """Return the number of the file system where a path is, or would be."""
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def _tokenizer_bytes(tokenizer: Any) -> int:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return 0 if backend is None else len(backend.to_str(pretty=True).encode())
