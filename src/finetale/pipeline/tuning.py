"""How a run is computed here: precision, attention, micro-batch, compile, threads. By rule, and by the probe where it pays."""

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
    """What was chosen, the memory it takes, and what the probe saw."""

    choice: Choice
    memory: MemoryPlan
    probe: Probe
    route: Route


def tune(config: Config, model: Any, blocks: Blocks, budget: StepBudget, notify: Notify) -> Tuned:
    """Choose what the settings leave to auto. The model is on its device with its speed-ups, and has the chosen attention afterwards."""
    from accelerate import Accelerator

    processes = Accelerator().num_processes
    most = -(-budget.batch_size // processes)
    device = next(model.parameters()).device
    precision = resolve_precision(config.precision)
    packs = find_route(model).packs
    if config.attention == "documents" and not packs:
        warn(notify, "This model takes no attention by documents here; its own is used.")
    moment_bytes = 2 if config.optimizer_state == "bf16" else 4
    memory = plan_memory(PackedForward(model, precision=precision), blocks, most, moment_bytes=moment_bytes)
    start = Choice(
        precision=precision,
        attention="documents" if packs else "model",
        micro_batch_size=config.micro_batch_size or memory.micro_batch_size,
        compile="off" if config.compile == "auto" else config.compile,
        threads=config.threads or default_threads(device),
    )
    free = {name for name in ("attention", "compile") if getattr(config, name) == "auto"}
    free |= {name for name in ("micro_batch_size", "threads") if getattr(config, name) is None}
    if config.precision == "auto" and device.type == "cpu":
        free.add("precision")
    if not config.probe or not config.speed or processes > 1:
        free.clear()
    if free:
        stage(notify, "Trying what is fastest here")
    found = probe(
        model, blocks, start, frozenset(free), targets_of(budget, blocks), most_sequences=memory.most_sequences
    )
    speed.use_documents(model, found.best.attention == "documents")
    if found.best.threads is not None:
        torch.set_num_threads(min(found.best.threads, num_cores()))
    if found.trials:
        notify(ProbeEvent.model_validate(found.to_dict()))
    if found.best != start:
        best = PackedForward(model, precision=found.best.precision)
        memory = plan_memory(best, blocks, most, moment_bytes=moment_bytes)
    reset_peak_memory()  # so that what is reported later is the run's, not the probe's
    return Tuned(found.best, memory, found, find_route(model))


def targets_of(budget: StepBudget, blocks: Blocks) -> int:
    """Tokens that a run trains on, each epoch counted."""
    share = min(budget.total_blocks, budget.total_steps * budget.batch_size) / max(1, len(blocks))
    return round(blocks.num_targets * share)
