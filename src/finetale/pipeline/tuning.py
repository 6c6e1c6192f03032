"""Choose how a run is computed: precision, attention, micro-batch, compile, threads. By rule, then by the probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from finetale import speed
from finetale.blocks import Blocks
from finetale.config import Config
from finetale.environment import num_cores, reset_peak_memory, resolve_precision
from finetale.forward import PackedForward, Route, find_route
from finetale.notify import Notify, stage, warn
from finetale.schema import ProbeEvent
from finetale.training import Choice, MemoryPlan, Probe, StepBudget, default_threads, plan_memory, probe


@dataclass(frozen=True)
class Tuned:
    """What was chosen, and what the probe measured."""

    choice: Choice
    probe: Probe
    route: Route


def tune(config: Config, model: Any, blocks: Blocks, budget: StepBudget, notify: Notify) -> Tuned:
    """Choose what the settings leave to auto.

    The model must be on its device with its speed-ups; it has the chosen attention afterwards.
    """
    device = next(model.parameters()).device
    precision = resolve_precision(config.precision)
    packs = find_route(model).packs
    if config.attention == "documents" and not packs:
        warn(notify, "This model takes no attention by documents here; its own is used.")
    sequences, largest = config.micro_batch_size, config.micro_batch_size
    if sequences is None:
        memory = estimate_memory(config.model_copy(update={"precision": precision}), model, blocks)
        sequences, largest = memory.micro_batch_size, memory.most_sequences
    assert largest is not None
    start = Choice(
        precision=precision,
        attention="documents" if packs else "model",
        micro_batch_size=sequences,
        compile="off" if config.compile == "auto" else config.compile,
        threads=config.threads or default_threads(device),
    )
    free = {name for name in ("attention", "compile") if getattr(config, name) == "auto"}
    free |= {name for name in ("micro_batch_size", "threads") if getattr(config, name) is None}
    if config.precision == "auto" and device.type == "cpu":
        free.add("precision")
    if not config.probe or not config.speed:
        free.clear()
    if free:
        stage(notify, "Trying what is fastest here")
    targets = targets_of(budget, blocks)
    found = probe(model, blocks, start, frozenset(free), targets, most_sequences=largest)
    speed.use_documents(model, found.best.attention == "documents")
    if found.best.threads is not None:
        torch.set_num_threads(min(found.best.threads, num_cores()))
    if found.trials:
        notify(ProbeEvent.model_validate(found.to_dict()))
    reset_peak_memory()  # so that what is reported later is the run's, not the probe's
    return Tuned(found.best, found, find_route(model))


def estimate_memory(config: Config, model: Any, blocks: Blocks) -> MemoryPlan:
    """Return what a run needs of memory, from passes of one and two sequences.

    Args:
        config: with `batch_size` and `precision` resolved.

    Raises:
        MemoryLimitError: memory runs out with one sequence.
    """
    assert config.batch_size is not None
    moment_bytes = 2 if config.optimizer_state == "bf16" else 4
    forward = PackedForward(model, precision=config.precision)
    return plan_memory(forward, blocks, config.batch_size, moment_bytes=moment_bytes)


def targets_of(budget: StepBudget, blocks: Blocks) -> int:
    """Tokens that a run trains on, each epoch counted."""
    share = min(budget.total_blocks, budget.total_steps * budget.batch_size) / max(1, len(blocks))
    return round(blocks.num_targets * share)
