"""Test that a run evaluates a fixed sample of a large validation text, and that the comparison measures all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from finetale.blocks import pack
from finetale.config import Config
from finetale.pipeline import plan_run, train_run, validation_sample
from finetale.pipeline.validation_sample import choose_eval_tokens, sample_blocks
from finetale.schema import EvaluationEvent, Event, NoteEvent
from finetale.training import StepBudget


def blocks(folder: Path, split: str, documents: int) -> object:
    parts = [tiny.part(tiny.story(number), split=split) for number in range(documents)]
    return pack(tiny.store(folder / f"{split}{documents}", parts), split, 64)


def test_a_sample_is_fixed_and_has_the_requested_size(tmp_path: Path) -> None:
    whole = blocks(tmp_path, "validation", 60)
    for tokens in (1, 100, 3000, whole.num_targets - 1):
        chosen = sample_blocks(whole, tokens)
        assert tokens <= chosen.num_targets < tokens + 64
        assert np.array_equal(chosen.segments, sample_blocks(whole, tokens).segments)
        assert set(chosen.segments.tolist()) <= set(whole.segments.tolist())
        batch = chosen.batch(np.arange(len(chosen)))
        assert int((batch.labels >= 0).sum()) == chosen.num_targets
    assert sample_blocks(whole, None) is whole
    assert sample_blocks(whole, 10**9) is whole


@pytest.mark.parametrize(
    ("epochs", "max_steps", "eval_every", "evaluations"), [(3, None, None, 4), (2, 8, 4, 3), (1, None, 5, None)]
)
def test_all_evaluations_measure_at_most_a_quarter_of_the_trained_tokens(
    epochs: float, max_steps: int | None, eval_every: int | None, evaluations: int | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(validation_sample, "MIN_TOKENS", 64)
    train, validation = blocks(tmp_path, "train", 40), blocks(tmp_path, "validation", 300)
    budget = StepBudget(len(train), 4, epochs, max_steps, eval_every, None)
    tokens = choose_eval_tokens(validation, train, budget)
    assert tokens is not None
    trained = sum(train.targets_in(budget.blocks_of(step, 0)) for step in range(budget.total_steps))
    number = sum(budget.evaluates(step) for step in range(budget.total_steps + 1))
    assert evaluations in (None, number)
    assert 0.22 * trained <= number * tokens <= 0.28 * trained
    assert choose_eval_tokens(blocks(tmp_path, "validation", 1), train, budget) is None or tokens < 130


def test_a_run_reports_the_sample_and_compares_on_the_whole_text(tmp_path: Path) -> None:
    train = tiny.write_stories(tmp_path / "train", 20)
    held_out = tiny.write_stories(tmp_path / "held_out", 40)
    base = tiny.save_model(tmp_path / "base")
    settings = {
        "sources": (str(train),), "validation": (str(held_out),), "model": str(base), "out": tmp_path / "run",
        "eval_tokens": 600, "epochs": 2, "probe": False, "num_prompts": 1, "num_samples": 1, "max_new_tokens": 4,
        "audit_tokens": 0, "cache_dir": tmp_path / "cache", "batch_size": 4,
    }  # fmt: skip
    events: list[Event] = []
    plan = plan_run(Config.resolve(settings), lambda event: None)
    run = train_run(Config.resolve(settings), events.append)
    evaluations = [event for event in events if isinstance(event, EvaluationEvent)]
    assert len(evaluations) == 3
    (sampled,) = {event.sample_tokens for event in evaluations}
    assert sampled is not None
    assert 600 <= sampled < 700
    notes = [event.message for event in events if isinstance(event, NoteEvent) and "sample" in event.message]
    total = plan.data.tokens.validation
    assert notes == [
        f"Each evaluation within the run measures the same sample of {sampled:,} of the {total:,} validation tokens. "
        "The final comparison measures all of them. Change the sample size with --eval-tokens."
    ]
    assert plan.evaluation_seconds == pytest.approx(3 * sampled / plan.evaluation_tokens_per_second, rel=0.01)
    compared = json.loads(run.comparison.read_text(encoding="utf-8"))
    assert compared["after"]["validation"]["tokens"] == total > 5000
    assert f"sample of {sampled} tokens" in run.report.read_text(encoding="utf-8")
    assert "eval_tokens: 600" in run.config.read_text(encoding="utf-8")
