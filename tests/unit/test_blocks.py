"""Test packing: every target occurs once, few documents are cut, and there is little padding."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from finetale.blocks import IGNORE, Blocks, choose_block_size, pack, windows
from finetale.errors import ConfigError, SourceError
from finetale.tokens import PART_DTYPE


@dataclass
class FakeStore:
    """A store of documents with given numbers of targets. Each token is its own index."""

    parts: Any
    tokens: Any

    @classmethod
    def of(cls, targets: list[int]) -> FakeStore:
        parts = np.zeros(len(targets), PART_DTYPE)
        parts["targets"] = targets
        parts["start"] = np.concatenate([[0], np.cumsum(np.array(targets) + 1)[:-1]])
        return cls(parts, np.arange(sum(targets) + len(targets)))

    def parts_of(self, split: str) -> Any:
        return np.arange(len(self.parts))

    def num_targets(self, split: str) -> int:
        return int(self.parts["targets"].sum())

    @property
    def context(self) -> Any:
        return np.zeros((0, 2), np.int64)

    def context_before(self, places: Any) -> Any:
        return np.zeros_like(places)

    @property
    def is_example(self) -> Any:
        return np.zeros(len(self.parts), bool)


RANDOM = np.random.default_rng(0)
LENGTHS = {
    "one short": [10],
    "exact blocks": [64, 64, 64],
    "just over": [65, 66, 129],
    "all just over half": [40] * 50,
    "many short": RANDOM.integers(1, 20, 400).tolist(),
    "mixed": RANDOM.integers(1, 400, 60).tolist(),
}


def label_counts(store: FakeStore, blocks: Blocks) -> Any:
    """Return how often each token of the store is a label in the batches."""
    seen = np.zeros(len(store.tokens), int)
    for index in range(len(blocks)):
        batch = blocks.batch(np.array([index]))
        np.add.at(seen, batch.labels[batch.labels != IGNORE], 1)
    return seen


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("kind", ["whole", "filled", "windows"])
def test_each_token_but_the_first_of_a_document_is_a_target_once(lengths: list[int], kind: str) -> None:
    store: Any = FakeStore.of(lengths)
    blocks = windows(store, "train", 64, 16) if kind == "windows" else pack(store, "train", 64, fill=kind == "filled")
    expected = np.ones(len(store.tokens), int)
    expected[store.parts["start"]] = 0
    assert np.array_equal(label_counts(store, blocks), expected)
    assert blocks.num_targets == sum(lengths) == blocks.targets_in(np.arange(len(blocks)))


def test_labels_follow_their_inputs_and_positions_restart_with_each_document() -> None:
    store: Any = FakeStore.of(LENGTHS["mixed"])
    blocks = pack(store, "train", 64, fill=True)
    starts = set(store.parts["start"].tolist())
    batch = blocks.batch(np.arange(len(blocks)))
    real = batch.labels != IGNORE
    assert real.sum() == sum(LENGTHS["mixed"])
    assert np.array_equal(batch.labels[real], batch.inputs[real] + 1)
    jumps = np.diff(batch.positions, axis=1) != 1
    assert np.array_equal(jumps, np.diff(batch.documents, axis=1) != 0)
    assert starts <= set(batch.inputs[real & (batch.positions == 0)].tolist())


def test_documents_that_fit_into_a_block_are_not_cut() -> None:
    store: Any = FakeStore.of(LENGTHS["many short"])
    blocks = pack(store, "train", 64, fill=True)
    assert len(blocks.segments) == len(LENGTHS["many short"])
    assert blocks.padding_share < 0.02


def test_half_empty_blocks_are_filled_by_cutting_documents() -> None:
    store: Any = FakeStore.of([40] * 500)
    assert pack(store, "train", 64).padding_share == pytest.approx(0.375)
    assert pack(store, "train", 64, fill=True).padding_share < 0.1


def test_windows_give_context() -> None:
    store: Any = FakeStore.of([200])
    blocks = windows(store, "train", 64, 16)
    contexts = [int(skip) for skip in blocks.segments["skip"]]
    assert len(contexts) == 1 + -(-(200 - 64) // 16)
    assert sorted(contexts)[0] == 0
    assert sorted(contexts)[1] >= 48


def test_a_stride_longer_than_the_window_is_refused() -> None:
    store: Any = FakeStore.of([200])
    with pytest.raises(ConfigError, match="stride 65"):
        windows(store, "train", 64, 65)


def test_block_size() -> None:
    long: Any = FakeStore.of([100_000])
    short: Any = FakeStore.of([600])
    assert choose_block_size(long, 2048, None) == 1024
    assert choose_block_size(long, 512, None) == 512
    assert choose_block_size(long, None, None) == 1024
    assert choose_block_size(short, 1024, None) == 64
    assert choose_block_size(short, 1024, 600) == 600
    with pytest.raises(SourceError, match="600 training tokens, and block_size is 601"):
        choose_block_size(short, 1024, 601)
    with pytest.raises(ConfigError, match="1025 is larger than the model's 1024"):
        choose_block_size(long, 1024, 1025)
    tiny: Any = FakeStore.of([31])
    with pytest.raises(SourceError, match="31 training tokens"):
        choose_block_size(tiny, 1024, None)


@pytest.mark.parametrize("positions", [1, 7])
def test_a_model_with_too_few_positions_is_refused(positions: int) -> None:
    store: Any = FakeStore.of([600])
    with pytest.raises(ConfigError, match=f"The model has {positions} position") as caught:
        choose_block_size(store, positions, None)
    assert "at least 8" in str(caught.value)
    assert choose_block_size(store, 8, None) == 8


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_smallest_blocks_hold_each_target_once(size: int) -> None:
    lengths = [1, 5, 2, 9, 3, 3, 1]
    store: Any = FakeStore.of(lengths)
    blocks = pack(store, "train", size, fill=True)
    assert blocks.num_targets == sum(lengths)
    assert np.array_equal(
        np.sort(blocks.batch(np.arange(len(blocks))).labels.ravel())[-sum(lengths) :],
        np.sort(
            np.concatenate([np.arange(s + 1, s + 1 + n) for s, n in zip(store.parts["start"], lengths, strict=True)])
        ),
    )


def best_fit_one_by_one(lengths: list[int], size: int) -> list[list[int]]:
    """Place each segment, longest first, into the open block with the least room that fits; the latest at a tie."""
    blocks: list[tuple[int, list[int]]] = []  # (room, segments), the latest change last
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        fitting = [(room, -at) for at, (room, _) in enumerate(blocks) if room >= lengths[number]]
        room, members = blocks.pop(-min(fitting)[1]) if fitting else (size, [])
        blocks.append((room - lengths[number], [*members, number]))
    return [members for _, members in blocks]


@pytest.mark.parametrize("longest", [4, 20, 63])
def test_segments_of_one_length_are_placed_as_if_one_by_one(longest: int) -> None:
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(1, longest + 1, 120).tolist()
        blocks = pack(FakeStore.of(lengths), "train", 64)  # type: ignore[arg-type]
        packed = [blocks.segments["part"][a:b].tolist() for a, b in pairwise(blocks.offsets.tolist())]
        assert sorted(packed) == sorted(best_fit_one_by_one(lengths, 64))


@pytest.mark.parametrize("mean", [30, 300, 1500])
def test_packing_takes_little_memory_per_document(mean: int) -> None:
    """With lists of Python numbers, it took 270 to 330 bytes per segment."""
    store = FakeStore.of((1 + np.random.default_rng(0).gamma(4, mean / 4, 50_000)).astype(int).tolist())
    tracemalloc.start()
    blocks = pack(store, "train", 1024, fill=True)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / len(blocks.segments) < 200
