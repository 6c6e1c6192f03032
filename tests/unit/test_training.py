"""Test the training loop: budget, optimizer, checkpoints, memory, early stopping, NaNs, signals, event files."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

import loops
from finetale import speed
from finetale.blocks import Blocks, pack
from finetale.config import EvaluationSettings, TrainSettings
from finetale.errors import DivergedError, InterruptedRun, MemoryLimitError, ModelError, RankError, RunError
from finetale.forward import PackedForward
from finetale.out_of_memory import fit_batches, is_out_of_memory
from finetale.rundir import RunDirectory, verify_folder
from finetale.schema import EvaluationEvent, Event, SampleEvent, TrainEvent, WarningEvent, event_line
from finetale.signals import Stopped, StopRequest
from finetale.speed import loss as loss_module
from finetale.training import (
    MetricsFile,
    StepBudget,
    TensorBoardFile,
    Training,
    TrainState,
    default_learning_rate,
    memory,
    newest_valid_checkpoint,
    plan_memory,
    read_state,
)
from finetale.training.checkpoints import save_checkpoint
from finetale.training.loop import disk_errors, seed_micro_batch
from finetale.training.optimizer import build_optimizer, learning_rate, warmup_steps
from tiny import model, store, story, tokenizer

SIZE = 32
Weights = dict[str, torch.Tensor]

loop_module = importlib.import_module("finetale.training.loop")


def settings(**values: Any) -> TrainSettings:
    base = {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32", "warmup_steps": 0}
    return TrainSettings.resolve(base | values)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    folder = tmp_path_factory.mktemp("train")
    made = pack(store(folder, [story(number, 16) for number in range(12)]), "train", SIZE, fill=True)
    assert 12 <= len(made) <= 40
    return made


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    texts = [story(number, 16) for number in range(20, 26)]
    return pack(store(tmp_path_factory.mktemp("held"), texts), "train", SIZE)


class Recorder:
    """A listener that records events and the weights at each event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.model: torch.nn.Module | None = None
        self.weights: dict[int, Weights] = {}

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self.model is not None and event.event == "evaluation":
            self.weights[event.step] = weights(self.model)

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.events if event.event == kind]


def training(
    folder: Path,
    blocks: Blocks,
    recorder: Recorder,
    *,
    tiny: torch.nn.Module | None = None,
    validation: Blocks | None = None,
    epochs: float = 4.0,
    max_steps: int | None = None,
    evaluation: dict[str, Any] | None = None,
    **values: Any,
) -> Training:
    wanted = settings(**values)
    evaluated = EvaluationSettings.resolve(evaluation or {})
    assert wanted.batch_size is not None
    loop = Training(
        model=tiny if tiny is not None else model(0),  # type: ignore[arg-type]
        tokenizer=tokenizer(),
        train_blocks=blocks,
        validation_blocks=validation,
        settings=wanted,
        evaluation=evaluated,
        directory=RunDirectory(folder),
        budget=StepBudget(
            len(blocks), wanted.batch_size, epochs, max_steps, evaluated.eval_every, evaluated.save_every
        ),
        precision="fp32",
        listeners=[recorder],
    )
    recorder.model = loop.model
    return loop


def weights(tiny: torch.nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in tiny.state_dict().items()}


def same_bits(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Learning rates


def test_learning_rate_warms_up_to_the_peak_and_falls_to_its_end() -> None:
    wanted = settings(learning_rate=1.0, warmup_steps=3, schedule="linear", final_learning_rate_ratio=0.2)
    rates = [learning_rate(step, 11, wanted) for step in range(12)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[3:] == pytest.approx([1 - 0.1 * step for step in range(9)])
    assert learning_rate(50, 11, wanted) == pytest.approx(0.2)


def test_cosine_is_half_at_the_middle_and_constant_does_not_change() -> None:
    cosine = settings(learning_rate=1.0, schedule="cosine", final_learning_rate_ratio=0.1)
    rates = [learning_rate(step, 10, cosine) for step in range(11)]
    assert rates[0] == 1.0
    assert rates[5] == pytest.approx(0.55)
    assert rates[2] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(0.2 * math.pi)))
    assert rates[10] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    constant = settings(learning_rate=0.5, schedule="constant", warmup_steps=1)
    assert [learning_rate(step, 4, constant) for step in range(4)] == [0.25, 0.5, 0.5, 0.5]


def test_warmup_below_one_is_a_share_and_otherwise_a_number_of_steps() -> None:
    assert warmup_steps(200, settings(warmup_steps=0.05)) == 10
    assert warmup_steps(200, settings(warmup_steps=1)) == 1
    assert warmup_steps(200, settings(warmup_steps=300)) == 300
    assert warmup_steps(10, settings(warmup_steps=0.05)) == 0
    still_warming = settings(learning_rate=1.0, warmup_steps=300)
    assert learning_rate(199, 200, still_warming) == pytest.approx(200 / 301)


def test_the_default_learning_rate_falls_with_the_square_root_of_the_size() -> None:
    assert default_learning_rate(124_439_808, new=False) == 1e-4
    assert default_learning_rate(124_439_808, new=True) == 3e-4
    assert default_learning_rate(4 * 124_439_808, new=False) == 5e-5
    assert default_learning_rate(1, new=False) == 1e-3
    assert default_learning_rate(10**13, new=False) == 1e-5


# StepBudget


def plan(num_blocks: int = 10, batch_size: int = 4, epochs: float = 3.0, **values: Any) -> StepBudget:
    rest = {"max_steps": None, "eval_every": None, "save_every": None} | values
    return StepBudget(num_blocks, batch_size, epochs, **rest)


