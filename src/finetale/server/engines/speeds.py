"""Measure which of two engines is faster on this machine, and decide when to measure again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from finetale.config import SamplingSettings
from finetale.environment import num_cores
from finetale.server.engines import Job
from finetale.server.engines.batching import BatchingEngine

_CLOSE = 1.2
"""Ratio of speeds below which noise can decide which engine is faster."""
_BUSY = 0.25
"""Share of the processor that other programs use from which a measurement is doubtful."""
_MOST = {"close": 3, "busy": 6}
"""Number of measurements after which no more are made, by the reason to doubt them."""


def measure(reference: BatchingEngine, fast: BatchingEngine, vocab_size: int, context: int) -> dict[str, Any]:
    """Return results for the record of a converted model: tokens per second by engine, and how far to trust them.

    Args:
        reference: PyTorch's engine.
        fast: OpenVINO's engine.
    """
    before, began = _used(), time.perf_counter()
    # Alternating, because timings are noisy.
    rounds = [[_speed(engine, vocab_size, context) for engine in (reference, fast)] for _ in range(2)]
    others = (_used() - before) / max(1e-9, (time.perf_counter() - began) * num_cores())
    speeds = {
        name: round(max(pair), 1) for name, pair in zip(("torch", "openvino"), zip(*rounds, strict=True), strict=True)
    }
    return {"tokens_per_second": speeds, "other_programs": round(max(0.0, others), 2), "measurements": 1}


def doubt(record: Mapping[str, Any]) -> str | None:
    """Return why the engines of a record should be measured again, or None."""
    speeds = record["tokens_per_second"].values()
    times = record.get("measurements", 1)
    if record.get("other_programs", 0.0) > _BUSY and times < _MOST["busy"]:
        return "the machine was busy before"
    if max(speeds) < _CLOSE * min(speeds) and times < _MOST["close"]:
        return "they were close before"
    return None


def combined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of two measurements: those with less use by other programs, the newer ones if equal."""
    calmer = new if new["other_programs"] <= max(_BUSY, old.get("other_programs", 0.0)) else old
    kept = {name: calmer[name] for name in ("tokens_per_second", "other_programs") if name in calmer}
    return kept | {"measurements": old.get("measurements", 1) + 1}


def _used() -> float:
    """Return the processor time that other programs have used, in seconds summed over the processors."""
    now = psutil.cpu_times()
    idle = now.idle + getattr(now, "iowait", 0.0)
    guests = getattr(now, "guest", 0.0) + getattr(now, "guest_nice", 0.0)  # counted in user and nice too
    return sum(now) - guests - idle - time.process_time()


def _speed(
    engine: BatchingEngine, vocab_size: int, context: int, texts: int = 8, prompt: int = 32, steps: int = 12
) -> float:
    """Return tokens per second for several texts together, reading of the prompts included."""
    settings = SamplingSettings.resolve({"temperature": 0})
    ids = [token % vocab_size for token in range(1, max(1, min(prompt, context - steps)) + 1)]
    jobs = [Job(list(ids), settings) for _ in range(min(texts, engine.slots))]
    threads = torch.get_num_threads()
    torch.set_num_threads(engine.threads)
    started = time.perf_counter()
    engine.start([[job] for job in jobs])
    for _ in range(steps):
        engine.step()
    seconds = time.perf_counter() - started
    torch.set_num_threads(threads)
    for job in jobs:
        engine.drop(job)
    return len(jobs) * steps / seconds
