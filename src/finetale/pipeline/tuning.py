"""Choose how to compute a run: precision, attention, micro-batch size, compile and threads.

Rules choose first. Then the probe measures alternatives on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from finetale import ranks, speed
from finetale.blocks import Blocks
from finetale.config import Config
from finetale.environment import num_cores, reset_peak_memory, resolve_precision
from finetale.forward import PackedForward, Route, find_route
from finetale.notify import Notify, stage, warn
from finetale.schema import ProbeEvent
from finetale.training import Choice, MemoryPlan, Probe, StepBudget, default_threads, plan_memory, probe


@dataclass(frozen=True)
class Tuned:
    """The chosen way to compute a run, and the measurements of the probe."""

    choice: Choice
    probe: Probe
    route: Route


def tune(config: Config, model: Any, blocks: Blocks, budget: StepBudget, notify: Notify) -> Tuned:
    """Choose a value for each of these settings that is `auto`, and switch the model to the chosen attention.

    The model must be on its device already, with the speed layer set up.
    """
    device = next(model.parameters()).device
    precision = resolve_precision(config.precision)
    packs = find_route(model).packs
    if config.attention == "documents" and not packs:
        warn(
            notify, "--attention documents does not work with this model here. The run uses the model's own attention."
        )
    sequences, largest = config.micro_batch_size, config.micro_batch_size
    if sequences is None:
        memory = estimate_memory(config.model_copy(update={"precision": precision}), model, blocks)
        sequences, largest = memory.micro_batch_size, memory.max_sequences
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
    if ranks.world_size() > 1:
        free.discard("threads")  # the other processes will use the other cores, which are idle during the probe
    divided = config.shard and ranks.world_size() > 1  # the probe trains the whole model in one process
    if not config.probe or not config.speed or divided:
        free.clear()
    if free:
        stage(notify, "Measuring what is fastest on this machine")
    targets = targets_of(budget, blocks)
    found = probe(model, blocks, start, frozenset(free), targets, max_sequences=largest)
    speed.use_documents(model, found.best.attention == "documents")
    if found.best.threads is not None:
        torch.set_num_threads(min(found.best.threads, num_cores()))
    if found.trials:
        notify(ProbeEvent.model_validate(found.to_dict()))
    reset_peak_memory()  # so that the run's peak is reported later, not the probe's
    return Tuned(found.best, found, find_route(model))


def estimate_memory(config: Config, model: Any, blocks: Blocks) -> MemoryPlan:
    """Estimate the memory that a run needs from passes of one and of two sequences.

    Args:
        config: with `batch_size` and `precision` resolved.

    Raises:
        MemoryLimitError: memory runs out with one sequence.
    """
    assert config.batch_size is not None
    moment_bytes = 2 if config.optimizer_state == "bf16" else 4
    forward = PackedForward(model, precision=config.precision)
    parts = ranks.world_size() if config.shard else 1
    return plan_memory(forward, blocks, config.batch_size, moment_bytes=moment_bytes, parts=parts)


def targets_of(budget: StepBudget, blocks: Blocks) -> int:
    """Return the number of tokens that a run trains on, summed over its epochs."""
    share = min(budget.total_blocks, budget.total_steps * budget.batch_size) / max(1, len(blocks))
    return round(blocks.num_targets * share)