@pytest.mark.parametrize(("num_blocks", "batch_size", "epochs"), [(10, 4, 3.0), (7, 7, 2.0), (3, 8, 5.0), (10, 3, 1.0)])
def test_each_block_occurs_once_per_epoch(num_blocks: int, batch_size: int, epochs: float) -> None:
    budget = plan(num_blocks, batch_size, epochs)
    order = [budget.blocks_of(step, seed=5) for step in range(budget.total_steps)]
    assert [len(step) for step in order[:-1]] == [batch_size] * (budget.total_steps - 1)
    flat = np.concatenate(order)
    assert len(flat) == budget.total_blocks == epochs * num_blocks
    for epoch in range(int(epochs)):
        assert sorted(flat[epoch * num_blocks : (epoch + 1) * num_blocks]) == list(range(num_blocks))


def test_the_order_of_blocks_depends_on_epoch_and_seed_only() -> None:
    budget = plan(50, 50, 2.0)
    orders = [tuple(budget.blocks_of(step, seed)) for seed in (0, 1) for step in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(budget.blocks_of(1, 1)) == orders[3]


def test_a_fraction_of_an_epoch_uses_this_fraction_of_the_blocks() -> None:
    budget = plan(10, 4, 1.5)
    assert (budget.total_blocks, budget.total_steps) == (15, 4)
    times = Counter(int(block) for step in range(4) for block in budget.blocks_of(step, 0))
    assert sorted(times.values()) == [1] * 5 + [2] * 5
    assert (plan(10, 4, 0.01).total_blocks, plan(10, 4, 0.01).total_steps) == (1, 1)
    assert plan(10, 4, 3.0, max_steps=5).total_steps == 5
    assert plan(10, 4, 3.0, max_steps=50).total_steps == 8


def test_epochs_done() -> None:
    assert [plan().epoch_at(step) for step in (0, 1, 5, 8)] == [0.0, 0.4, 2.0, 3.0]


def steps_that(asks: Callable[[int], bool], total: int) -> list[int]:
    return [step for step in range(total + 1) if asks(step)]


def test_evaluations_are_at_epochs_or_every_n_steps_and_at_both_ends() -> None:
    assert steps_that(plan().evaluates, 8) == [0, 3, 5, 8]  # the first steps with at least 10, 20 and 30 blocks
    assert steps_that(plan(eval_every=3).evaluates, 8) == [0, 3, 6, 8]
    assert steps_that(plan(max_steps=4).evaluates, 4) == [0, 3, 4]
    assert steps_that(plan(2, 8, 12.0).evaluates, 3) == [0, 1, 2, 3]  # several epochs per step


def test_saves_follow_evaluations_or_their_own_interval() -> None:
    assert steps_that(plan().saves, 8) == [0, 3, 5, 8]
    assert steps_that(plan(save_every=2).saves, 7) == [0, 2, 4, 6]
    assert plan(save_every=3).saves(8)  # the end


# Optimizer


def test_only_matrices_have_weight_decay_and_each_parameter_is_optimised_once() -> None:
    tiny = model(0)
    groups = build_optimizer(tiny, settings(weight_decay=0.3, adam_beta1=0.8, adam_beta2=0.9)).param_groups
    names = {id(parameter): name for name, parameter in tiny.named_parameters()}
    decayed, others = ([names[id(parameter)] for parameter in group["params"]] for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert [group["betas"] for group in groups] == [(0.8, 0.9)] * 2
    assert len(decayed) == 2 + 2 * 4  # two embeddings and four matrices per layer; the head shares the first embedding
    assert len(others) == 2 + 2 * 8
    assert all(".bias" in name or ".ln_" in name for name in others)
    assert not any(".bias" in name or ".ln_" in name for name in decayed)
    assert sorted(decayed + others) == sorted(names.values())


def test_frozen_parameters_are_not_optimised() -> None:
    tiny = model(0)
    tiny.transformer.wte.weight.requires_grad_(False)
    groups = build_optimizer(tiny, settings()).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(tiny.parameters())) - 1


# Checkpoints


def stepped(seed: int = 0, steps: int = 2) -> tuple[GPT2LMHeadModel, torch.optim.AdamW]:
    """Return a model and an optimizer after some steps."""
    tiny = model(seed)
    optimizer = build_optimizer(tiny, settings())
    for step in range(steps):
        tiny(torch.arange(8)[None] + step, labels=torch.arange(8)[None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tiny, optimizer


def saved(run: RunDirectory, *steps: int, keep: int = 9) -> None:
    tiny, optimizer = stepped(steps=1)
    for step in steps:
        save_checkpoint(run, TrainState(step=step), tiny, tokenizer(), loops.moments(tiny, optimizer), keep)


def names_of(run: RunDirectory) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in run.checkpoints.iterdir())


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_a_checkpoint_restores_weights_moments_and_counters(tmp_path: Path) -> None:
    tiny, optimizer = stepped(0)
    state = TrainState(7, 1234, 5.5, 2, 6, 3, 4.25, 1)
    folder = save_checkpoint(RunDirectory(tmp_path), state, tiny, tokenizer(), loops.moments(tiny, optimizer), keep=2)
    assert folder.name == "step-00000007"
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    other, other_optimizer = stepped(1, steps=1)
    assert loops.load_checkpoint(folder, other, other_optimizer) == state == read_state(folder)
    assert same_bits(weights(tiny), weights(other))
    assert other.lm_head.weight is other.transformer.wte.weight
    number = 0
    for one, two in zip(tiny.parameters(), other.parameters(), strict=True):
        assert set(optimizer.state[one]) == set(other_optimizer.state[two]) == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in optimizer.state[one].items():
            assert torch.equal(value, other_optimizer.state[two][key])
            number += 1
    assert number == 3 * len(list(tiny.parameters()))
    assert float(optimizer.state[one]["step"]) == 2


def test_shared_weights_are_stored_once(tmp_path: Path) -> None:
    tiny, optimizer = stepped(0, steps=0)
    folder = save_checkpoint(
        RunDirectory(tmp_path), TrainState(), tiny, tokenizer(), loops.moments(tiny, optimizer), keep=1
    )
    stored = load_file(str(folder / "model.safetensors"))
    assert sum(tensor.numel() for tensor in stored.values()) == tiny.num_parameters()
    assert load_file(str(folder / "optimizer.safetensors")) == {}
    loops.load_checkpoint(folder, tiny, optimizer)
    assert len(optimizer.state) == 0


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    saved(run, 1, 2, 3, 10, keep=9)
    assert names_of(run) == [1, 2, 3, 10]
    saved(run, 11, keep=2)
    assert names_of(run) == [10, 11]


def test_the_checkpoint_just_written_is_never_deleted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    saved(run, 4, 8)
    damage(run.checkpoint(8) / "model.safetensors")  # a resumed run continues from step 4
    saved(run, 5, keep=1)
    assert newest_valid_checkpoint(run)[0] == run.checkpoint(5)


def test_a_corrupted_checkpoint_is_skipped_and_reported(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert newest_valid_checkpoint(run) == (None, [])
    saved(run, 1, 2, 3)
    assert newest_valid_checkpoint(run) == (run.checkpoint(3), [])
    damage(run.checkpoint(3) / "optimizer.safetensors")
    (run.checkpoint(2) / "state.json").unlink()
    assert newest_valid_checkpoint(run) == (
        run.checkpoint(1),
        [
            "step-00000003 is corrupted and was skipped (optimizer.safetensors: content differs from its SHA-256)",
            "step-00000002 is corrupted and was skipped (state.json: missing)",
        ],
    )
    damage(run.checkpoint(1) / "model.safetensors")
    found, damaged = newest_valid_checkpoint(run)
    assert found is None
    assert len(damaged) == 3


def test_a_checkpoint_without_a_manifest_is_incomplete(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    saved(run, 1, 2)
    (run.checkpoint(2) / "manifest.json").unlink()  # the manifest is written last
    assert newest_valid_checkpoint(run) == (run.checkpoint(1), [])


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    saved(run, 1)
    file = run.checkpoint(1) / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"new": 1}))
    with pytest.raises(RunError, match="another version of Finetale"):
        read_state(run.checkpoint(1))


def test_a_full_disk_is_a_user_error_and_other_errors_are_passed_on(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"can't be written: .*No space left"), disk_errors(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(RunError, match="No space left"), disk_errors(tmp_path):
        raise ValueError("I/O error: No space left on device (os error 28)")
    with pytest.raises(ValueError, match="other"), disk_errors(tmp_path):
        raise ValueError("other")


def test_a_run_writes_checkpoints_according_to_its_schedule(tmp_path: Path, blocks: Blocks) -> None:
    recorder = Recorder()
    training(tmp_path, blocks, recorder, max_steps=5, evaluation={"save_every": 2, "keep_checkpoints": 2}).run()
    paths = [event.path for event in recorder.of("checkpoint")]
    assert paths == [f"checkpoints/step-{step:08d}" for step in (2, 4, 5)]
    run = RunDirectory(tmp_path)
    assert names_of(run) == [4, 5]
    assert verify_folder(run.checkpoint(5)) == []


# Memory


class HungryModel(GPT2LMHeadModel):
    """A model that runs out of memory with more than a number of sequences; by default only in training.

    It allows `spared` passes that are too large.
    """

    most = 4
    spared = 0
    always = False
    error: BaseException = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    def forward(self, input_ids: torch.Tensor, **arguments: Any) -> Any:  # type: ignore[override]
        if (self.training or self.always) and len(input_ids) > self.most:
            if not self.spared:
                raise self.error
            self.spared -= 1
        return super().forward(input_ids=input_ids, **arguments)


def hungry(most: int, **values: Any) -> HungryModel:
    tiny = HungryModel(model(0).config)
    tiny.load_state_dict(model(0).state_dict())
    tiny.most = most
    for name, value in values.items():
        setattr(tiny, name, value)
    return tiny


def test_micro_batches_are_halved_when_memory_runs_out(tmp_path: Path, blocks: Blocks) -> None:
    recorder, calm = Recorder(), Recorder()
    loop = training(tmp_path / "a", blocks, recorder, tiny=hungry(2), max_steps=2, batch_size=8, micro_batch_size=8)
    state = loop.run()
    assert state.micro_batch_size == 2
    warnings = recorder.of("warning")
    assert [warning.message for warning in warnings] == [
        "Memory ran out. Training continues with a micro-batch size of 4.",
        "Memory ran out. Training continues with a micro-batch size of 2.",
    ]
    assert [warning.step for warning in warnings] == [0, 0]
    small = training(tmp_path / "b", blocks, calm, max_steps=2, batch_size=8, micro_batch_size=2)
    small.run()
    assert same_bits(weights(loop.model), weights(small.model))  # failed attempts leave no gradient
    assert [event.loss for event in recorder.of("train")] == [event.loss for event in calm.of("train")]
    assert read_state(RunDirectory(tmp_path / "a").checkpoint(2)).micro_batch_size == 2


def test_gradients_of_a_failed_attempt_are_discarded(tmp_path: Path, blocks: Blocks) -> None:
    runs = []
    for number, (micro_batch_size, spared) in enumerate([(4, 1), (2, 0)]):
        recorder = Recorder()
        options: dict[str, Any] = {"batch_size": 8, "micro_batch_size": micro_batch_size, "max_steps": 1}
        loop = training(tmp_path / str(number), blocks, recorder, tiny=hungry(2, spared=spared), **options)
        loop.run()
        runs.append((weights(loop.model), len(recorder.of("warning"))))
    assert [warnings for _, warnings in runs] == [1, 0]
    assert same_bits(runs[0][0], runs[1][0])


def test_one_sequence_that_does_not_fit_is_an_error(tmp_path: Path, blocks: Blocks) -> None:
    recorder = Recorder()
    loop = training(tmp_path, blocks, recorder, tiny=hungry(0))
    before = weights(loop.model)
    with pytest.raises(MemoryLimitError, match=r"one sequence of 32 tokens: CUDA out of memory.*2\.00 GiB") as caught:
        loop.run()
    assert "--block-size" in caught.value.hint
    assert "More." not in caught.value.message
    assert [event.message[-2:] for event in recorder.of("warning")] == ["2.", "1."]
    assert same_bits(before, weights(loop.model))


def test_memory_errors_without_a_message_are_recognised(tmp_path: Path, blocks: Blocks) -> None:
    with pytest.raises(MemoryLimitError, match="one sequence of 32 tokens"):
        training(tmp_path, blocks, Recorder(), tiny=hungry(0, error=MemoryError())).run()


def test_batches_of_evaluations_are_halved_when_memory_runs_out(
    tmp_path: Path, blocks: Blocks, held_out: Blocks
) -> None:
    recorder = Recorder()
    loop = training(tmp_path, blocks, recorder, tiny=hungry(2, always=True), validation=held_out, max_steps=1)
    assert loop.run().micro_batch_size == 2
    assert len(recorder.of("warning")) == 1
    assert len(recorder.of("evaluation")) == 2


def test_other_errors_do_not_count_as_out_of_memory(tmp_path: Path, blocks: Blocks) -> None:
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="shapes"):
        training(tmp_path, blocks, recorder, tiny=hungry(0, error=RuntimeError("shapes differ"))).run()
    assert recorder.of("warning") == []


def array_memory_error() -> BaseException:
    with pytest.raises(MemoryError) as caught:
        np.empty((2**40, 2**20), np.int8)
    return caught.value


def raised_for(error: BaseException, reason: BaseException) -> BaseException:
    """Return an error that was raised `from None` while another was handled."""
    try:
        try:
            raise reason
        except BaseException:
            raise error from None
    except BaseException as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a matmul primitive"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (ImportError("libgomp.so: cannot allocate memory in static TLS block"), False),
        (SafetensorError("Error while serializing: I/O error: Cannot allocate memory (os error 12)"), True),
        (array_memory_error(), True),
        (raised_for(ModelError("The weights can't be read."), OSError(errno.ENOMEM, "x")), True),
        (raised_for(InterruptedRun("Stopped."), MemoryError()), False),
        (raised_for(RankError("A step failed."), MemoryError()), False),
        (raised_for(ModelError("The weights can't be read."), OSError(errno.EIO, "x")), False),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_count_as_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize(("limit", "expected"), [(None, False), (2_560_000_000, True)])
def test_an_error_counts_as_out_of_memory_only_with_a_memory_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, expected: bool
) -> None:
    monkeypatch.setattr("finetale.out_of_memory.address_space_limit", lambda: limit)
    assert is_out_of_memory(RuntimeError("unknown parameter type")) is expected


