"""Load a model for use: on the accelerator, with the speed-ups that fit it. Knows nothing of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetale.environment import resolve_precision
from finetale.formatting import shell_command
from finetale.models.dropout import OWN_RATES, Dropout
from finetale.models.loading import LoadedModel, Provenance, load
from finetale.notify import Notify, stage, warn
from finetale.rundir import RunDirectory


def open_model(
    name: str,
    notify: Notify,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    offline: bool = False,
    dropout: Dropout = OWN_RATES,
    seed: int = 0,
    precision: str = "auto",
    attention: str = "auto",
    fast: bool = True,
) -> LoadedModel:
    """Load a model for use, onto the accelerator if there is one.

    Args:
        notify: receives the events of loading.
        tokenizer: tokenizer to use instead of the model's own.
        precision: precision of the computation: auto, fp32 or bf16. Weights stay in fp32.
        attention: "model" keeps the model's own attention; anything else uses the attention of packed documents where
            a kernel exists for this machine.
        fast: whether to apply the speed-ups.

    Raises:
        FinetaleError: the model cannot be used.
    """
    from finetale import devices, speed  # loads torch, which the names of models do not need

    stage(notify, f"Loading {name}")
    loaded = load(name, revision=revision, offline=offline, tokenizer=tokenizer, dropout=dropout, seed=seed)
    if loaded.warning:
        warn(notify, loaded.warning)
    loaded.model.to(devices.device())
    speed.set_up(
        loaded.model, enabled=fast, attention=attention, precision=resolve_precision(precision), training=False
    )
    return loaded


def warn_if_unfinished(provenance: Provenance, notify: Notify) -> None:
    """Warn when a model comes from a run that has not finished."""
    if provenance.kind != "run":
        return
    name = provenance.name
    run = RunDirectory(Path(name).expanduser())
    manifest = run.read_manifest()
    if manifest.status != "finished":
        step = next((step for step, _ in run.saved_checkpoints()), 0)
        done = f"{step:,} of {'?' if manifest.total_steps is None else f'{manifest.total_steps:,}'} steps"
        message = (
            f"The run {name} is not finished ({done}); this is its best model so far. "
            f"Continue it with `{shell_command('finetale', 'resume', name)}`."
        )
        warn(notify, message)
