"""Find the fastest way to compute a run on this machine, with a few real passes of each candidate. Trains nothing.

The search starts from the choice by rule: bf16 where the hardware supports it, as many sequences per pass as fit, and
the speed layer's attention. It changes one setting at a time. It keeps a change only if the change is 10% faster twice
in a row, so that noise does not change the numbers of a run. A probe takes at most a tenth of the run's expected time.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from finetale import devices, ranks, speed
from finetale.blocks import Blocks
from finetale.environment import num_cores, num_physical_cores
from finetale.forward import PackedForward
from finetale.out_of_memory import is_out_of_memory

SHORTEST_RUN = 120.0
"""Expected seconds of training below which nothing is tried."""
_SHARE, _MAX_SECONDS, _MAX_SECONDS_COMPILING = 0.08, 60.0, 240.0
"""Limits of a probe: share of the run's expected time, and seconds without and with torch.compile."""
_GAIN = 1.1
"""Factor by which a candidate has to be faster."""
_WARM_UP, _PASSES, _GPU_PASSES = 1, 3, 20
"""Passes per candidate: before the measurement, measured on a CPU, and measured on a GPU."""


@dataclass(frozen=True)
class Choice:
    """One way to compute a run; a probe chooses among several."""

    precision: str
    attention: str
    micro_batch_size: int
    compile: str
    threads: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the choice under the names of the settings."""
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """A candidate and its measured speed. `error` is the reason why it could not be tried."""

    choice: Choice
    tokens_per_second: float
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the trial for run.json and for the table of `finetale plan`."""
        shown: dict[str, Any] = self.choice.to_dict() | {"tokens_per_second": round(self.tokens_per_second, 1)}
        return shown if self.error is None else shown | {"error": self.error}