def test_batches_are_halved_until_they_fit() -> None:
    calls: list[tuple[str, int]] = []

    def work(batch_size: int) -> str:
        calls.append(("work", batch_size))
        if batch_size > most:
            raise MemoryError
        return f"{batch_size} fit"

    def clean_up() -> None:
        calls.append(("clean up", 0))

    def notify_halved(batch_size: int) -> None:
        calls.append(("halved", batch_size))

    most = 3
    assert fit_batches(work, 6, 64, clean_up=clean_up, notify_halved=notify_halved) == "3 fit"
    assert calls == [("work", 6), ("clean up", 0), ("halved", 3), ("work", 3)]
    most = 0
    with pytest.raises(MemoryLimitError, match="Memory ran out with one sequence of 64 tokens") as caught:
        fit_batches(work, 2, 64)
    assert "--gradient-checkpointing" in caught.value.hint
    with pytest.raises(ZeroDivisionError):  # other errors are not retried
        fit_batches(lambda batch_size: 1 // 0, 2, 64, clean_up=pytest.fail)


def test_a_memory_probe_can_return_one_sequence(tmp_path: Path, blocks: Blocks) -> None:
    forward = PackedForward(hungry(1))
    assert plan_memory(forward, blocks, 8).micro_batch_size == 1
    error = RuntimeError("could not create a primitive")
    with pytest.raises(
        MemoryLimitError, match="with one sequence of 32 tokens: could not create a primitive"
    ) as caught:
        plan_memory(PackedForward(hungry(0, error=error)), blocks, 8)
    assert "--block-size" in caught.value.hint


def planned(blocks: Blocks, monkeypatch: pytest.MonkeyPatch, available: float, most: int = 1000) -> memory.MemoryPlan:
    monkeypatch.setattr(memory, "available_memory", lambda: int(available))
    return plan_memory(PackedForward(model(0)), blocks, most)


def test_the_memory_plan_is_the_largest_power_of_two_that_fits(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = model(0).num_parameters()
    first = planned(blocks, monkeypatch, 1e12)
    assert first.fixed_bytes == 16 * parameters
    assert first.available_bytes == 1e12 + 4 * parameters
    assert first.micro_batch_size == 2048 // SIZE  # larger batches are not faster on a CPU
    vocabulary = len(tokenizer())
    each = first.sequence_bytes + first.logit_bytes
    assert each > 4 * SIZE * (3 * vocabulary + 2 * 12 * 32)
    assert first.expected_bytes(3) == first.fixed_bytes + first.pass_bytes + 3 * each
    assert first.max_sequences == 1000

    def room(sequences: float) -> float:
        return (first.fixed_bytes + first.pass_bytes + sequences * each) / 0.7 - 4 * parameters + 10

    sizes = [planned(blocks, monkeypatch, room(number)).micro_batch_size for number in (0, 1, 1.9, 2, 7.9, 8)]
    assert sizes == [1, 1, 1, 2, 4, 8]
    assert planned(blocks, monkeypatch, 0).micro_batch_size == 1
    assert planned(blocks, monkeypatch, 1e12, most=6).micro_batch_size == 6
    assert planned(blocks, monkeypatch, room(5), most=6).micro_batch_size == 4
    assert planned(blocks, monkeypatch, room(300)).max_sequences == 256
    divided = plan_memory(PackedForward(model(0)), blocks, 8, parts=4)
    assert divided.fixed_bytes == (16 // 4 + 4) * parameters  # and the whole weights in evaluations


def test_logits_in_chunks_take_no_more_memory_than_a_chunk(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of many sequences computes its logits in chunks, so their memory does not grow with the sequences."""
    tiny = speed.apply(model(0))
    chunk = 8 * SIZE * len(tokenizer()) * 4
    monkeypatch.setattr(loss_module, "_CHUNK_BYTES", chunk)
    plan = plan_memory(PackedForward(tiny), blocks, 1000)
    grown = plan.expected_bytes(200) - plan.expected_bytes(100)
    assert plan.logit_bytes == chunk // 8
    assert grown == 100 * plan.sequence_bytes
    assert plan.expected_bytes(100) - plan.expected_bytes(0) - 100 * plan.sequence_bytes <= chunk


def test_the_probe_uses_the_block_with_the_longest_documents(tmp_path: Path) -> None:
    texts = [story(number, 3) for number in range(30)] + [story(50, 200)]
    mixed = pack(store(tmp_path, texts), "train", 64)
    hungriest = memory._costliest_block(mixed)
    assert mixed.batch(np.array([hungriest])).documents.max() == 0
    assert mixed.batch(np.array([0])).documents.max() > 0


def test_wide_models_use_fewer_tokens_per_pass(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CPU_VALUES", 32 * 8 * SIZE)  # the width of the tiny model is 32
    assert planned(blocks, monkeypatch, 1e12).micro_batch_size == 8


def test_the_fixed_memory_of_a_pass_does_not_grow_with_the_batch(blocks: Blocks) -> None:
    """The gradient of the output layer exists once for any batch size; linear layers keep no copies of weights."""
    tiny = speed.apply(model(0))
    plan = plan_memory(PackedForward(tiny, precision="bf16"), blocks, 4)
    expected = 4 * tiny.get_output_embeddings().weight.numel()
    assert 0.8 * expected < plan.pass_bytes < 1.2 * expected  # two short blocks share one tile of the attention
    whole = plan_memory(PackedForward(model(0), precision="bf16"), blocks, 4)
    assert plan.sequence_bytes < 0.8 * whole.sequence_bytes  # no logits are stored


def test_gradients_count_as_large_as_the_loop_keeps_them(blocks: Blocks) -> None:
    tiny = speed.apply(model(0))
    tiny.transformer.h[0].requires_grad_(False)
    forward = PackedForward(tiny, precision="bf16")
    plan = plan_memory(forward, blocks, 4)
    trained = [parameter for parameter in tiny.parameters() if parameter.requires_grad]
    weights_and_moments = sum(p.nbytes for p in tiny.parameters()) + sum(8 * p.numel() for p in trained)
    for half, passes in ((True, 4), (False, 2)):
        speed.use_half_gradients(tiny, half)
        forward.loss(blocks.batch(np.arange(2))).backward()  # type: ignore[no-untyped-call]
        gradients = sum(p.grad.nbytes for p in tiny.parameters() if p.grad is not None)
        kept = plan.pass_bytes + passes * (plan.sequence_bytes + plan.logit_bytes)
        assert plan.expected_bytes(passes) == weights_and_moments + gradients + kept
        tiny.zero_grad()
    assert plan.saved_bytes > 0 or not hasattr(torch.Tensor, "grad_dtype")
    assert plan_memory(PackedForward(tiny), blocks, 4).saved_bytes == 0
    assert plan_memory(forward, blocks, 4, moment_bytes=2).saved_bytes == 0


def test_the_memory_probe_is_repeatable_and_does_not_change_the_model(blocks: Blocks) -> None:
    tiny = model(0, dropout=0.1)
    before, generator = weights(tiny), torch.get_rng_state()
    first, second = (plan_memory(PackedForward(tiny), blocks, 4).sequence_bytes for _ in range(2))
    assert first == second
    assert torch.equal(generator, torch.get_rng_state())
    assert same_bits(before, weights(tiny))
    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert not tiny.training
    longer = pack(blocks.store, "train", 2 * SIZE, fill=True)
    assert 1.9 * first < plan_memory(PackedForward(tiny), longer, 4).sequence_bytes < 3 * first


# Steps


def test_a_step_uses_its_learning_rate_and_clips_the_gradient(tmp_path: Path, blocks: Blocks) -> None:
    found = []
    for number, rate in enumerate([{"learning_rate": 1e-2, "warmup_steps": 9}, {"learning_rate": 1e-3}]):
        loop = training(tmp_path / str(number), blocks, Recorder(), max_steps=1, **rate)
        loop.run()
        found.append(weights(loop.model))
    assert same_bits(found[0], found[1])
    assert not same_bits(found[0], weights(model(0)))
    norms = []
    for limit in (0.0, 1e-3):
        recorder = Recorder()
        loop = training(tmp_path / f"clip{limit}", blocks, recorder, max_steps=1, max_grad_norm=limit)
        loop.run()
        moments = [loop._optimizer.state[parameter]["exp_avg"] for parameter in loop.model.parameters()]
        norms.append(float(torch.cat([moment.flatten() for moment in moments]).norm()) / 0.1)  # 1 - beta1
        reported = recorder.of("train")[0].grad_norm
    assert norms == pytest.approx([reported, 1e-3], rel=1e-3)
    assert reported > 0.1


# Evaluations


def test_the_best_weights_are_kept_and_patience_ends_the_run(tmp_path: Path, blocks: Blocks, held_out: Blocks) -> None:
    recorder = Recorder()
    loop = training(
        tmp_path,
        blocks,
        recorder,
        validation=held_out,
        epochs=50.0,
        learning_rate=1e-2,
        schedule="constant",
        evaluation={"eval_every": 2, "patience": 2},
    )
    state = loop.run()
    losses = {event.step: event.loss for event in recorder.of("evaluation")}
    best = min(losses, key=lambda step: losses[step])
    assert 0 < best == state.best_step
    assert state.best_loss == losses[best]
    assert state.step == best + 4 < loop.budget.total_steps
    assert list(losses) == list(range(0, state.step + 1, 2))
    assert state.bad_evaluations == 2
    marked = [event.step for event in recorder.of("evaluation") if event.best]
    assert marked == [step for step in losses if all(losses[step] < losses[other] for other in losses if other < step)]
    assert all(event.perplexity == pytest.approx(math.exp(event.loss)) for event in recorder.of("evaluation"))
    kept = GPT2LMHeadModel.from_pretrained(str(tmp_path / "model"))
    assert same_bits(weights(kept), recorder.weights[best])
    assert not same_bits(weights(kept), weights(loop.model))
    assert names_of(RunDirectory(tmp_path))[-1] == state.step


def test_each_better_evaluation_resets_the_patience(
    tmp_path: Path, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([5.0, 4.0, 4.5, 3.9, 4.0, 3.9, 1.0])
    monkeypatch.setattr(Training, "_measure", lambda self, model, blocks: SimpleNamespace(loss=next(losses)))
    evaluation = {"eval_every": 1, "patience": 2}
    state = training(tmp_path, blocks, Recorder(), validation=blocks, evaluation=evaluation).run()
    assert (state.step, state.best_step, state.best_loss, state.bad_evaluations) == (5, 3, 3.9, 2)
    assert list(losses) == [1.0]


def test_without_patience_the_run_uses_its_whole_budget(tmp_path: Path, blocks: Blocks) -> None:
    backwards = pack(store(tmp_path, [story(20, 16)[::-1]]), "train", SIZE)  # training makes the validation loss worse
    evaluation = {"eval_every": 1, "patience": 0}
    options: dict[str, Any] = {"learning_rate": 0.3, "schedule": "constant", "max_steps": 6}
    loop = training(tmp_path, blocks, Recorder(), validation=backwards, evaluation=evaluation, **options)
    state = loop.run()
    assert (state.step, state.best_step, state.bad_evaluations) == (6, 0, 6)
    kept = GPT2LMHeadModel.from_pretrained(str(tmp_path / "model"))
    assert same_bits(weights(kept), weights(model(0)))  # no evaluation was better than the base


def test_without_validation_text_the_last_weights_are_kept(tmp_path: Path, blocks: Blocks) -> None:
    recorder = Recorder()
    loop = training(tmp_path, blocks, recorder, max_steps=3)
    state = loop.run()
    assert recorder.of("evaluation") == []
    assert (state.step, state.best_step, state.best_loss) == (3, 3, None)
    assert same_bits(weights(GPT2LMHeadModel.from_pretrained(str(tmp_path / "model"))), weights(loop.model))


def test_the_keys_of_events(tmp_path: Path, blocks: Blocks, held_out: Blocks) -> None:
    recorder = Recorder()
    loop = training(tmp_path, blocks, recorder, validation=held_out, epochs=2.0)
    loop.sample = lambda model, between: [("Once", " upon")]
    state = loop.run()
    train = recorder.of("train")
    assert [event.step for event in train] == list(range(1, state.step + 1))
    assert state.tokens == train[-1].tokens == 2 * blocks.num_targets
    names = {
        "event",
        "step",
        "tokens",
        "loss",
        "learning_rate",
        "tokens_per_second",
        "grad_norm",
        "memory_bytes",
        "epoch",
    }
    assert all(set(event.to_dict()) == names for event in train)
    assert all(event.tokens_per_second > 0 and event.memory_bytes > 1e6 for event in train)
    assert train[-1].epoch == 2.0
    assert [event.learning_rate for event in train] == [
        learning_rate(step, state.step, loop.settings) for step in range(state.step)
    ]
    assert [event.step for event in recorder.of("sample")] == [
        event.step for event in recorder.of("evaluation") if event.step
    ]
    assert {"prompt", "text"} <= set(recorder.of("sample")[0].to_dict())
    few = Recorder()
    training(tmp_path / "few", blocks, few, max_steps=5, evaluation={"log_every": 3, "eval_every": 9}).run()
    assert [event.step for event in few.of("train")] == [1, 3, 5]


# NaNs


class BreakingModel(GPT2LMHeadModel):
    """A model that gives NaN from a training pass on, in the loss or only in the gradients."""

    first = 4
    gradients_only = False

    def forward(self, input_ids: torch.Tensor, **arguments: Any) -> Any:  # type: ignore[override]
        found = super().forward(input_ids=input_ids, **arguments)
        if self.training:
            self.passes = getattr(self, "passes", 0) + 1
            if self.passes >= self.first:
                if self.gradients_only:
                    found.logits.register_hook(lambda gradient: gradient * math.inf)
                else:
                    found.logits = found.logits * math.nan
        return found


@pytest.mark.parametrize("gradients_only", [False, True], ids=["loss", "gradients"])
def test_nans_stop_the_run_before_they_reach_the_weights(
    tmp_path: Path, blocks: Blocks, held_out: Blocks, gradients_only: bool
) -> None:
    tiny = BreakingModel(model(0).config)
    tiny.gradients_only = gradients_only
    recorder = Recorder()
    loop = training(tmp_path, blocks, recorder, tiny=tiny, validation=held_out, evaluation={"eval_every": 1})
    with pytest.raises(DivergedError, match=r"Step 4: .*the update was not made") as caught:
        loop.run()
    assert "--learning-rate (it was 0.001)" in caught.value.hint
    assert loop.state.step == 3
    assert same_bits(weights(tiny), recorder.weights[3])
    newest, damaged = newest_valid_checkpoint(RunDirectory(tmp_path))
    assert newest is not None
    assert (newest.name, damaged) == ("step-00000003", [])
    files = [newest / "model.safetensors", newest / "optimizer.safetensors", tmp_path / "model" / "model.safetensors"]
    tensors = [tensor for file in files for tensor in load_file(str(file)).values()]
    assert len(tensors) > 100
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def test_asynchronous_devices_are_not_synchronised_between_log_lines(
    tmp_path: Path, blocks: Blocks, held_out: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for number, devices in enumerate([(), ("cpu",)]):
        monkeypatch.setattr(loop_module, "_ASYNCHRONOUS", devices)
        recorder = Recorder()
        options: dict[str, Any] = {"max_steps": 23, "epochs": 50.0, "evaluation": {"eval_every": 15}}
        loop = training(tmp_path / str(number), blocks, recorder, validation=held_out, **options)
        loop.run()
        ends.append((weights(loop.model), {event.step: event.loss for event in recorder.of("train")}))
    assert same_bits(ends[0][0], ends[1][0])
    assert list(ends[0][1]) == list(range(1, 24))
    assert list(ends[1][1]) == [1, 10, 15, 20, 23]
    assert all(ends[0][1][step] == loss for step, loss in ends[1][1].items())


@pytest.mark.parametrize("gradients_only", [False, True], ids=["loss", "gradients"])
def test_nans_never_reach_the_weights_on_asynchronous_devices(
    tmp_path: Path, blocks: Blocks, gradients_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_ASYNCHRONOUS", ("cpu",))
    options: dict[str, Any] = {"schedule": "constant", "warmup_steps": 0, "epochs": 50.0}
    good = training(tmp_path / "good", blocks, Recorder(), max_steps=3, **options)
    good.run()
    tiny = BreakingModel(model(0).config)
    tiny.load_state_dict(model(0).state_dict())
    tiny.gradients_only = gradients_only
    loop = training(tmp_path / "bad", blocks, Recorder(), tiny=tiny, max_steps=30, **options)
    with pytest.raises(DivergedError, match="shortly before step 6; no later update was made"):
        loop.run()
    assert same_bits(weights(tiny), weights(good.model))
    newest, _ = newest_valid_checkpoint(RunDirectory(tmp_path / "bad"))
    assert newest is not None
    assert newest.name == "step-00000003"  # of the previous epoch


def test_a_base_model_with_nans_is_refused_before_training(tmp_path: Path, blocks: Blocks, held_out: Blocks) -> None:
    tiny = model(0)
    with torch.no_grad():
        tiny.transformer.ln_f.bias[0] = math.nan
    with pytest.raises(DivergedError, match=r"Step 0: the base model's transformer\.ln_f\.bias holds") as caught:
        training(tmp_path, blocks, Recorder(), tiny=tiny, validation=held_out).run()
    assert "base model itself" in caught.value.hint
    assert not RunDirectory(tmp_path).checkpoints.exists()


# Signals and seeds


def test_the_first_signal_requests_a_stop_and_the_old_handlers_are_restored() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        with pytest.raises(Exception, match=r"Stopped by SIGTERM\."):
            stop.check()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_threads_do_not_change_signal_handlers() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def other() -> None:
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.requested))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


@pytest.mark.parametrize("at_once", [False, True])
def test_in_a_library_the_second_signal_raises(at_once: bool) -> None:
    # The process is the kernel of a notebook, so `os._exit` would lose all its data.
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with pytest.raises(KeyboardInterrupt) as caught, StopRequest():  # noqa: PT012
        assert signal.set_wakeup_fd(wakeup) == wakeup, "the wake-up descriptor of the host's event loop does not change"
        try:
            with StopRequest(at_once=at_once) as stop:
                signal.raise_signal(signal.SIGINT)
                assert not at_once, "the first signal stops the work"
                signal.raise_signal(signal.SIGINT)  # within 0.3 s it counts as the same signal
                assert stop.requested == "SIGINT"
        except Stopped:
            assert at_once
        time.sleep(0.35)
        signal.raise_signal(signal.SIGTERM)
    assert (type(caught.value), str(caught.value)) == (KeyboardInterrupt, "SIGTERM")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert StopRequest.requested is None


def test_the_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import signal, time\n"
        "from finetale.signals import StopRequest, ending_the_process\n"
        "with ending_the_process(), StopRequest() as stop:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    signal.raise_signal(signal.SIGHUP)\n"  # a closed terminal sends two signals at once
        "    print('asked', stop.requested, flush=True)\n"
        "    time.sleep(0.4)\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    finally:\n"
        "        print('still here', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False
    )
    assert (done.returncode, done.stdout) == (75, "asked SIGINT\n")


def test_each_micro_batch_has_a_different_seed() -> None:
    drawn = []
    for key in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2**32 - 1, 9, 9, 9)]:
        seed_micro_batch(*key)
        drawn.append(float(torch.rand(1)))
        seed_micro_batch(*key)
        assert float(torch.rand(1)) == drawn[-1]
    assert len(set(drawn)) == 6


# Records


def event(step: int, **values: Any) -> TrainEvent:
    given: dict[str, Any] = {"step": step, "tokens": 10 * step, "loss": 1.0 / (step + 1), "learning_rate": 1e-4}
    return TrainEvent(**given | values)


def test_metrics_have_one_event_per_line_and_resuming_removes_later_lines(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    file = MetricsFile(run.metrics)
    for step in range(5):
        file(event(step))
    assert len(run.read_events()) == 5  # each line is flushed
    file.close()
    assert run.read_events() == [event(step) for step in range(5)]
    resumed = MetricsFile(run.metrics, 2)
    resumed(event(3, loss=9.0))
    resumed.close()
    assert run.read_events() == [event(0), event(1), event(2), event(3, loss=9.0)]
    MetricsFile(run.metrics).close()
    assert run.read_events() == []
    assert RunDirectory(tmp_path / "nowhere").read_events() == []


def test_a_resumed_run_keeps_unknown_events(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"event": "tracker", "step": 1, "url": "x"}\n', '{"event": "tracker", "step": 3}\n', '{"event": "tr']
    path.write_text("".join(lines), encoding="utf-8")
    MetricsFile(path, 2).close()
    assert path.read_text(encoding="utf-8") == lines[0]


def test_a_line_cut_inside_a_character_is_skipped(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    sample = event_line(SampleEvent(step=1, tokens=1, prompt="", text="é"))
    run.metrics.write_bytes(event_line(event(1)).encode() + sample.encode()[: sample.encode().index(b"\xc3") + 1])
    assert run.read_events() == [event(1)]


def test_samples_with_unusual_line_separators_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    file = MetricsFile(run.metrics)
    rows = [
        SampleEvent(step=1, tokens=8, prompt="", text=f"one{separator}two")
        for separator in ("\n", "\r", "\x0b", "\x85", "\u2028", "\u2029")
    ]
    for row in rows:
        file(row)
    file.close()
    assert run.read_events() == rows


def test_tensorboard_has_the_same_numbers_as_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardFile(tmp_path)
    board(event(1, learning_rate=0.5))
    board(event(2))
    board(EvaluationEvent(step=2, tokens=20, loss=0.25, perplexity=4.0, best=True))
    board(SampleEvent(step=2, tokens=20, prompt="Once", text=" upon a time"))
    board(WarningEvent(message="not a number"))
    board.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {
        "train/loss",
        "train/learning_rate",
        "validation/loss",
        "validation/perplexity",
    }
    assert [(item.step, item.value) for item in found.Scalars("train/loss")] == [(1, 0.5), (2, pytest.approx(1 / 3))]
    assert [(item.step, item.value) for item in found.Scalars("validation/perplexity")] == [(2, 4.0)]
    tensor = found.Tensors(found.Tags()["tensors"][0])[0]
    assert (tensor.step, tensor.tensor_proto.string_val[0]) == (2, b"Once upon a time")


def test_steps_and_epochs_are_one_budget() -> None:
    def total(epochs: float | None, max_steps: int | None) -> int:
        return StepBudget(19, 3, epochs, max_steps, None, None).total_steps

    assert total(3.0, None) == 19
    assert total(None, 150) == 150  # as many epochs as needed
    assert (total(3.0, 150), total(3.0, 5)) == (19, 5)
    budget = StepBudget(19, 3, None, 150, None, None)
    seen = Counter(block for step in range(150) for block in budget.blocks_of(step, 0).tolist())
    assert sum(seen.values()) == 450
    assert max(seen.values()) - min(seen.values()) == 1
    assert budget.epoch_at(150) == pytest.approx(450 / 19)
