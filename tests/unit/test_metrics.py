"""Test the metrics: sums divided by counts, and their intervals."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetale import metrics
from finetale.blocks import IGNORE, Batch, Blocks, pack
from finetale.metrics import (
    MIN_DOCUMENTS,
    Floats,
    Measurement,
    degrees_of_freedom,
    measure,
    perplexity,
    ratio_interval,
    t_quantile,
)
from finetale.ranks import Ranks
from finetale.tokens import TokenStore
from tiny import part, store, story


class CountedForward:
    """A fake forward pass. The loss of a target is its id / 100."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(1, 1).train()
        self.batches = 0

    def token_losses(self, batch: Batch) -> torch.Tensor:
        assert not self.model.training
        self.batches += 1
        labels = torch.from_numpy(batch.labels)
        return torch.where(labels == IGNORE, 0.0, labels / 100)


def counted(blocks: Blocks, **options: Any) -> Measurement:
    forward: Any = CountedForward()
    return measure(forward, blocks, **options)


def stored(folder: Path, number: int, words: int = 30) -> TokenStore:
    return store(folder, [story(n, words + n) for n in range(number)])


def change(before: Measurement, after: Measurement, *, per: metrics.Unit) -> dict[str, Any]:
    return metrics.change(before, after, per=per).to_dict()


def documents(nats: Any, tokens: float = 100.0, words: float | Any = 50.0, size: float = 400.0) -> Measurement:
    """Return a measurement of documents of equal length."""
    sums = np.asarray(nats, np.float64)
    full = np.ones(len(sums))
    return Measurement(sums, full * tokens, full * words, full * size)


# Sums and counts


def test_sums_and_counts_match_the_text(tmp_path: Path) -> None:
    held = store(
        tmp_path, [part("Nobody came"), part("not here", "test"), part("the lamp stood on the sill"), part("é")]
    )
    measured = counted(pack(held, "train", 8))
    rows = [0, 2, 3]
    ends = 0  # end-of-text is a target too
    assert measured.nats.tolist() == pytest.approx([(sum(held.ids(row).tolist()) + ends) / 100 for row in rows])
    assert measured.tokens.tolist() == [len(held.ids(row)) + 1 for row in rows]
    assert measured.words.tolist() == [2, 6, 1]
    assert measured.bytes.tolist() == [11, 26, 2]
    assert measured.loss == pytest.approx(measured.nats.sum() / measured.tokens.sum())


def test_figures_follow_from_the_sums() -> None:
    figures = documents([300.0, 100.0], tokens=100, words=50, size=400).summary().to_dict()
    assert figures["loss"] == 2.0
    assert figures["perplexity"] == pytest.approx(math.exp(400 / 200))
    assert figures["word_perplexity"] == pytest.approx(math.exp(400 / 100))
    assert figures["bits_per_byte"] == pytest.approx(400 / math.log(2) / 800)
    assert [figures[name] for name in ("tokens", "words", "bytes", "documents")] == [200, 100, 800, 2]


