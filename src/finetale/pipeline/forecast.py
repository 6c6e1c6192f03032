"""Forecast memory, speed and time of a run on this machine from a few real steps. Trains nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil
import torch

from finetale import devices, speed
from finetale.comparison import first_prompt
from finetale.config import Config, SamplingSettings
from finetale.environment import hardware, peak_memory, reset_peak_memory
from finetale.errors import MemoryLimitError
from finetale.forward import PackedForward
from finetale.generate import Generator
from finetale.models.frozen import fast_products
from finetale.notify import Notify, stage
from finetale.out_of_memory import memory_errors
from finetale.pipeline.data import data_json, keep_standard_input
from finetale.pipeline.disk import free_bytes, plan_disk
from finetale.pipeline.prepare import Prepared, evaluation_blocks, prepare
from finetale.pipeline.training_run import trained_part
from finetale.pipeline.tuning import estimate_memory, targets_of
from finetale.schema import PlanResult
from finetale.training import free_memory, measure_choice
from finetale.training.optimizer import build_optimizer

_FEW_TOKENS = 12
_GROWTH = 1.08
"""Factor by which the memory of a run grows after its first passes, because batches differ in their documents."""


@memory_errors()
def plan_run(config: Config, notify: Notify) -> PlanResult:
    """Return the resolved settings, the token account, and the measured tokens/s, memory and time of a run.

    Raises:
        FinetaleError: the run could not start.
    """
    started = time.perf_counter()
    prepared = prepare(keep_standard_input(config.for_new_run()), notify)
    preparation_seconds = time.perf_counter() - started
    resolved, blocks, budget = prepared.config, prepared.train, prepared.budget
    assert resolved.micro_batch_size is not None
    stage(notify, "Measuring a few steps")
    available = free_memory(prepared.loaded.model)
    program = _program_bytes(prepared)
    evaluating = _evaluation_rate(prepared)
    sampling = _sampling_seconds(prepared)
    training, peak = _training_rate(prepared)  # last, for it changes the weights
    if peak is None:
        memory = estimate_memory(resolved, prepared.loaded.model, blocks)
        expected = memory.expected_bytes(resolved.micro_batch_size) + program
    else:
        expected = round(_GROWTH * peak)
    steps, targets = budget.total_steps, targets_of(budget, blocks)
    evaluations = sum(budget.evaluates(step) for step in range(steps + 1))
    validation = prepared.validation
    splits = ("validation", "test", *prepared.store.watched)
    held_out = [found for split in splits if (found := evaluation_blocks(prepared.store, split, resolved)) is not None]
    train_seconds = targets / training
    evaluation_seconds = evaluations * (len(validation) if validation is not None else 0) / evaluating
    comparison_seconds = 2 * sum(map(len, held_out)) / evaluating + 2 * sampling
    values = {
        "model": prepared.loaded.provenance.to_dict(),
        "trained": trained_part(prepared),
        "hardware": hardware(),
        "data": data_json(prepared.config, prepared.store, prepared.blocks_json()).to_dict(),
        "steps": steps,
        "steps_per_epoch": -(-len(blocks) // budget.batch_size),
        "targets": targets,
        "memory": {
            "expected_bytes": expected,
            "available_bytes": available,
            "saved_bytes": sum(p.nbytes for p in prepared.loaded.model.parameters() if p.dtype == torch.bfloat16),
        },
        "disk": plan_disk(prepared).to_dict() | {"free_bytes": free_bytes(Path(config.out or "runs"))},
        "tokens_per_second": round(training, 1),
        "evaluation_tokens_per_second": round(evaluating * (validation or blocks).mean_targets, 1),
        "train_seconds": round(train_seconds, 4),
        "evaluation_seconds": round(evaluation_seconds, 4),
        "comparison_seconds": round(comparison_seconds, 4),
        "preparation_seconds": round(preparation_seconds, 4),
        "total_seconds": round(preparation_seconds + train_seconds + evaluation_seconds + comparison_seconds, 1),
        "probe": prepared.tuned.probe.to_dict(),
        "config": resolved.model_dump(mode="json"),
    }
    return PlanResult.model_validate(values)


def _training_rate(prepared: Prepared) -> tuple[float, int | None]:
    """Measure training steps; return tokens per second, updates included, and the peak memory if it is known."""
    config, blocks, model = prepared.config, prepared.train, prepared.loaded.model
    assert config.micro_batch_size is not None
    assert config.batch_size is not None
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    seconds = []
    for _ in range(2):  # the first makes Adam's moments
        started = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        devices.synchronize(next(model.parameters()).device)
        seconds.append(time.perf_counter() - started)
    optimizer.zero_grad()
    counted = reset_peak_memory()
    trial = measure_choice(model, blocks, prepared.tuned.choice, passes=8, seconds=8.0)
    if trial.error is not None:
        raise MemoryLimitError(
            f"A pass of {config.micro_batch_size} sequences of {blocks.block_size} tokens fails: {trial.error}.",
            "Choose a smaller --micro-batch-size, --block-size or model, or --gradient-checkpointing.",
        )
    peak = peak_memory() if counted else None
    tokens = config.batch_size * blocks.mean_targets  # per step
    return tokens / (tokens / trial.tokens_per_second + seconds[-1]), peak


def _evaluation_rate(prepared: Prepared) -> float:
    """Measure passes without gradients; return blocks per second."""
    config, blocks, model = prepared.config, prepared.train, prepared.loaded.model.eval()
    assert config.micro_batch_size is not None
    forward = PackedForward(model, precision=config.precision)
    chosen = np.arange(min(len(blocks), config.micro_batch_size))
    seconds = []
    with speed.kept_memory(), torch.inference_mode():
        for _ in range(3):
            started = time.perf_counter()
            forward.token_losses(blocks.batch(chosen)).sum().item()
            seconds.append(time.perf_counter() - started)
    return len(chosen) / min(seconds[1:])


def _sampling_seconds(prepared: Prepared) -> float:
    """Return the seconds of one model's samples for the comparison, if no sample ends early."""
    config = prepared.config
    generator = Generator(prepared.loaded.model.eval(), prepared.loaded.tokenizer)
    prompt = config.prompts[0] if config.prompts else first_prompt(prepared.store, prepared.loaded.tokenizer)
    most = config.max_new_tokens
    seconds = {}
    for number in (1, 1, min(_FEW_TOKENS, most)):
        settings = config.narrow(SamplingSettings).model_copy(update={"max_new_tokens": number, "stop": ()})
        started = time.perf_counter()
        with fast_products(prepared.loaded.model):
            generator.generate([prompt], settings, n=config.num_samples, truncate=True)
        seconds[number] = time.perf_counter() - started
    first, several = seconds[1], seconds[max(seconds)]
    token = (several - first) / max(1, max(seconds) - 1)
    return (len(config.prompts) or config.num_prompts) * (first + max(0.0, token) * (most - 1))


def _program_bytes(prepared: Prepared) -> int:
    """Return the main memory of the program before training, without the weights; 0 for training on a GPU."""
    if next(prepared.loaded.model.parameters()).is_cuda:
        return 0
    weights = sum(int(parameter.nbytes) for parameter in prepared.loaded.model.parameters())
    used = int(psutil.Process().memory_info().rss)
    return max(0, used - weights)
