"""Test pairs of configurations that must agree: packing, micro-batches, the Trainer, resuming, seeds.

On a CPU the weights are equal to the bit. On a GPU the kernels of attention and embedding add in an order that varies.
There `bound` states the relative difference that is allowed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from finetale.blocks import IGNORE, pack, windows
from finetale.config import TrainSettings
from finetale.errors import InterruptedRun
from finetale.forward import PackedForward, Route
from finetale.metrics import measure
from finetale.rundir import RunDirectory
from finetale.schema import Event
from finetale.tokens import TokenStore
from finetale.training import MetricsFile, StepBudget, newest_valid_checkpoint
from loops import SETTINGS, losses_of, same_weights, sped_up, train, weights
from tiny import DEVICE, bound, model, store, story


@pytest.fixture
def texts() -> list[str]:
    return [story(number, words=20 + 11 * number % 170) for number in range(40)]


@pytest.fixture
def stored(tmp_path: Path, texts: list[str]) -> TokenStore:
    return store(tmp_path, texts)


@pytest.mark.parametrize("isolation", ["restarting positions", "explicit mask", "one row per document"])
def test_packed_loss_equals_the_loss_of_single_documents(stored: TokenStore, isolation: str) -> None:
    tiny = model(1)
    packed = measure(PackedForward(tiny, route=Route(isolation)), pack(stored, "train", 64, fill=False), batch_size=3)
    alone = []
    for row in stored.parts:
        ids = torch.tensor(np.asarray(stored.tokens[row["start"] : row["start"] + row["targets"] + 1], np.int64)).to(
            DEVICE
        )
        total = 0.0
        for at in range(0, len(ids) - 1, 64):
            piece = ids[at : at + 65]
            with torch.inference_mode():
                logits = tiny(piece[None, :-1]).logits[0]
            total += float(F.cross_entropy(logits.double(), piece[1:], reduction="sum"))
        alone.append(total)
    assert len(alone) == 40
    np.testing.assert_allclose(packed.nats, alone, rtol=bound(1e-5, 1e-4))


def test_filled_blocks_lose_no_target(stored: TokenStore) -> None:
    whole, filled = pack(stored, "train", 64), pack(stored, "train", 64, fill=True)
    assert whole.num_targets == filled.num_targets == stored.account["tokens"]["trained"]
    assert len(filled) <= len(whole)


def test_sliding_windows_count_the_same_targets(stored: TokenStore) -> None:
    forward = PackedForward(model(1))
    plain, sliding = measure(forward, pack(stored, "train", 64)), measure(forward, windows(stored, "train", 64, 8))
    assert plain.tokens.sum() == sliding.tokens.sum() == stored.account["tokens"]["trained"]
    short = plain.tokens <= 64  # documents within one block have the same context in both
    assert 5 <= short.sum() <= 35
    np.testing.assert_allclose(sliding.nats[short], plain.nats[short], rtol=1e-5)
    assert np.abs(sliding.nats[~short] - plain.nats[~short]).max() > 0.01


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_micro_batches_do_not_change_the_run(tmp_path: Path, stored: TokenStore, micro_batch_size: int) -> None:
    blocks = pack(stored, "train", 64)  # blocks with unequal numbers of targets
    whole = losses_of(tmp_path / "a", blocks)
    cut = losses_of(tmp_path / "b", blocks, micro_batch_size=micro_batch_size)
    assert len(whole) == len(cut) >= 10
    np.testing.assert_allclose(cut, whole, rtol=bound(1e-4, 1e-3))


def test_losses_equal_those_of_the_transformers_trainer(tmp_path: Path, stored: TokenStore) -> None:
    """Train 20 steps on the same blocks without dropout. Position ids separate the documents."""
    blocks = pack(stored, "train", 64, fill=True)
    steps, size = 20, 4
    budget = StepBudget(len(blocks), size, 100.0, steps, None, None)
    ours = losses_of(
        tmp_path / "ours",
        blocks,
        batch_size=size,
        micro_batch_size=size,
        epochs=100.0,
        max_steps=steps,
        weight_decay=0.1,
    )
    rows = []
    for step in range(steps):
        chosen = budget.blocks_of(step, seed=0)
        for block in chosen:
            batch = blocks.batch(np.array([block]))
            rows.append({"input_ids": batch.inputs[0], "position_ids": batch.positions[0], "labels": batch.labels[0]})

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)  # type: ignore[arg-type]

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        # The labels are already shifted; the loss of the model would shift them again.
        return F.cross_entropy(outputs.logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "theirs"),
        per_device_train_batch_size=size,
        max_steps=steps,
        learning_rate=SETTINGS["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.1,
        adam_beta2=TrainSettings().adam_beta2,
        max_grad_norm=1.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=DEVICE.type == "cpu",
        remove_unused_columns=False,
        optim="adamw_torch",
    )
    trainer = InOrder(model=model(3), args=arguments, train_dataset=rows, compute_loss_func=loss)  # type: ignore[arg-type]
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(ours) == len(theirs) == steps
    assert max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True)) <= bound(1e-4, 1e-3)
    assert ours[-1] < ours[0] - 0.1


class StopAfter:
    """A listener that sends SIGINT (Ctrl-C) after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, event: Event) -> None:
        if event.event == "train" and event.step == self.steps:
            import signal

            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("stop_after", "fast"), [(1, False), (4, False), (7, False), (8, False), (4, True), (7, True)])
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, stored: TokenStore, stop_after: int, fast: bool
) -> None:
    def start(seed: int) -> torch.nn.Module:
        # The kernel for packed documents on a GPU has no dropout.
        tiny = model(seed, dropout=0.2, attention_dropout=0.0 if fast and DEVICE.type == "cuda" else None)
        return sped_up(tiny, "bf16") if fast else tiny

    blocks, held = pack(stored, "train", 64, fill=True), pack(stored, "train", 64)
    options: dict[str, Any] = {
        "validation": held,
        "epochs": 2.0,
        "eval_every": 4,
        "micro_batch_size": 3,
        "precision": "bf16" if fast else "fp32",
        "optimizer_state": "bf16" if fast else "fp32",
    }
    whole = tmp_path / "whole"
    whole.mkdir()
    file = MetricsFile(whole / "metrics.jsonl")
    finished = train(whole, blocks, listeners=(file,), tiny=start(3), **options)
    file.close()

    stopped = tmp_path / "stopped"
    stopped.mkdir()
    file = MetricsFile(stopped / "metrics.jsonl")
    with pytest.raises(InterruptedRun, match="SIGINT"):
        train(stopped, blocks, listeners=(file, StopAfter(stop_after)), tiny=start(3), **options)
    file.close()
    checkpoint, damaged = newest_valid_checkpoint(RunDirectory(stopped))
    assert checkpoint is not None
    assert damaged == []
    assert checkpoint.name == f"step-{stop_after:08d}"
    file = MetricsFile(stopped / "metrics.jsonl", stop_after)
    resumed = train(stopped, blocks, listeners=(file,), checkpoint=checkpoint, tiny=start(99), **options)
    file.close()
    assert same_weights(weights(finished.model), weights(resumed.model))
    assert finished.state.best_loss == pytest.approx(resumed.state.best_loss, rel=bound(0, 1e-3), abs=0)

    def figures(folder: Path) -> tuple[list[tuple[str, int]], list[float]]:
        rows = [event.to_dict() for event in RunDirectory(folder).read_events()]
        rows = [row for row in rows if row["event"] in ("train", "evaluation")]
        return [(row["event"], row["step"]) for row in rows], [row["loss"] for row in rows]

    (events, losses), (events_stopped, losses_stopped) = figures(whole), figures(stopped)
    assert events == events_stopped
    np.testing.assert_allclose(losses_stopped, losses, rtol=bound(0, 1e-3))
    assert len(events) > finished.budget.total_steps