class Simulated(Ranks):
    """One of several processes, of which no other exists. `store` is called with each tensor to sum."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self.store(tensor)
        return tensor

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("world", [2, 3])
def test_measurements_of_several_processes_add_up(tmp_path: Path, world: int) -> None:
    blocks = pack(stored(tmp_path, 24), "train", 64)
    whole = counted(blocks, batch_size=2)
    shares: list[list[torch.Tensor]] = []
    for rank in range(world):
        kept: list[torch.Tensor] = []
        alone = counted(blocks, batch_size=2, ranks=Simulated(rank, world, kept.append))
        assert 0 < alone.tokens.sum() < whole.tokens.sum()
        shares.append([tensor.clone() for tensor in kept])
    assert [len(tensors) for tensors in shares] == [2] * world
    sums = iter([torch.stack(tensors).sum(0) for tensors in zip(*shares, strict=True)])
    together = counted(blocks, batch_size=2, ranks=Simulated(0, world, lambda tensor: tensor.copy_(next(sums))))
    for name in ("nats", "tokens", "words", "bytes"):
        np.testing.assert_allclose(getattr(together, name), getattr(whole, name), rtol=1e-12)


def test_measuring_reports_progress_and_can_be_stopped(tmp_path: Path) -> None:
    blocks = pack(stored(tmp_path, 12), "train", 64)
    forward: Any = CountedForward()
    progress_calls: list[tuple[int, int]] = []
    measure(forward, blocks, batch_size=4, progress=lambda done, total: progress_calls.append((done, total)))
    number = -(-len(blocks) // 4)
    assert number >= 3
    assert progress_calls == [(done, number) for done in range(1, number + 1)]
    assert forward.model.training

    def stop() -> None:
        if forward.batches == number + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(forward, blocks, batch_size=4, between=stop)
    assert forward.batches == number + 2
    assert forward.model.training


# Intervals


def test_five_documents_are_enough_for_an_interval() -> None:
    assert MIN_DOCUMENTS == 5
    few, enough = (
        documents([300.0, 310.0, 290.0, 305.0]).summary().to_dict(),
        documents([300.0, 310, 290, 305, 295]).summary().to_dict(),
    )
    assert (few["interval"], few["interval_unit"]) == (None, None)
    assert enough["interval_unit"] == "document"
    assert sorted(enough["interval"]) == ["bits_per_byte", "loss", "perplexity", "word_perplexity"]
    assert documents([200.0]).summary().to_dict()["interval"] is None


def test_the_interval_of_documents_of_equal_length_is_that_of_students_t() -> None:
    """Mean ± t(4 degrees of freedom, 97.5%) × standard deviation / √5, by hand."""
    figures = documents([280.0, 290.0, 300.0, 310.0, 320.0], tokens=100).summary().to_dict()
    half = 2.7764451 * 0.15811388 / math.sqrt(5)  # losses 2.8, 2.9, 3.0, 3.1, 3.2
    assert figures["interval"]["loss"] == pytest.approx([3 - half, 3 + half], rel=1e-6)
    assert figures["interval"]["perplexity"] == pytest.approx([math.exp(3 - half), math.exp(3 + half)], rel=1e-6)
    assert figures["interval"]["word_perplexity"] == pytest.approx([math.exp(6 - 2 * half), math.exp(6 + 2 * half)])
    bits = 300 / 400 / math.log(2)
    assert figures["interval"]["bits_per_byte"] == pytest.approx([bits * (1 - half / 3), bits * (1 + half / 3)])


def test_the_interval_of_documents_of_different_lengths_by_hand() -> None:
    """The jackknife of a ratio, with each document left out in turn."""
    nats, tokens = np.array([30.0, 80.0, 50.0, 200.0, 61.0]), np.array([10.0, 30.0, 20.0, 60.0, 20.0])
    left_out = [(421 - a) / (140 - b) for a, b in zip(nats, tokens, strict=True)]
    error = math.sqrt(4 / 5 * sum((value - 421 / 140) ** 2 for value in left_out))
    half = t_quantile(degrees_of_freedom(tokens / 140)) * error
    assert ratio_interval(nats, tokens) == pytest.approx((421 / 140 - half, 421 / 140 + half))


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706205), (2, 4.302653), (4, 2.776445), (10, 2.228139), (30, 2.042272), (120, 1.979930), (1e6, 1.959966)],
)
def test_quantiles_of_students_t_match_published_tables(freedom: float, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=2e-6)
    assert t_quantile(1.5) == pytest.approx(6.178, abs=0.6)  # between 1 and 2


def test_degrees_of_freedom_fall_with_unequal_lengths() -> None:
    assert degrees_of_freedom(np.full(8, 1 / 8)) == pytest.approx(7)
    assert degrees_of_freedom(np.full(1000, 1 / 1000)) == pytest.approx(999)
    # Compare with two published formulas; Bell and McCaffrey's uses the whole matrix.
    shares = np.array([0.05, 0.1, 0.15, 0.2, 0.5])
    centred = np.eye(5) - np.outer(np.ones(5), shares)
    form = np.diag((shares / (1 - shares)) ** 2) @ centred @ centred.T
    bell_mccaffrey = np.trace(form) ** 2 / np.trace(form @ form)
    kish = 1 / (shares**2).sum() - 1
    assert kish > bell_mccaffrey > 1
    assert degrees_of_freedom(shares) == pytest.approx(math.sqrt(kish * bell_mccaffrey))
    assert degrees_of_freedom(np.array([0.96, 0.01, 0.01, 0.01, 0.01])) == pytest.approx(1, abs=0.05)


def test_one_dominant_document_gives_a_wide_interval() -> None:
    nats = np.array([3000.0, 310, 290, 320, 280])
    low, high = (
        Measurement(nats, np.array([1000.0, 100, 100, 100, 100]), nats, nats).summary().to_dict()["interval"]["loss"]
    )
    even_low, even_high = documents([*nats[1:].tolist(), 300.0]).summary().to_dict()["interval"]["loss"]
    assert high - low > 1.2 * (even_high - even_low)


def test_intervals_contain_the_value_and_shrink_with_more_text() -> None:
    widths: dict[str, list[float]] = {}
    for number in (25, 400):
        figures = documents(np.random.default_rng(3).normal(300, 40, number)).summary().to_dict()
        for name, (low, high) in figures["interval"].items():
            assert low < figures[name] < high
            widths.setdefault(name, []).append(high - low)
    assert sorted(widths) == ["bits_per_byte", "loss", "perplexity", "word_perplexity"]
    assert all(0 < later < 0.5 * earlier for earlier, later in widths.values())


def test_intervals_of_positive_figures_are_not_negative() -> None:
    low, high = documents([1.0, 1, 1, 1, 900]).summary().to_dict()["interval"]["loss"]
    assert (low, high > 2) == (0.0, True)


def test_words_are_counted_only_if_white_space_separates_them() -> None:
    measured = Measurement(*(np.full(6, value) for value in (300.0, 100.0, 2.0, 600.0)), spaced=False)
    figures = measured.summary().to_dict()
    assert (figures["words"], figures["word_perplexity"], figures["interval"]["word_perplexity"]) == (None, None, None)
    assert figures["bits_per_byte"] == pytest.approx(0.5 / math.log(2))


# Change


def noisy(seed: int, number: int = 60, mean: float = 300.0, deviation: float = 60.0) -> Floats:
    """Return nats of documents that differ much from each other."""
    return np.random.default_rng(seed).normal(mean, deviation, number)


def test_the_change_excludes_zero_if_every_document_improves() -> None:
    before = noisy(0)
    after = before - np.random.default_rng(1).uniform(1, 9, 60)  # small compared with the spread between documents
    found = change(documents(before), documents(after), per="token")
    assert found["percent"] == pytest.approx(100 * (math.exp((after - before).mean() / 100) - 1))
    low, high = found["interval"]
    assert low < found["percent"] < high < 0
    assert found["excludes_zero"] is True
    assert found["per"] == "token"
    worse = change(documents(after), documents(before), per="token")
    assert worse["percent"] > 0
    assert worse["interval"][0] > 0
    assert worse["excludes_zero"] is True


def test_the_change_pairs_the_documents_of_both_models() -> None:
    before = noisy(0)
    found = change(documents(before), documents(before - 10), per="token")  # 0.1 nats per token in every document
    assert [*found["interval"], found["percent"]] == pytest.approx([100 * (math.exp(-0.1) - 1)] * 3)


def test_the_change_includes_zero_if_only_chance_differs() -> None:
    included = [
        change(documents(noisy(seed)), documents(noisy(seed + 100)), per="token")["excludes_zero"] is False
        for seed in range(20)
    ]
    assert sum(included) >= 16


def test_the_interval_of_a_change_is_as_wide_as_95_percent_of_a_normal_distribution() -> None:
    before, after = noisy(0, 500), noisy(1, 500)
    interval = change(documents(before), documents(after), per="token")["interval"]
    low, high = np.log1p(np.array(interval) / 100)
    assert high - low == pytest.approx(2 * 1.96 * (after - before).std() / 100 / math.sqrt(500), rel=0.06)


def test_the_change_of_the_same_model_is_zero() -> None:
    found = change(documents(noisy(0)), documents(noisy(0)), per="token")
    assert found == {"percent": 0.0, "interval": [0.0, 0.0], "excludes_zero": False, "per": "token"}


def test_models_with_different_tokenizers_are_compared_per_byte() -> None:
    nats = noisy(0)
    before, after = documents(nats, tokens=100), documents(nats * 0.9, tokens=250)
    found = change(before, after, per="byte")
    assert found["per"] == "byte"
    assert found["percent"] == pytest.approx(-10)
    assert found["interval"] == pytest.approx([-10, -10])
    assert change(before, after, per="token")["percent"] < -50  # a comparison per token would be wrong


def test_the_interval_of_a_change_per_byte_by_hand() -> None:
    old, new = np.array([300.0, 280, 310, 330, 290]), np.array([290.0, 250, 300, 310, 285])
    sizes = np.array([400.0, 420, 380, 500, 390])
    one, other = (Measurement(nats, nats, nats, sizes) for nats in (old, new))
    left_out = [math.log((new.sum() - b) / (old.sum() - a)) for a, b in zip(old, new, strict=True)]
    moved = math.log(new.sum() / old.sum())
    error = math.sqrt(4 / 5 * sum((value - moved) ** 2 for value in left_out))
    half = t_quantile(degrees_of_freedom(sizes / sizes.sum())) * error
    ends = [100 * math.expm1(moved - half), 100 * math.expm1(moved + half)]
    assert change(one, other, per="byte")["interval"] == pytest.approx(ends)


def test_a_change_over_too_few_documents_has_no_interval() -> None:
    assert change(documents([200.0]), documents([100.0]), per="token") == {
        "percent": pytest.approx(100 * (math.exp(-1) - 1)),
        "interval": None,
        "excludes_zero": None,
        "per": "token",
    }
    assert change(documents(noisy(0, 4)), documents(noisy(1, 4)), per="byte")["interval"] is None
    assert change(documents(noisy(0, 5)), documents(noisy(1, 5)), per="byte")["interval"] is not None


def test_a_document_without_tokens_does_not_break_the_comparison() -> None:
    assert change(documents(noisy(0, 60)), documents(noisy(0, 59)), per="byte")["interval"] is None


# Numbers past the range of floats


def test_huge_losses_stay_finite_and_are_json() -> None:
    assert perplexity(1.0) == math.e
    assert math.isfinite(perplexity(1e9))
    huge = documents(np.linspace(1e7, 2e7, 30))
    small = documents(noisy(0, 30))
    for found in (
        huge.summary().to_dict(),
        change(small, huge, per="token"),
        change(small, huge, per="byte"),
        change(huge, small, per="token"),
    ):
        assert "Infinity" not in json.dumps(found, allow_nan=False)
    assert huge.summary().to_dict()["perplexity"] == perplexity(1e9)
