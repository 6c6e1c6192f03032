"""Figures are sums divided by counts, with intervals that hold what they promise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetale.blocks import IGNORE, Batch, Blocks, pack
from finetale.metrics import (
    MIN_DOCUMENTS,
    PIECE,
    Floats,
    Measurement,
    bootstrap_sums,
    change,
    measure,
    perplexity,
)
from finetale.tokens import TokenStore
from tiny import part, store, story


class CountedForward:
    """A forward pass whose loss of a target is its id / 100, so that sums can be had without a model."""

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


def documents(nats: Any, tokens: float = 100.0, words: float | Any = 50.0, size: float = 400.0) -> Measurement:
    """A measurement of documents of equal length; pieces are the documents."""
    sums = np.asarray(nats, np.float64)
    full = np.ones(len(sums))
    return Measurement(sums, full * tokens, full * words, full * size, sums, full * tokens)


# Sums and counts


def test_sums_and_counts_are_those_of_the_text(tmp_path: Path) -> None:
    held = store(
        tmp_path, [part("Nobody came"), part("not here", "test"), part("the lamp stood on the sill"), part("é")]
    )
    measured = counted(pack(held, "train", 8))
    rows = [0, 2, 3]
    ends = 0  # id of the end-of-text, which is a target too
    assert measured.nats.tolist() == pytest.approx([(sum(held.ids(row).tolist()) + ends) / 100 for row in rows])
    assert measured.tokens.tolist() == [len(held.ids(row)) + 1 for row in rows]
    assert measured.words.tolist() == [2, 6, 1]
    assert measured.bytes.tolist() == [11, 26, 2]
    assert measured.loss == pytest.approx(measured.nats.sum() / measured.tokens.sum())


def test_figures_follow_from_the_sums() -> None:
    figures = documents([300.0, 100.0], tokens=100, words=50, size=400).summary(100)
    assert figures["loss"] == 2.0
    assert figures["perplexity"] == pytest.approx(math.exp(400 / 200))
    assert figures["word_perplexity"] == pytest.approx(math.exp(400 / 100))
    assert figures["bits_per_byte"] == pytest.approx(400 / math.log(2) / 800)
    assert [figures[name] for name in ("tokens", "words", "bytes", "documents")] == [200, 100, 800, 2]


def test_pieces_are_runs_of_128_targets_in_the_order_of_blocks(tmp_path: Path) -> None:
    blocks = pack(stored(tmp_path, 12), "train", 64)
    flat = np.concatenate([row[row != IGNORE] for row in blocks.batch(np.arange(len(blocks))).labels]) / 100
    assert len(flat) == blocks.num_targets > 4 * PIECE
    pieces = [flat[at : at + 128] for at in range(0, len(flat), 128)]
    for batch_size in (1, 3, 1000):
        measured = counted(blocks, batch_size=batch_size)
        np.testing.assert_allclose(measured.piece_nats, [piece.sum() for piece in pieces], rtol=1e-6)
        assert measured.piece_tokens.tolist() == [len(piece) for piece in pieces]


@pytest.mark.parametrize("world", [2, 3])
def test_the_parts_of_several_processes_sum_to_the_whole(tmp_path: Path, world: int) -> None:
    blocks = pack(stored(tmp_path, 24), "train", 64)
    whole = counted(blocks, batch_size=2)
    shares: list[list[Floats]] = []
    for rank in range(world):
        arrays: list[Floats] = []

        def keep(array: Floats, arrays: list[Floats] = arrays) -> Floats:
            arrays.append(array.copy())
            return array

        alone = counted(blocks, batch_size=2, rank=rank, world=world, reduce=keep)
        assert 0 < alone.tokens.sum() < whole.tokens.sum()
        shares.append(arrays)
    assert [len(arrays) for arrays in shares] == [4] * world
    sums = iter([np.sum(arrays, axis=0) for arrays in zip(*shares, strict=True)])
    together = counted(blocks, batch_size=2, rank=0, world=world, reduce=lambda _: next(sums))
    for name in ("nats", "tokens", "words", "bytes", "piece_nats", "piece_tokens"):
        np.testing.assert_allclose(getattr(together, name), getattr(whole, name), rtol=1e-12)


def test_measuring_tells_how_far_it_is_and_can_be_stopped(tmp_path: Path) -> None:
    blocks = pack(stored(tmp_path, 12), "train", 64)
    forward: Any = CountedForward()
    told: list[tuple[int, int]] = []
    measure(forward, blocks, batch_size=4, progress=lambda done, total: told.append((done, total)))
    number = -(-len(blocks) // 4)
    assert number >= 3
    assert told == [(done, number) for done in range(1, number + 1)]
    assert forward.model.training

    def stop() -> None:
        if forward.batches == number + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(forward, blocks, batch_size=4, between=stop)
    assert forward.batches == number + 2
    assert forward.model.training


# Units of the intervals


def test_units_are_documents_from_20_on_and_pieces_below(tmp_path: Path) -> None:
    assert MIN_DOCUMENTS == 20
    many = counted(pack(stored(tmp_path / "many", 20), "train", 64))
    few = counted(pack(stored(tmp_path / "few", 19), "train", 64))
    assert (many.unit, few.unit) == ("document", "piece")
    assert [len(array) for array in many.units()] == [20] * 4
    number = len(few.piece_nats)
    assert [len(array) for array in few.units()] == [number] * 4
    assert number == -(-int(few.tokens.sum()) // PIECE)
    for unit_sums, sums in zip(few.units(), (few.nats, few.tokens, few.words, few.bytes), strict=True):
        assert unit_sums.sum() == pytest.approx(sums.sum())
    assert many.summary(100)["interval_unit"] == "document"
    assert few.summary(100)["interval_unit"] == "piece"
    assert few.summary(100)["interval"] is not None


def test_a_single_unit_has_no_interval() -> None:
    assert documents([200.0]).summary(100)["interval"] is None


def test_draws_are_the_same_for_every_array() -> None:
    values = np.random.default_rng(0).random(30)
    one, twice, count = bootstrap_sums((values, 2 * values, np.ones(30)), 50, seed=1)
    np.testing.assert_allclose(twice, 2 * one)
    assert count.tolist() == [30.0] * 50
    assert len(np.unique(one)) == 50
    np.testing.assert_allclose(bootstrap_sums((values,), 50, seed=1)[0], one)
    assert abs(bootstrap_sums((values,), 50, seed=2)[0] - one).max() > 0.1


def test_intervals_contain_the_value_and_shrink_with_more_text() -> None:
    widths: dict[str, list[float]] = {}
    for number in (25, 400):
        figures = documents(np.random.default_rng(3).normal(300, 40, number)).summary(400)
        for name, (low, high) in figures["interval"].items():
            assert low < figures[name] < high
            widths.setdefault(name, []).append(high - low)
    assert sorted(widths) == ["bits_per_byte", "loss", "perplexity", "word_perplexity"]
    assert all(0 < later < 0.5 * earlier for earlier, later in widths.values())


def test_intervals_are_as_wide_as_95_percent_of_a_normal_distribution() -> None:
    nats = np.random.default_rng(4).normal(300, 40, 500)
    low, high = documents(nats).summary(4000)["interval"]["loss"]
    assert high - low == pytest.approx(2 * 1.96 * nats.std() / 100 / math.sqrt(500), rel=0.06)


# Change


def noisy(seed: int, number: int = 60, mean: float = 300.0, deviation: float = 60.0) -> Floats:
    """Nats of documents that differ much from each other."""
    return np.random.default_rng(seed).normal(mean, deviation, number)


def test_change_excludes_zero_where_every_document_improves() -> None:
    before = noisy(0)
    after = before - np.random.default_rng(1).uniform(1, 9, 60)  # little beside the spread between documents
    found = change(documents(before), documents(after), by_word=False)
    assert found["percent"] == pytest.approx(100 * (math.exp((after - before).mean() / 100) - 1))
    low, high = found["interval"]
    assert low < found["percent"] < high < 0
    assert found["excludes_zero"] is True
    assert found["per"] == "token"
    worse = change(documents(after), documents(before), by_word=False)
    assert worse["percent"] > 0
    assert worse["interval"][0] > 0
    assert worse["excludes_zero"] is True


def test_change_draws_the_same_documents_for_both_models() -> None:
    before = noisy(0)
    found = change(documents(before), documents(before - 10), by_word=False)  # 0.1 nats a token in every document
    assert [*found["interval"], found["percent"]] == pytest.approx([100 * (math.exp(-0.1) - 1)] * 3)


def test_change_includes_zero_where_only_chance_differs() -> None:
    included = [
        change(documents(noisy(seed)), documents(noisy(seed + 100)), by_word=False, samples=300)["excludes_zero"]
        is False
        for seed in range(20)
    ]
    assert sum(included) >= 16


def test_the_interval_of_a_change_is_as_wide_as_95_percent_of_a_normal_distribution() -> None:
    before, after = noisy(0, 500), noisy(1, 500)
    interval = change(documents(before), documents(after), by_word=False, samples=4000)["interval"]
    low, high = np.log1p(np.array(interval) / 100)
    assert high - low == pytest.approx(2 * 1.96 * (after - before).std() / 100 / math.sqrt(500), rel=0.06)


def test_change_of_the_same_model_is_none() -> None:
    found = change(documents(noisy(0)), documents(noisy(0)), by_word=False)
    assert found == {"percent": 0.0, "interval": [0.0, 0.0], "excludes_zero": False, "per": "token"}


def test_models_of_different_tokenizers_are_compared_by_word() -> None:
    nats = noisy(0)
    before, after = documents(nats, tokens=100), documents(nats - 5, tokens=250)
    found = change(before, after, by_word=True)
    assert found["per"] == "word"
    assert found["percent"] == pytest.approx(100 * (math.exp(-5 / 50) - 1))
    assert found["interval"] == pytest.approx([found["percent"]] * 2)
    assert change(before, after, by_word=False)["percent"] < -50  # what a comparison by token would wrongly say


def test_what_can_not_be_paired_has_no_interval() -> None:
    few = documents(noisy(0, 19))
    unpaired = change(few, few, by_word=True)
    assert (unpaired["interval"], unpaired["excludes_zero"]) == (None, None)
    assert change(few, few, by_word=False)["interval"] is not None
    single = documents([200.0])
    assert change(single, documents([100.0]), by_word=False) == {
        "percent": pytest.approx(100 * (math.exp(-1) - 1)),
        "interval": None,
        "excludes_zero": None,
        "per": "token",
    }


def test_a_document_that_one_tokenizer_reads_as_nothing_does_not_break_the_comparison() -> None:
    assert change(documents(noisy(0, 60)), documents(noisy(0, 59)), by_word=True)["interval"] is None


# Numbers past the range of floats


def test_huge_losses_stay_finite_and_are_json() -> None:
    assert perplexity(1.0) == math.e
    assert math.isfinite(perplexity(1e9))
    huge = documents(np.linspace(1e7, 2e7, 30))
    small = documents(noisy(0, 30))
    for found in (
        huge.summary(100),
        change(small, huge, by_word=False, samples=100),
        change(small, huge, by_word=True, samples=100),
        change(huge, small, by_word=False, samples=100),
    ):
        assert "Infinity" not in json.dumps(found, allow_nan=False)
    assert huge.summary(100)["perplexity"] == perplexity(1e9)
