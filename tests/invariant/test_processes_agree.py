"""Two and four processes give the run of one: losses, weights, dropout, adapters, evaluations, skipped updates; and all
stop together when one of them fails."""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_masked_loss import build_conversations

from finetale import models
from finetale.blocks import Blocks, pack
from finetale.config import Config
from finetale.models import adapters
from finetale.ranks import Ranks
from finetale.rundir import RunDirectory
from finetale.tokens import open_store
from finetale.training import loop, newest_valid_checkpoint
from loops import sped_up, train, weights
from processes import failures, together
from tiny import model, part, store, story

# The last step of 2.6 epochs has fewer blocks than there are processes. The gradient of a key's bias is rounding error
# alone, because attention does not depend on it; a large epsilon keeps Adam from making steps of it.
CASES: dict[str, dict[str, Any]] = {
    "one pass": {},
    "accumulation": {"micro_batch_size": 1, "batch_size": 6},
    "ragged passes": {"micro_batch_size": 3, "batch_size": 7},
    "dropout": {"micro_batch_size": 1, "dropout": 0.2},
    "recomputed": {"gradient_checkpointing": True},
    "moments in bf16": {"optimizer_state": "bf16"},
    "frozen": {"frozen": True},
    "adapter": {"method": "lora", "micro_batch_size": 2},
    "adapter with dropout": {"method": "dora", "lora_dropout": 0.1, "micro_batch_size": 1},
    "speed layer": {"speed": True},
    "masked": {"masked": True},
    "patience": {"patience": 2, "learning_rate": 0.03, "epochs": 8.0, "eval_every": 1},
    "a step without update": {"skip_updates": 3, "epochs": 20.0, "jump": True},
}
SHARDED = {2: list(CASES), 4: ["one pass", "ragged passes"]}
"""Cases that are also trained with divided weights, by the number of processes."""


class Watched(Blocks):
    """Blocks that call a function with the number of the step and its targets, and take the targets that it returns."""

    @classmethod
    def of(cls, blocks: Blocks, call: Callable[[int, int], int]) -> Watched:
        values = {field.name: getattr(blocks, field.name) for field in fields(blocks)}
        watched = cls(**values)
        object.__setattr__(watched, "call", call)
        object.__setattr__(watched, "steps", itertools.count(1))
        return watched

    def targets_in(self, blocks: Any) -> int:
        return self.call(next(self.steps), super().targets_in(blocks))  # type: ignore[attr-defined,no-any-return]


