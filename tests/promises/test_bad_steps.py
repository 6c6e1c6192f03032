"""Test that a step with a NaN, infinite or suddenly high loss changes no weight, and that no NaN is saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

import loops
from finetale import models
from finetale.blocks import Blocks, pack
from finetale.config import Config, EvaluationSettings, TrainSettings
from finetale.errors import DivergedError
from finetale.rundir import RunDirectory
from finetale.training import StepBudget, Training
from finetale.training.checkpoints import TrainState, save_checkpoint
from finetale.training.divergence import HISTORY, jump, not_finite
from finetale.training.optimizer import build_optimizer
from tiny import model, part, save_model, store, story, tokenizer


class Unstable(GPT2LMHeadModel):
    """A GPT-2 that multiplies its logits by `factor` in some training steps (counted from 1)."""

    bad_steps: tuple[int, ...] = ()
    factor = math.nan
    calls = 0

    def forward(self, *args: Any, **options: Any) -> Any:
        found = super().forward(*args, **options)
        if self.training:
            self.calls += 1
            if self.calls in self.bad_steps:
                found.logits = found.logits * self.factor
        return found


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    parts = [part(story(number, 16)) for number in range(24)]
    return pack(store(tmp_path_factory.mktemp("stored"), parts), "train", 32, fill=True)


def train(folder: Path, blocks: Blocks, broken: tuple[int, ...], factor: float = math.nan, **values: Any) -> Any:
    """Prepare 40 steps of one micro-batch each. Return the loop, its events and the weights after each step."""
    tiny = Unstable(model(0).config)
    tiny.load_state_dict(model(0).state_dict())
    tiny.bad_steps, tiny.factor = broken, factor
    settings = {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32", "warmup_steps": 0}
    events: list[Any] = []
    seen: dict[int, list[torch.Tensor]] = {}

    def listen(event: Any) -> None:
        events.append(event)
        if event.event == "train":
            seen[event.step] = [p.detach().clone() for p in tiny.parameters()]

    loop = Training(
        model=tiny,
        tokenizer=tokenizer(),
        train_blocks=blocks,
        validation_blocks=None,
        settings=TrainSettings.resolve(settings | values),
        evaluation=EvaluationSettings.resolve({"save_every": 5}),
        directory=RunDirectory(folder),
        budget=StepBudget(len(blocks), 4, 100.0, 40, None, 5),
        precision="fp32",
        listeners=[listen],
    )
    return loop, events, seen


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def saved_tensors(folder: Path) -> list[torch.Tensor]:
    return [tensor for file in folder.rglob("*.safetensors") for tensor in load_file(str(file)).values()]


def test_jumps_are_skipped_and_reported_then_the_run_stops(tmp_path: Path, blocks: Blocks) -> None:
    what = "the loss jumped to"
    loop, events, seen = train(tmp_path, blocks, (25, 28, 31), 60.0, skip_updates=2)
    with pytest.raises(DivergedError, match=f"Step 31: {what}") as caught:
        loop.run()
    warnings = [event.message for event in events if event.event == "warning"]
    assert len(warnings) == 2
    for step, line in zip((25, 28), warnings, strict=True):
        assert line.startswith(f"Step {step}: {what}")
        named = blocks.names_in(loop.budget.blocks_of(step - 1, loop.settings.seed))
        assert named.startswith("made-up:1")
        assert f"Its documents: {named}." in line
    assert "Updates skipped before: 2" in caught.value.message
    for step in (25, 28):
        assert same(seen[step - 1], seen[step])
        assert not same(seen[step], seen[step + 1])
    assert loop.state.step == 30
    tensors = saved_tensors(tmp_path)
    assert len(tensors) > 100
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


@pytest.mark.parametrize(("factor", "what"), [(math.nan, "the loss is nan"), (60.0, "the loss jumped to")])
def test_without_skipped_updates_the_first_bad_step_stops_the_run(
    tmp_path: Path, blocks: Blocks, factor: float, what: str
) -> None:
    """Steps whose loss is not finite are never skipped."""
    loop, events, _ = train(tmp_path, blocks, (25,), factor, skip_updates=9 if math.isnan(factor) else 0)
    with pytest.raises(DivergedError, match=rf"Step 25: {what} .* the update was not made\. Its documents: made-up:1"):
        loop.run()
    assert [event for event in events if event.event == "warning"] == []


def test_a_run_without_bad_steps_skips_none(tmp_path: Path, blocks: Blocks) -> None:
    loop, events, _ = train(tmp_path, blocks, ())
    loop.run()
    assert loop.state.skipped == 0
    assert len(loop.state.recent) == HISTORY
    assert [event for event in events if event.event == "warning"] == []


def test_a_loss_far_above_the_recent_ones_counts_as_a_jump() -> None:
    calm = [3.0, 3.2] * 10
    assert jump(5.0, calm) is None
    assert jump(5.2, calm) is not None  # 2 nats above 3.1
    assert jump(5.2, calm[1:]) is None  # too little history
    wild = [2.0, 4.0] * 10  # standard deviation 1
    assert jump(8.9, wild) is None
    assert jump(9.1, wild) is not None
    assert not_finite(math.inf, 1.0) is not None
    assert not_finite(3.0, math.nan) is not None
    assert not_finite(3.0, 1.0) is None


def test_no_nan_is_saved(tmp_path: Path) -> None:
    tiny = model(0)
    run = RunDirectory(tmp_path)
    optimizer = build_optimizer(tiny, TrainSettings.resolve({"learning_rate": 1e-3}))
    with torch.no_grad():
        tiny.transformer.wpe.weight[3, 3] = math.inf
    with pytest.raises(
        DivergedError, match=r"Step 0: the base model's transformer\.wpe\.weight holds numbers that are not finite"
    ):
        save_checkpoint(run, TrainState(), tiny, tokenizer(), loops.moments(tiny, optimizer), 2)
    assert not list(run.checkpoints.glob("*"))
    with torch.no_grad():
        tiny.transformer.wpe.weight[3, 3] = 3e38  # large, but finite, also when summed
        tiny.transformer.wpe.weight[4, 4] = 3e38
    save_checkpoint(run, TrainState(), tiny, tokenizer(), loops.moments(tiny, optimizer), 2)


def test_no_nan_of_an_adapter_is_saved(tmp_path: Path) -> None:
    loaded = models.load(str(save_model(tmp_path / "base")))
    assert loaded.located is not None
    adapted = models.AdaptedBase(loaded.located, loaded.provenance)
    models.adapters.attach(loaded.model, Config.resolve({"method": "lora", "lora_rank": 2}), seed=0)
    optimizer = build_optimizer(loaded.model, TrainSettings.resolve({"learning_rate": 1e-3}))
    run = RunDirectory(tmp_path / "run")

    def save() -> None:
        save_checkpoint(
            run,
            TrainState(step=3),
            loaded.model,
            loaded.tokenizer,
            loops.moments(loaded.model, optimizer),
            2,
            adapted=adapted,
        )

    matrix = loaded.model.transformer.h[1].mlp.c_fc.lora_B["default"].weight
    with torch.no_grad():
        matrix[3, 1] = math.nan
    with pytest.raises(
        DivergedError, match=r"After step 3, .*h\.1\.mlp\.c_fc\.lora_B.* holds numbers that are not finite"
    ):
        save()
    assert not list(run.checkpoints.glob("*"))
    with torch.no_grad():
        matrix[3, 1] = 3e38
    save()
    assert len(list(run.checkpoints.glob("*"))) == 1