def test_the_speed_layer_does_not_change_the_run(tmp_path: Path, stored: TokenStore) -> None:
    """Compare the losses of 20 steps in fp32."""
    blocks = pack(stored, "train", 64, fill=True)
    fast = losses_of(tmp_path / "fast", blocks, tiny=sped_up(model(3)), max_steps=20, epochs=20.0)
    plain = losses_of(tmp_path / "plain", blocks, tiny=model(3), max_steps=20, epochs=20.0)
    assert len(fast) == len(plain) == 20
    assert plain[-1] < plain[0] - 0.1
    np.testing.assert_allclose(fast, plain, rtol=bound(1e-5, 1e-3))


@pytest.mark.parametrize("half", [{"precision": "bf16"}, {"precision": "fp32", "optimizer_state": "bf16"}])
def test_bf16_ends_within_half_a_percent_of_fp32(tmp_path: Path, stored: TokenStore, half: dict[str, str]) -> None:
    """Compare the held-out loss after 60 steps with the speed layer. The loss must fall by more than a quarter."""
    blocks = pack(stored, "train", 64, fill=True)
    held = pack(store(tmp_path / "held", [story(number, words=60) for number in range(100, 110)]), "train", 64)
    final, first = [], 0.0
    for number, settings in enumerate(({"precision": "fp32"}, half)):
        rows: list[Any] = []
        options: dict[str, Any] = {**settings, "epochs": 50.0, "max_steps": 60}
        train(
            tmp_path / str(number),
            blocks,
            validation=held,
            listeners=(rows.append,),
            tiny=sped_up(model(3), settings["precision"]),
            **options,
        )
        measured = [row.loss for row in rows if row.event == "evaluation"]
        first = measured[0]
        final.append(measured[-1])
    assert final[0] < 0.75 * first
    assert final[0] != final[1]
    assert final[1] == pytest.approx(final[0], rel=0.005)


def test_weights_depend_only_on_the_seed(tmp_path: Path, stored: TokenStore) -> None:
    blocks = pack(stored, "train", 64, fill=True)
    runs = [
        weights(train(tmp_path / str(number), blocks, dropout=0.1, seed=seed, max_steps=5).model)
        for number, seed in enumerate((7, 7, 8))
    ]
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


def test_gradient_checkpointing_gives_the_same_losses(tmp_path: Path, stored: TokenStore) -> None:
    blocks = pack(stored, "train", 64, fill=True)
    plain = losses_of(tmp_path / "a", blocks, dropout=0.1, max_steps=4)
    checkpointed = losses_of(tmp_path / "b", blocks, dropout=0.1, max_steps=4, gradient_checkpointing=True)
    assert len(plain) == 4
    np.testing.assert_allclose(plain, checkpointed, rtol=bound(1e-5, 1e-3))


def test_losses_do_not_depend_on_the_batch_size(stored: TokenStore) -> None:
    forward = PackedForward(model(1))
    blocks = pack(stored, "train", 64)
    measured = [measure(forward, blocks, batch_size=size) for size in (1, 5, 64)]
    for other in measured[1:]:
        assert other.loss == pytest.approx(measured[0].loss, rel=bound(1e-6, 1e-5))
    assert math.isclose(measured[0].bytes.sum(), sum(int(b) for b in stored.parts["bytes"]))
