"""The training loop: turn blocks into weights, in one process or in several. Does not know about text.

An optimizer step trains on `batch_size` blocks. Their order follows from (seed, epoch). The loss of a step is the sum
of the losses of its targets divided by the number of targets, over all micro-batches and processes. So the sizes of
micro-batches and the number of processes do not change the result. Each process takes every n-th block of a step, and
the gradients are summed after the backward passes, so that no wrapper hides the model. Dropout in each micro-batch is
seeded by (seed, step, micro-batch, process), or by the place of its block in the step if it has only one. So a resumed
run repeats it without saved random states, and an interrupted step is repeated whole.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np
import torch

from finetale import devices, models, speed
from finetale.blocks import Blocks
from finetale.config import EvaluationSettings, TrainSettings
from finetale.environment import peak_memory
from finetale.errors import DivergedError, InterruptedRun, RunError
from finetale.formatting import shell_command
from finetale.forward import PackedForward, find_route
from finetale.metrics import Measurement, measure, perplexity
from finetale.notify import Notify
from finetale.out_of_memory import fit_batches, is_out_of_memory
from finetale.ranks import ALONE, Ranks
from finetale.rundir import RunDirectory, write_sealed_folder
from finetale.schema import (
    CheckpointEvent,
    EvaluatingEvent,
    EvaluationEvent,
    Event,
    SampleEvent,
    StoppedEvent,
    TrainEvent,
    WarningEvent,
)
from finetale.signals import StopRequest
from finetale.training.block_order import block_order
from finetale.training.checkpoints import (
    TrainState,
    check_finite,
    load_moments,
    load_weights,
    moments_of,
    read_state,
    save_checkpoint,
)
from finetale.training.divergence import HISTORY, jump, not_finite
from finetale.training.optimizer import (
    HalfGradientsAdamW,
    HalfMomentsAdamW,
    build_optimizer,
    clip_gradients,
    learning_rate,
)
from finetale.training.sharding import Sharded, Whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ASYNCHRONOUS = ("cuda",)
"""Types of devices that compute asynchronously. Reading a number from such a device waits for it."""
_LOG_EVERY_ASYNCHRONOUS = 10
"""Default number of steps between two log lines on an asynchronous device."""
_REPORT_SECONDS = 1.0
"""Minimum seconds between two progress events of an evaluation."""
T = TypeVar("T")
Sample = Callable[["PreTrainedModel", Callable[[], None]], list[tuple[str, str]]]


class _Position(TypedDict):
    """Progress of the run: optimizer steps done, and target tokens trained on."""

    step: int
    tokens: int


@dataclass(frozen=True)
class StepBudget:
    """The number of blocks and steps of a run, and the steps after which it evaluates and saves.

    At least one of `epochs` and `max_steps` is given. With both, the run ends at the smaller one.
    """

    num_blocks: int  # per epoch
    batch_size: int
    epochs: float | None
    max_steps: int | None
    eval_every: int | None
    save_every: int | None

    @property
    def total_blocks(self) -> int:
        """Return the number of blocks in the whole run; at least one."""
        if self.epochs is None:
            assert self.max_steps is not None
            return self.max_steps * self.batch_size
        return max(1, round(self.epochs * self.num_blocks))

    @property
    def total_steps(self) -> int:
        """Return the number of optimizer steps in the whole run."""
        steps = -(-self.total_blocks // self.batch_size)
        return min(steps, self.max_steps) if self.max_steps else steps

    def blocks_of(self, step: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the block numbers of a step, counted from 0.

        Each block occurs once per epoch. A step may hold the end of one epoch and the beginning of the next.
        """
        start, stop = step * self.batch_size, min((step + 1) * self.batch_size, self.total_blocks)
        chosen = []
        for epoch in range(start // self.num_blocks, -(-stop // self.num_blocks)):
            first = epoch * self.num_blocks
            places = max(0, start - first), min(self.num_blocks, stop - first)
            chosen.append(block_order(self.num_blocks, seed, epoch, *places))
        return np.concatenate(chosen)

    def epoch_at(self, step: int) -> float:
        """Return the number of epochs done after a number of steps."""
        return min(step * self.batch_size, self.total_blocks) / self.num_blocks

    def evaluates(self, step: int) -> bool:
        """Return whether the run evaluates after a number of steps. It does before the first and after the last."""
        if step in (0, self.total_steps):
            return True
        if self.eval_every:
            return step % self.eval_every == 0
        return math.floor(self.epoch_at(step)) > math.floor(self.epoch_at(step - 1))

    def saves(self, step: int) -> bool:
        """Return whether the run saves a checkpoint after a number of steps."""
        if step == self.total_steps or not self.save_every:
            return self.evaluates(step)
        return step % self.save_every == 0


@dataclass
class Training:
    """One run of the training loop: its inputs and its state. Call `run()`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train_blocks: Blocks
    validation_blocks: Blocks | None
    settings: TrainSettings
    evaluation: EvaluationSettings
    directory: RunDirectory
    budget: StepBudget
    precision: str
    compiled: bool = False
    listeners: list[Notify] = field(default_factory=list)
    adapted: models.AdaptedBase | None = None
    """The base of the adapter that is trained; None where all weights are."""
    settings_file: bytes | None = None
    """Content of config.yaml; each checkpoint holds a copy."""
    sample: Sample | None = None
    """Returns prompts with their continuations. Receives the model, and a function to call between tokens."""
    ranks: Ranks = ALONE
    device: torch.device = field(default_factory=devices.device)
    state: TrainState = field(default_factory=TrainState)
    fresh_patience: bool = False
    """Whether a resumed run starts to count evaluations without a better loss from 0."""

    def run(self, checkpoint: Path | None = None) -> TrainState:
        """Train to the end, from the beginning or from a checkpoint.

        Raises:
            DivergedError: the loss or the gradients are not finite. The last good checkpoint is kept.
            MemoryLimitError: a micro-batch of one sequence does not fit.
            InterruptedRun: a signal stopped the run. A checkpoint was saved.
        """
        assert self.settings.micro_batch_size is not None
        self.model.to(self.device)
        if self.settings.gradient_checkpointing:
            models.enable_checkpointing(self.model)
        self.state.micro_batch_size = self.settings.micro_batch_size
        self._saved: TrainState | None = None
        route = find_route(self.model)
        if checkpoint is not None:
            load_weights(checkpoint, self.model)
        self.ranks.copy_from_main(self.model)
        self._forward = PackedForward(self.model, precision=self.precision, route=route, compiled=self.compiled)
        divided = self.settings.shard and self.ranks.world > 1
        self._weights: Whole | Sharded = Sharded(self._forward, self.ranks) if divided else Whole(self._forward)
        optimizer = build_optimizer(self.model, self.settings, self._weights.parameters.values())
        if checkpoint is not None:
            load_moments(checkpoint, optimizer, self._weights.parameters, self._weights.part_of)
            self.state = read_state(checkpoint)
            if self.fresh_patience:
                self.state.bad_evaluations = 0
            self._saved = replace(self.state)
        self._optimizer = optimizer
        # The fused AdamW reads on the device whether to skip the update. For others the host has to decide first.
        self._deferred = self._forward.device.type in _ASYNCHRONOUS and not isinstance(optimizer, HalfMomentsAdamW)
        self._bad = torch.zeros((), device=self._forward.device)
        self._log_every = self.evaluation.log_every or (_LOG_EVERY_ASYNCHRONOUS if self._deferred else 1)
        # The arrays of gathered layers come and go; what is divided to save memory is returned to the system.
        with contextlib.nullcontext() if divided else speed.kept_memory(), StopRequest() as self._stop:
            try:
                if checkpoint is None:
                    with self._weights.whole(here=self.ranks.is_main) as model:
                        self._save_model(model)  # so that a run has a model from the beginning
                if isinstance(optimizer, HalfGradientsAdamW):
                    optimizer.allocate()
                self._steps()
            except InterruptedRun as stopped:
                path = self.directory.checkpoint(self.state.step)
                if self._saved != self.state:
                    path = self._save()
                done = f"{self.state.step} of {self.budget.total_steps} steps are done and saved in {path}."
                raise InterruptedRun(
                    f"{stopped.message} {done}",
                    f"Resume the run with `{shell_command('finetale', 'resume', self.directory.root)}`.",
                ) from None
        return self.state

    def _steps(self) -> None:
        total = self.budget.total_steps
        since = (0, 0.0)  # tokens and seconds since the last log line
        while True:
            step = self.state.step
            if self.budget.evaluates(step) and self.state.evaluated_step < step:
                self._evaluate()
            if step and self.budget.saves(step) and self._saved != self.state:
                self._save()
            if step >= total:
                return
            if self._patience_is_over():
                if not self.budget.saves(step):
                    self._save()
                tried = f"{self.state.bad_evaluations} evaluations without a better validation loss"
                best = f"the best is from step {self.state.best_step}"
                self._emit(
                    StoppedEvent(**self._position, message=f"Stopped after {step} of {total} steps: {tried}; {best}.")
                )
                return
            started = time.perf_counter()
            loss, norm, tokens = self._within_memory(self._gradients)
            rate = self._update(skip=self._must_skip(loss, norm))
            logged = step == 0 or (step + 1) % self._log_every == 0 or self.budget.evaluates(step + 1)
            if logged:
                self._check_deferred()  # waits for the device
            seconds = time.perf_counter() - started
            self.state.step += 1
            self.state.tokens += tokens
            self.state.seconds += seconds
            since = (since[0] + tokens, since[1] + seconds)
            if logged:
                self._emit(
                    TrainEvent(
                        **self._position,
                        epoch=round(self.budget.epoch_at(step + 1), 4),
                        loss=float(loss),
                        learning_rate=rate,
                        grad_norm=float(norm),
                        tokens_per_second=since[0] / since[1],
                        memory_bytes=peak_memory(),
                    )
                )
                since = (0, 0.0)

    def _patience_is_over(self) -> bool:
        return 0 < self.evaluation.patience <= self.state.bad_evaluations

    def _within_memory(self, attempt: Callable[[], T]) -> T:
        """Return the result of an attempt. While memory runs out, halve the micro-batch size and try again."""

        def clean_up() -> None:
            self._optimizer.zero_grad()
            devices.empty_cache(self._forward.device)

        def notify_halved(size: int) -> None:
            self.state.micro_batch_size = size
            message = f"Memory ran out. Training continues with a micro-batch size of {size}."
            self._emit(WarningEvent(**self._position, message=message))

        return fit_batches(
            lambda _: attempt(),
            self.state.micro_batch_size,
            self.train_blocks.block_size,
            clean_up=clean_up,
            notify_halved=notify_halved,
        )

    def _gradients(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Run all micro-batches of a step forward and backward; return loss, gradient norm and number of targets."""
        ranks = self.ranks
        blocks = self.budget.blocks_of(self.state.step, self.settings.seed)
        targets = self.train_blocks.targets_in(blocks)
        limit = self.settings.max_grad_norm or math.inf
        if isinstance(self._weights, Sharded):
            with ranks.together():
                self._stop.check()
            with ranks.alone():
                total = self._passes(blocks, targets)
            self._weights.take_gradients()
            loss, norm = ranks.sum(total), clip_gradients(self._optimizer, limit, ranks)
        else:
            with ranks.together():
                total = self._passes(blocks, targets)
            ranks.sum_gradients(list(self._weights.parameters.values()))
            loss, norm = ranks.sum(total), clip_gradients(self._optimizer, limit)
        if self._deferred:
            self._bad = torch.maximum(self._bad, 1.0 - (torch.isfinite(loss) & torch.isfinite(norm)).float())
            self._optimizer.found_inf = self._bad  # type: ignore[attr-defined]
        return loss, norm, targets

    def _passes(self, blocks: np.ndarray[Any, np.dtype[np.int64]], targets: int) -> torch.Tensor:
        """Run this process's micro-batches of a step forward and backward; return its share of the loss."""
        step, ranks, size = self.state.step, self.ranks, self.state.micro_batch_size
        divided = isinstance(self._weights, Sharded)
        places = np.arange(len(blocks))[ranks.rank :: ranks.world]
        total = torch.zeros((), device=self._forward.device)
        model = self._forward.model.train()
        chunks = [places[at : at + size] for at in range(0, len(places), size)]
        # The sum of several passes needs fp32, as does the sum over processes.
        once = len(chunks) == 1 and ranks.world == 1 and self.precision == "bf16" and not self._deferred
        speed.use_half_gradients(model, once and isinstance(self._optimizer, HalfGradientsAdamW))
        with self._forward.autocast():  # around all micro-batches, so that the weights are cast once per step
            for number, chunk in enumerate(chunks):
                if not divided:  # a process that stops here would leave the others waiting for its weights
                    self._stop.check()
                if size == 1:  # so that the dropout of a block does not depend on the number of processes
                    seed_micro_batch(self.settings.seed, step, int(chunk[0]), 0)
                else:
                    seed_micro_batch(self.settings.seed, step, number, ranks.rank)
                loss = self._weights.loss(self.train_blocks.batch(blocks[chunk]), 1 / targets)
                with self._forward.no_autocast():
                    loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            for _ in range(self._passes_of_all(len(blocks)) - len(chunks) if divided else 0):
                loss = self._weights.loss(self.train_blocks.batch(blocks[:1]), 0.0)
                with self._forward.no_autocast():
                    loss.backward()  # type: ignore[no-untyped-call]
        return total

    def _passes_of_all(self, num_blocks: int) -> int:
        """Return the number of passes of the process with the most blocks of a step."""
        return math.ceil(math.ceil(num_blocks / self.ranks.world) / self.state.micro_batch_size)

    def _update(self, *, skip: bool) -> float:
        """Update the weights unless `skip`; return the learning rate.

        `_within_memory` must not call this, because an update that is repeated would be applied twice.
        """
        rate = learning_rate(self.state.step, self.budget.total_steps, self.settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if not skip:
            if self.ranks.world > 1:  # moments in bf16 are rounded at random; where all are everywhere, equally
                part = self.ranks.rank if isinstance(self._weights, Sharded) else 0
                seed_micro_batch(self.settings.seed, self.state.step, part, self.ranks.world)
            self._optimizer.step()
        half = any(map(speed.has_half_gradient, self.model.parameters()))
        self._optimizer.zero_grad()
        if half:
            speed.release_holes()
        return rate

    def _must_skip(self, loss: torch.Tensor, norm: torch.Tensor) -> bool:
        """Return whether to skip the update because the loss jumped, and warn if so.

        On an asynchronous device this check would wait for the device. There, `_check_deferred` checks later, and only
        for values that are not finite.

        Raises:
            DivergedError: the loss or the gradient is not finite, or the limit of skipped updates is reached.
        """
        if self._deferred:
            return False
        state, value = self.state, float(loss)
        broken = not_finite(value, float(norm))
        wrong = broken or jump(value, state.recent)
        if wrong is None:
            state.recent = [*state.recent, value][-HISTORY:]
            return False
        blocks = self.budget.blocks_of(state.step, self.settings.seed)
        documents = self.train_blocks.names_in(blocks)
        line = f"Step {state.step + 1}: {wrong}; the update was not made. Its documents: {documents}."
        if broken or state.skipped >= self.settings.skip_updates:
            before = f" Updates skipped before: {state.skipped}." if state.skipped else ""
            raise DivergedError(line + before, self._divergence_hint)
        state.skipped += 1
        message = (
            f"{line} The run continues (updates skipped: {state.skipped} of at most {self.settings.skip_updates})."
        )
        self._emit(WarningEvent(**self._position, message=message))
        return True

    @property
    def _divergence_hint(self) -> str:
        return (
            f"Check these documents, or use a lower --learning-rate (it was {self.settings.learning_rate:g}) or"
            " --precision fp32. The last good checkpoint is kept."
        )

    def _check_deferred(self) -> None:
        """Raise an error if a step since the last check was not finite. The device skipped all updates after it."""
        if self._deferred and bool(self._bad):
            raise DivergedError(
                f"The loss or the gradient is not finite in or shortly before step {self.state.step + 1}; no later "
                "update was made.",
                self._divergence_hint,
            )

    def _evaluate(self) -> None:
        """Measure the validation loss, and save the model if it is the best so far. At step 0 this is the base."""
        with self._weights.whole() as model:
            self._evaluate_whole(model)

    def _evaluate_whole(self, model: PreTrainedModel) -> None:
        state = self.state
        loss, better = None, True
        if self.validation_blocks is not None:
            held_out = self.validation_blocks
            loss = self._within_memory(lambda: self._measure(model, held_out)).loss
            if not math.isfinite(loss):
                raise DivergedError(
                    f"Step {state.step}: the validation loss is {loss}.",
                    "Use a lower --learning-rate or --precision fp32. At step 0 this means that the base model is"
                    " corrupted.",
                )
            better = state.best_loss is None or loss < state.best_loss
            sampled = held_out.num_targets < held_out.store.num_targets("validation")
            self._emit(
                EvaluationEvent(
                    **self._position,
                    loss=loss,
                    perplexity=perplexity(loss),
                    best=better,
                    sample_tokens=held_out.num_targets if sampled else None,
                )
            )
        if better:
            state.best_loss, state.best_step, state.bad_evaluations = loss, state.step, 0
            if state.step:
                self._save_model(model)
        else:
            state.bad_evaluations += 1
        state.evaluated_step = state.step
        if state.step:
            with self.ranks.together():
                if self.ranks.is_main and self.sample is not None:
                    self._write_samples(self.sample, model)

    def _write_samples(self, sample: Sample, model: PreTrainedModel) -> None:
        try:
            samples = sample(model, self._stop.check)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = "Memory ran out while sampling; this step has no sample."
            self._emit(WarningEvent(**self._position, message=message))
            return
        for prompt, text in samples:
            self._emit(SampleEvent(**self._position, prompt=prompt, text=text))

    def _measure(self, model: PreTrainedModel, blocks: Blocks) -> Measurement:
        reported = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal reported
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                self._emit(EvaluatingEvent(step=self.state.step, done=done, total=total))

        forward = self._forward
        if model is not forward.model:
            forward = PackedForward(model, precision=self.precision, route=forward.route)
        return measure(
            forward,
            blocks,
            batch_size=self.state.micro_batch_size,
            ranks=self.ranks,
            progress=progress,
            between=self._stop.check,
        )

    def _save(self) -> Path:
        self._check_deferred()
        path, self._saved = self.directory.checkpoint(self.state.step), None
        weights, is_main = self._weights, self.ranks.is_main
        with weights.whole(here=is_main) as model, self.ranks.together():
            moments = moments_of(self._optimizer, weights.parameters, weights.whole_of, here=is_main)
            if is_main:
                with disk_errors(path):
                    save_checkpoint(
                        self.directory,
                        self.state,
                        model,
                        self.tokenizer,
                        moments,
                        self.evaluation.keep_checkpoints,
                        self.settings_file,
                        self.adapted,
                    )
                self._emit(CheckpointEvent(**self._position, path=str(path.relative_to(self.directory.root))))
        self._saved = replace(self.state)
        return path

    def _save_model(self, model: PreTrainedModel) -> None:
        with self.ranks.together():
            if self.ranks.is_main:
                self._write_model(model)

    def _write_model(self, model: PreTrainedModel) -> None:
        check_finite(dict(model.named_parameters()), self.state.step)
        adapted, place = self.adapted, self.directory.adapter
        if adapted is not None:
            with disk_errors(place):
                write_sealed_folder(place, lambda folder: adapted.save_adapter(model, folder, self.tokenizer))

        def fill(folder: Path) -> None:
            if adapted is None:
                models.save(model, self.tokenizer, folder)
            else:
                adapted.save_merged(model, self.tokenizer, place, folder)

        with disk_errors(self.directory.model):
            write_sealed_folder(self.directory.model, fill)

    @property
    def _position(self) -> _Position:
        return {"step": self.state.step, "tokens": self.state.tokens}

    def _emit(self, event: Event) -> None:
        if self.ranks.is_main:
            for listener in self.listeners:
                listener(event)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into one sentence with a hint. The files that were there before are unchanged.

    Raises:
        RunError: names the path and the system's error.
    """
    try:
        yield
    except Exception as error:
        # safetensors raises its own exception type, with the system's error in the text.
        if isinstance(error, OSError) or "(os error " in str(error):
            raise RunError(
                f"{path} can't be written: {error}.", "Free some disk space, then run `finetale resume`."
            ) from error
        raise


def seed_micro_batch(seed: int, step: int, micro_batch: int, process: int) -> None:
    """Seed torch's generators for one micro-batch."""
    mixed = np.random.SeedSequence([seed, step, micro_batch, process]).generate_state(2, np.uint32)
    torch.manual_seed(int(mixed[0]) << 31 | int(mixed[1]) >> 1)