@dataclass
class Probe:
    """The result of a probe.

    Attributes:
        best: the chosen candidate.
        trials: the candidates that were tried.
        seconds: duration of the probe.
        left_out: number of candidates that there was no time to try.
        skipped: reason why nothing was tried, or None.
    """

    best: Choice
    trials: list[Trial] = field(default_factory=list)
    seconds: float = 0.0
    left_out: int = 0
    skipped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result for run.json."""
        return {
            "chosen": self.best.to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
            "seconds": round(self.seconds, 1),
            "left_out": self.left_out,
            "skipped": self.skipped,
        }


def probe(
    model: Any,
    blocks: Blocks,
    start: Choice,
    free: frozenset[str],
    targets: int,
    *,
    max_sequences: int,
    between: Callable[[], None] | None = None,
) -> Probe:
    """Measure candidates and choose the fastest.

    Args:
        start: the choice by rule.
        free: names of the fields of `Choice` that the probe may change.
        targets: tokens that the run will train on; they determine its expected time.
        max_sequences: the largest micro-batch size that is useful and fits.
        between: called before each candidate; may raise an exception to stop.
    """
    result = Probe(start)
    free = frozenset(name for name in free if _values(name, start, model, max_sequences))
    if not free:
        result.skipped = "there is nothing to choose from"
        return result
    passes = targets / max(1.0, start.micro_batch_size * blocks.mean_targets)
    if passes < 20 * (_WARM_UP + _PASSES):
        result.skipped = "the run is very short"
        return result
    began = time.perf_counter()
    with _restored(model):
        first = measure_choice(model, blocks, start)
        result.trials.append(first)
        expected = targets / max(first.tokens_per_second, 1e-9)
        if first.error is not None or expected < SHORTEST_RUN:
            result.skipped = first.error or "the run is very short"
        else:
            _search(result, first, model, blocks, free, max_sequences, expected, began, between)
    result.seconds = time.perf_counter() - began
    return result


def _search(
    result: Probe,
    best: Trial,
    model: Any,
    blocks: Blocks,
    free: frozenset[str],
    most: int,
    expected: float,
    began: float,
    between: Callable[[], None] | None,
) -> None:
    """Change one setting at a time, and keep the changes that are faster."""
    for name in ("compile", "precision", "attention", "micro_batch_size", "threads"):
        if name not in free:
            continue
        for value in _values(name, best.choice, model, most):
            if between is not None:
                between()
            candidate = replace(best.choice, **{name: value})
            max_seconds = _MAX_SECONDS_COMPILING if candidate.compile == "on" else _MAX_SECONDS
            allowed = min(_SHARE * expected, max_seconds) - (time.perf_counter() - began)
            if _cost(candidate, best, blocks) > allowed:
                result.left_out += 1
                continue
            trial = measure_choice(model, blocks, candidate)
            result.trials.append(trial)
            if trial.tokens_per_second > _GAIN * best.tokens_per_second:
                again = [measure_choice(model, blocks, choice) for choice in (best.choice, candidate)]
                if again[1].tokens_per_second > _GAIN * again[0].tokens_per_second:
                    best = trial
    result.best = best.choice


def _values(name: str, choice: Choice, model: Any, most: int) -> list[Any]:
    """Return the other values of a setting that are worth a try."""
    if name == "precision":
        return ["fp32"] if choice.precision == "bf16" else []
    if name == "attention":
        return ["model"] if choice.attention == "documents" and speed.packs_documents(model) else []
    if name == "micro_batch_size":
        size = choice.micro_batch_size
        return [other for other in (size // 2, size * 2) if 1 <= other <= most]
    if name == "threads":
        return [other for other in {num_physical_cores()} if choice.threads is not None and other < choice.threads]
    on_gpu = next(model.parameters()).device.type == "cuda"
    return ["on"] if name == "compile" and choice.compile == "off" and on_gpu else []


def _cost(candidate: Choice, best: Trial, blocks: Blocks) -> float:
    """Estimate the seconds of a trial. A trial in fp32 may be four times slower, and compilation takes a minute."""
    on_gpu = candidate.threads is None
    passes = 3 * (_WARM_UP + (_GPU_PASSES if on_gpu else _PASSES))  # a gain is confirmed by one more trial of each side
    seconds = passes * candidate.micro_batch_size * blocks.mean_targets / best.tokens_per_second
    if candidate.precision != best.choice.precision:
        seconds *= 4
    return seconds + (60 if candidate.compile == "on" else 0)


def measure_choice(
    model: Any, blocks: Blocks, choice: Choice, *, passes: int = _PASSES, seconds: float = math.inf
) -> Trial:
    """Measure forward and backward passes on the first blocks: the median of tokens per second after a warm-up.

    A pass over blocks of one size takes about the same time whatever is learned in them. So each pass counts the mean
    number of learned targets of all blocks. The first blocks of examples may hold many more, or none.

    Args:
        passes: number of measured passes; at least 20 on a GPU.
        seconds: no pass begins after this time.
    """
    speed.use_documents(model, choice.attention == "documents")
    threads = torch.get_num_threads()
    if choice.threads is not None:
        torch.set_num_threads(choice.threads)
    rates = []
    try:
        forward = PackedForward(model.train(), precision=choice.precision, compiled=choice.compile == "on")
        if forward.device.type == "cuda":
            passes = max(passes, _GPU_PASSES)
        started = time.perf_counter()
        with speed.kept_memory(), forward.autocast():
            for number in range(_WARM_UP + passes):
                chosen = (np.arange(choice.micro_batch_size) + number * choice.micro_batch_size) % len(blocks)
                batch = blocks.batch(chosen)
                devices.synchronize(forward.device)
                began = time.perf_counter()
                loss = forward.loss(batch, 1.0)
                with forward.no_autocast():
                    loss.backward()  # type: ignore[no-untyped-call]
                devices.synchronize(forward.device)
                if number >= _WARM_UP:
                    rates.append(len(chosen) * blocks.mean_targets / (time.perf_counter() - began))
                    if time.perf_counter() - started > seconds:
                        break
    except Exception as error:
        if not isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        reason = "memory ran out" if is_out_of_memory(error) else str(error).splitlines()[0]
        return Trial(choice, 0.0, reason)
    finally:
        model.zero_grad()
        torch.set_num_threads(threads)
    return Trial(choice, statistics.median(rates))


@contextlib.contextmanager
def _restored(model: Any) -> Iterator[None]:
    """Restore training mode, attention and random state at the end."""
    training, documents = model.training, speed.packs_documents(model)
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        model.train(training)
        speed.use_documents(model, documents)


def default_threads(device: torch.device) -> int | None:
    """Return torch's default number of CPU threads, within the limits of a container; None on an accelerator.

    The processes of a run share the cores of their machine. torchrun sets one thread for each.
    """
    if device.type != "cpu":
        return None
    share = max(1, num_cores() // ranks.processes_here())
    return int(share if ranks.world_size() > 1 else min(share, torch.get_num_threads()))
