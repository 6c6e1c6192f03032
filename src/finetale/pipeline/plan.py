"""What a run would take on this machine, measured by a few real steps. Trains nothing."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import psutil

from finetale.config import Config
from finetale.environment import hardware
from finetale.forward import PackedForward
from finetale.pipeline.data import Notify, data_json, keep_standard_input, stage
from finetale.pipeline.prepare import Prepared, prepare
from finetale.training import Schedule
from finetale.training.optimizer import build_optimizer

_SECONDS = 8.0
_PASSES = 12


def plan_run(config: Config, notify: Notify) -> dict[str, Any]:
    """Resolved settings, token account, and measured tokens/s, memory and time of the run these settings describe.

    Raises:
        FinetaleError: whatever would also keep the run from starting.
    """
    prepared = prepare(keep_standard_input(config), notify)
    resolved, blocks = prepared.config, prepared.train
    assert resolved.batch_size is not None
    assert resolved.micro_batch_size is not None
    stage(notify, "Measuring a few steps")
    program = _program_bytes(prepared)
    measured = _measure(prepared)
    schedule = Schedule(
        len(blocks), resolved.batch_size, resolved.epochs, resolved.max_steps, resolved.eval_every, resolved.save_every
    )
    steps = schedule.total_steps
    targets = blocks.num_targets * min(schedule.total_blocks, steps * resolved.batch_size) / max(1, len(blocks))
    evaluations = sum(schedule.evaluates(step) for step in range(steps + 1))
    held_out = prepared.validation.num_targets if prepared.validation is not None else 0
    train_seconds = targets / measured["tokens_per_second"]
    evaluation_seconds = evaluations * held_out / measured["evaluation_tokens_per_second"]
    return {
        "model": prepared.loaded.provenance.to_dict(),
        "hardware": hardware(),
        "data": data_json(prepared.store, prepared.blocks_json()),
        "steps": steps,
        "steps_per_epoch": -(-len(blocks) // resolved.batch_size),
        "targets": round(targets),
        "memory": {
            "expected_bytes": prepared.memory.expected_bytes(resolved.micro_batch_size) + program,
            "available_bytes": prepared.memory.available_bytes,
        },
        **measured,
        "train_seconds": round(train_seconds, 1),
        "evaluation_seconds": round(evaluation_seconds, 1),
        "config": resolved.model_dump(mode="json"),
    }


def _measure(prepared: Prepared) -> dict[str, float]:
    """Tokens a second of training steps and of evaluation, after one pass that warms up."""
    import torch

    config, blocks = prepared.config, prepared.train
    assert config.batch_size is not None
    assert config.micro_batch_size is not None
    model = prepared.loaded.model.train()
    forward = PackedForward(model, precision=config.precision)
    optimizer = build_optimizer(model, config)
    passes_a_step = -(-config.batch_size // config.micro_batch_size)
    targets, spent, update_seconds = 0, 0.0, 0.0
    for number in range(_PASSES):
        chosen = (np.arange(config.micro_batch_size) + number * config.micro_batch_size) % len(blocks)
        started = time.perf_counter()
        loss = forward.loss(blocks.batch(chosen))
        loss.backward()  # type: ignore[no-untyped-call]
        _wait(forward.device)
        seconds = time.perf_counter() - started
        if number == 1:
            started = time.perf_counter()
            optimizer.step()
            _wait(forward.device)
            update_seconds = time.perf_counter() - started
        if number:
            spent += seconds
            targets += blocks.targets_in(chosen)
        if spent > _SECONDS:
            break
    optimizer.zero_grad()
    chosen = np.arange(min(len(blocks), config.micro_batch_size))
    model.eval()
    with torch.inference_mode():
        forward.token_losses(blocks.batch(chosen))
        started = time.perf_counter()
        forward.token_losses(blocks.batch(chosen)).sum().item()
    evaluation = blocks.targets_in(chosen) / (time.perf_counter() - started)
    share = update_seconds / passes_a_step  # of an update that each pass has to bear
    passes = max(1, number)
    return {
        "tokens_per_second": round(targets / (spent + passes * share), 1),
        "evaluation_tokens_per_second": round(evaluation, 1),
    }


def _program_bytes(prepared: Prepared) -> int:
    """Main memory the program itself takes before training, the weights aside; 0 when training is on a GPU."""
    if next(prepared.loaded.model.parameters()).is_cuda:
        return 0
    return max(0, psutil.Process().memory_info().rss - 4 * prepared.loaded.provenance.parameters)


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