def carry_out(ranks: Ranks, folder: Path) -> None:
    """Train every case. The main process writes what the run reported, and every process its weights."""
    blocks = pack(open_store(folder / "store"), "train", 64)
    masked = pack(open_store(folder / "store-answers"), "train", 64)
    held_out = pack(open_store(folder / "store"), "validation", 64)
    cases = CASES | {f"{name}, sharded": CASES[name] | {"shard": True} for name in SHARDED.get(ranks.world, ())}
    for name, case in cases.items():
        options = dict(case)
        tiny: Any = model(3, dropout=options.pop("dropout", 0.0))
        if "method" in options:
            method = {"method": options.pop("method"), "lora_dropout": options.pop("lora_dropout", 0.0), "lora_rank": 4}
            adapters.attach(tiny, Config.resolve(method), seed=ranks.rank)
        if options.pop("frozen", False):
            models.freeze(tiny, 1)
        if options.pop("speed", False):
            sped_up(tiny)
        if ranks.rank:  # the weights of the main process count
            with torch.no_grad():
                for parameter in tiny.parameters():
                    parameter.add_(1)
        out = folder / str(ranks.world) / name.replace(" ", "-")
        out.mkdir(parents=True, exist_ok=True)
        rows: list[Any] = []
        chosen = masked if options.pop("masked", False) else blocks
        if options.pop("jump", False):
            chosen = Watched.of(blocks, lambda step, targets: targets // 10 if step == 22 else targets)
        training = train(
            out,
            chosen,
            validation=held_out,
            tiny=tiny,
            listeners=(rows.append,),
            ranks=ranks,
            **({"adam_epsilon": 1e-4, "epochs": 2.6} | options),
        )
        if ranks.is_main:
            (out / "rows.json").write_text(json.dumps([row.to_dict() for row in rows]))
        with training._weights.whole() as whole:
            torch.save(weights(whole), out / f"weights-{ranks.rank}.pt")


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=f"{name} differs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of one, two and four processes."""
    folder = tmp_path_factory.mktemp("processes")
    texts = [part(story(number, words=60 + 40 * (number % 3)), "train") for number in range(5)]
    store(folder, [*texts, *(part(story(number, 60), "validation") for number in range(20, 26))])
    build_conversations(folder)
    for world in (1, 2, 4):
        assert together(world, carry_out, folder) == [0] * world, failures(folder, world)
    return folder


@pytest.mark.parametrize(
    ("world", "case", "shared_case"),
    [
        (world, case.replace(" ", "-"), f"{case}{kind}".replace(" ", "-"))
        for world in (2, 4)
        for kind in ("", ", sharded")
        for case in (SHARDED[world] if kind else CASES)
    ],
)
def test_several_processes_equal_one(folder: Path, world: int, case: str, shared_case: str) -> None:
    def place(number: int) -> Path:
        return folder / str(number) / (case if number == 1 else shared_case)

    def steps(number: int, event: str, *names: str) -> list[list[Any]]:
        rows = json.loads((place(number) / "rows.json").read_text())
        return [[row[name] for name in names] for row in rows if row["event"] == event]

    alone, shared = (steps(number, "train", "loss", "grad_norm", "tokens") for number in (1, world))
    assert len(alone) >= 4
    np.testing.assert_allclose(shared, alone, rtol=1e-6 if case != "moments-in-bf16" else 1e-3)
    alone, shared = (steps(number, "evaluation", "loss", "best", "step") for number in (1, world))
    np.testing.assert_allclose(shared, alone, rtol=1e-6 if case != "moments-in-bf16" else 1e-3)
    for event in ("warning", "stopped", "checkpoint"):
        assert [row[:1] for row in steps(world, event, "step")] == [row[:1] for row in steps(1, event, "step")]
    if case == "patience":
        assert len(steps(world, "stopped", "message")) == 1
    if case == "a-step-without-update":
        assert "updates skipped: 1" in steps(world, "warning", "message")[0][0]
    main, *others = (torch.load(place(world) / f"weights-{rank}.pt") for rank in range(world))
    for other in others:
        close(other, main, 0)
    if case != "moments-in-bf16":
        close(main, torch.load(place(1) / "weights-0.pt"), 1e-5)


def test_the_case_is_ragged(folder: Path) -> None:
    left = round(2.6 * len(blocks_of(folder))) % 8
    assert 0 < left < 4, f"the last of the steps of 8 blocks has {left}, so every one of four processes has a block"


# -- failures


def blocks_of(folder: Path) -> Blocks:
    return pack(open_store(folder / "store"), "train", 64)


EITHER = pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    store(tmp_path, [story(number, 120) for number in range(8)])
    return tmp_path


def without_memory(ranks: Ranks, folder: Path) -> None:
    """Let memory run out in the last process whenever it takes more than one block."""

    class Small(Blocks):
        def batch(self, chosen: Any) -> Any:
            if len(chosen) > 1 and ranks.rank == ranks.world - 1:
                raise MemoryError
            return super().batch(chosen)

    blocks = blocks_of(folder)
    small = Small(**{field.name: getattr(blocks, field.name) for field in fields(blocks)})
    rows: list[Any] = []
    training = train(folder / "run", small, ranks=ranks, listeners=(rows.append,), micro_batch_size=4)
    assert training.state.micro_batch_size == 1
    if ranks.is_main:
        losses = [row.loss for row in rows if row.event == "train"]
        alone = train(folder / "alone", blocks_of(folder), listeners=(rows.append,))
        assert len(losses) == alone.state.step
        np.testing.assert_allclose(losses, [row.loss for row in rows if row.event == "train"][len(losses) :], rtol=1e-6)


def test_memory_that_runs_out_in_one_process_halves_the_passes_of_all(stored: Path) -> None:
    assert together(2, without_memory, stored) == [0, 0], failures(stored, 2)


def short_of_memory(ranks: Ranks, folder: Path) -> None:
    """Let memory run out in the last process, whose weights the others wait for."""

    class Small(Blocks):
        def batch(self, chosen: Any) -> Any:
            if ranks.rank == ranks.world - 1:
                raise MemoryError
            return super().batch(chosen)

    blocks = blocks_of(folder)
    small = Small(**{field.name: getattr(blocks, field.name) for field in fields(blocks)})
    train(folder / "run", small, ranks=ranks, shard=True)


def test_memory_that_runs_out_where_weights_are_divided_ends_all(stored: Path) -> None:
    assert together(2, short_of_memory, stored, seconds=60) == [1, 1]
    first, second = failures(stored, 2)
    assert first.startswith("RankError: Another process of this run has ended")
    assert second.startswith("RankError: A step failed in process 2 of 2: memory ran out")


def stopped(shard: bool, ranks: Ranks, folder: Path) -> None:
    """Send a signal to the last process in its third step."""

    def call(step: int, targets: int) -> int:
        if step == 3 and ranks.rank == ranks.world - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return targets

    blocks = Watched.of(blocks_of(folder), call)
    train(folder / "run", blocks, ranks=ranks, epochs=8.0, micro_batch_size=2, shard=shard)


@EITHER
def test_a_signal_to_one_process_stops_all_and_the_run_is_saved(stored: Path, shard: bool) -> None:
    assert together(4, functools.partial(stopped, shard), stored) == [1] * 4
    messages = failures(stored, 4)
    assert all(message.startswith("InterruptedRun: Stopped by SIGTERM. 2 of ") for message in messages), messages
    path, _ = newest_valid_checkpoint(RunDirectory(stored / "run"))
    assert path is not None
    assert path.name == "step-00000002"


def broken(shard: bool, ranks: Ranks, folder: Path) -> None:
    """Give the last process a weight that is not a number."""
    tiny = model(3)

    def call(step: int, targets: int) -> int:
        if ranks.rank == ranks.world - 1:
            with torch.no_grad():
                tiny.get_input_embeddings().weight.fill_(float("nan"))  # type: ignore[union-attr]
        return targets

    blocks = Watched.of(blocks_of(folder), call)
    train(folder / "run", blocks, ranks=ranks, tiny=tiny, shard=shard)


@EITHER
def test_a_nan_in_one_process_ends_all(stored: Path, shard: bool) -> None:
    assert together(2, functools.partial(broken, shard), stored) == [1, 1]
    assert all(message.startswith("DivergedError: Step 1: ") for message in failures(stored, 2)), failures(stored, 2)


def without_disk(shard: bool, ranks: Ranks, folder: Path) -> None:
    """Let the main process find no place for the first checkpoint."""

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    loop.save_checkpoint = full  # type: ignore[assignment]
    train(folder / "run", blocks_of(folder), ranks=ranks, shard=shard)


@EITHER
def test_a_full_disk_of_the_main_process_ends_all_with_its_sentence(stored: Path, shard: bool) -> None:
    assert together(2, functools.partial(without_disk, shard), stored) == [1, 1]
    first, second = failures(stored, 2)
    assert first.startswith("RunError: ")
    assert "No space left on device" in first
    assert second.startswith("RankError: Process 1 of 2 failed: ")
    assert "No space left on device" in second


def killed(shard: bool, ranks: Ranks, folder: Path) -> None:
    """End the last process in its third step, as SIGKILL does."""

    def call(step: int, targets: int) -> int:
        if step == 3 and ranks.rank == ranks.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return targets

    blocks = Watched.of(blocks_of(folder), call)
    train(folder / "run", blocks, ranks=ranks, epochs=8.0, shard=shard)


@EITHER
def test_a_killed_process_does_not_let_the_others_wait(stored: Path, shard: bool) -> None:
    assert together(4, functools.partial(killed, shard), stored, seconds=60) == [1, 1, 1, -signal.SIGKILL]
    messages = failures(stored, 3)
    assert all(message.startswith("RankError: Another process of this run has ended") for message in messages), messages
