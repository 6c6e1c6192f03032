"""Test that the probe keeps only clearly faster settings, respects its time limit, and does not change the model."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetale import speed
from finetale.blocks import Blocks, pack
from finetale.training import Choice, measure_choice, probe
from tiny import model, part, store, story

probing = importlib.import_module("finetale.training.probe")  # the function hides the module of the same name

START = Choice("bf16", "documents", 4, "off", 2)
ALL = frozenset({"precision", "attention", "micro_batch_size", "compile", "threads"})
LONG = 10_000_000


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    return pack(store(tmp_path, [story(number) for number in range(12)]), "train", 64, fill=True)


class Machine:
    """A fake measurement: a function gives the speed of each choice, and each call advances a fake clock by 1 s."""

    def __init__(self, rate: Callable[[Choice], float], seconds: float = 1.0) -> None:
        self.rate, self.seconds = rate, seconds
        self.now = 0.0
        self.asked: list[Choice] = []

    def measure(self, model: Any, blocks: Blocks, choice: Choice) -> Any:
        self.asked.append(choice)
        self.now += self.seconds
        return probing.Trial(choice, self.rate(choice))

    def perf_counter(self) -> float:
        return self.now


def run(
    blocks: Blocks,
    monkeypatch: pytest.MonkeyPatch,
    rate: Callable[[Choice], float],
    *,
    free: frozenset[str] = ALL,
    targets: int = LONG,
    seconds: float = 1.0,
    physical: int = 1,
) -> tuple[Any, Machine]:
    machine = Machine(rate, seconds)
    monkeypatch.setattr(probing, "measure_choice", machine.measure)
    monkeypatch.setattr(probing, "time", machine)
    monkeypatch.setattr(probing, "num_physical_cores", lambda: physical)
    found = probe(speed.apply(model(0)), blocks, START, free, targets, max_sequences=8)
    return found, machine


def test_clearly_faster_settings_are_kept(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"fp32": 0.3, "bf16": 1.0, "model": 1.3, "documents": 1.0}

    def rate(choice: Choice) -> float:
        threads = 1.5 if choice.threads == 1 else 1.0
        return 1000 * rates[choice.precision] * rates[choice.attention] * choice.micro_batch_size**0.5 * threads

    found, machine = run(blocks, monkeypatch, rate)
    assert found.best == Choice("bf16", "model", 8, "off", 1)
    assert found.skipped is None
    assert found.left_out == 0
    assert [trial.choice for trial in found.trials] == [
        START,
        Choice("fp32", "documents", 4, "off", 2),
        Choice("bf16", "model", 4, "off", 2),
        Choice("bf16", "model", 2, "off", 2),
        Choice("bf16", "model", 8, "off", 2),
        Choice("bf16", "model", 8, "off", 1),
    ]
    assert len(machine.asked) == 6 + 2 * 3  # three changes were measured a second time
    assert found.to_dict()["chosen"] == found.best.to_dict()


def test_a_little_faster_is_not_enough(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = run(blocks, monkeypatch, lambda choice: 1000.0 if choice == START else 1090.0)
    assert found.best == START
    assert len(found.trials) == 6


def test_a_setting_that_is_faster_only_once_is_not_kept(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[Choice] = set()

    def rate(choice: Choice) -> float:
        first = choice not in seen
        seen.add(choice)
        return 1500.0 if first and choice != START else 1000.0

    found, machine = run(blocks, monkeypatch, rate)
    assert found.best == START
    assert len(machine.asked) == 1 + 5 * 3


def test_settings_given_by_the_user_are_not_changed(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = run(
        blocks, monkeypatch, lambda choice: 2000.0 if choice != START else 1000.0, free=frozenset({"threads"})
    )
    assert found.best == Choice("bf16", "documents", 4, "off", 1)
    found, machine = run(blocks, monkeypatch, lambda choice: 1000.0, free=frozenset())
    assert (found.best, found.skipped, machine.asked) == (START, "there is nothing to choose from", [])


def test_short_runs_are_not_probed(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    found, machine = run(blocks, monkeypatch, lambda choice: 1000.0, targets=64 * 4 * 20)
    assert (found.best, found.skipped, machine.asked) == (START, "the run is very short", [])
    found, machine = run(blocks, monkeypatch, lambda choice: 1000.0, targets=119_000)  # 119 seconds
    assert (found.best, found.skipped, machine.asked) == (START, "the run is very short", [START])
    found, machine = run(blocks, monkeypatch, lambda choice: 1000.0, targets=121_000)
    assert found.skipped is None
    assert len(machine.asked) > 1


@pytest.mark.parametrize("seconds", [1.0, 4.0, 9.0, 30.0])
def test_the_probe_takes_a_limited_share_of_the_run(
    blocks: Blocks, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    expected = 200.0
    rate = 4 * 4 * 64 / seconds  # seconds of a measurement of the initial settings
    found, machine = run(
        blocks,
        monkeypatch,
        lambda choice: rate * (1 if choice == START else 0.9),
        targets=int(expected * rate),
        seconds=seconds,
    )
    if found.skipped is None:
        assert found.left_out + len(found.trials) == 6
        assert machine.now <= max(0.1 * expected, seconds)


def test_a_failing_setting_is_reported_and_not_kept(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = speed.apply(model(0))

    def broken(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("no kernel for this\nmore")

    monkeypatch.setattr(probing.PackedForward, "loss", broken)
    trial = measure_choice(tiny, blocks, START)
    assert (trial.tokens_per_second, trial.error) == (0.0, "no kernel for this")
    assert trial.to_dict()["error"] == "no kernel for this"
    found = probe(tiny, blocks, START, ALL, LONG, max_sequences=8)
    assert (found.best, found.skipped) == (START, "no kernel for this")


def test_the_speed_on_examples_is_that_of_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first blocks of examples may hold much more or much less to learn than the rest."""
    texts = [replace(part(story(n)), context=((0, len(story(n)) - (400 if n < 3 else 20)),)) for n in range(24)]
    blocks = pack(store(tmp_path, texts), "train", 64, fill=True)
    assert blocks.learned[:4].mean() > 2 * blocks.mean_targets
    assert blocks.mean_targets < 0.5 * 64
    machine = Machine(lambda choice: 0)
    monkeypatch.setattr(machine, "perf_counter", lambda: next(seconds))
    seconds = iter(range(1000))
    monkeypatch.setattr(probing, "time", machine)
    trial = measure_choice(speed.apply(model(0)), blocks, START)
    assert trial.tokens_per_second == pytest.approx(4 * blocks.num_targets / len(blocks)), "a pass of 4 blocks took 1 s"


def test_measuring_does_not_change_the_model(blocks: Blocks) -> None:
    tiny = speed.apply(model(0, dropout=0.1))
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    found = probe(tiny, blocks, START, ALL, LONG, max_sequences=8)
    assert all(trial.tokens_per_second > 0 for trial in found.trials)
    assert len(found.trials) >= 4
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert speed.packs_documents(tiny)
    assert not tiny.training
    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
