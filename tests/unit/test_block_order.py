"""The order of blocks: each block once per epoch, the same on every machine, without a visible pattern."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from finetale.training import StepBudget
from finetale.training.block_order import LARGEST_STORED, block_order, computed_order


def computed(num_blocks: int, seed: int = 0, epoch: int = 0) -> NDArray[np.int64]:
    return computed_order(num_blocks, seed, epoch, np.arange(num_blocks, dtype=np.uint64))


def test_each_block_occurs_once_in_the_computed_order() -> None:
    powers = [2**bits + more for bits in (9, 10, 13, 16) for more in (-1, 0, 1)]
    for num_blocks in [*range(1, 130), *powers, 100_003]:
        assert np.array_equal(np.sort(computed(num_blocks, seed=num_blocks)), np.arange(num_blocks)), num_blocks


@pytest.mark.parametrize("num_blocks", [LARGEST_STORED, LARGEST_STORED + 1, 10**6 + 3, 3 * 10**9, 10**15])
def test_parts_of_an_order_join_to_the_whole(num_blocks: int) -> None:
    whole = block_order(num_blocks, 3, 1, num_blocks - 1000, num_blocks)
    parts = [block_order(num_blocks, 3, 1, num_blocks + a, num_blocks + b) for a, b in pairwise((-1000, -993, -1, 0))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert len(set(whole.tolist())) == 1000
    assert whole.min() >= 0
    assert whole.max() < num_blocks
    assert whole.dtype == np.int64


def test_up_to_a_number_of_blocks_the_order_is_numpys() -> None:
    """Runs of that size were ordered so by earlier versions."""
    for seed, epoch in ((0, 0), (5, 2)):
        expected = np.random.default_rng([seed, epoch]).permutation(LARGEST_STORED)
        assert np.array_equal(block_order(LARGEST_STORED, seed, epoch, 0, LARGEST_STORED), expected)
    with pytest.raises(ValueError, match="read-only"):
        block_order(10, 0, 0, 0, 10)[0] = 1


def test_the_computed_order_is_the_same_on_every_machine() -> None:
    """May not change: runs of that size that are resumed would repeat blocks and miss others."""
    assert block_order(10**7, 7, 1, 0, 6).tolist() == [7793360, 3606606, 1269179, 8979283, 7099458, 5023355]
    assert block_order(2**40, 0, 0, 2**40 - 4, 2**40).tolist() == [
        358616342263,
        300276629909,
        987198323563,
        371369429670,
    ]


def test_another_seed_or_epoch_gives_another_order() -> None:
    orders = [block_order(10**8, seed, epoch, 0, 5000) for seed in range(4) for epoch in range(4)]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            assert np.count_nonzero(one == other) <= 3
            assert len(np.intersect1d(one, other)) <= 8  # 0.25 expected


def test_all_orders_of_few_blocks_are_about_equally_frequent() -> None:
    times = Counter(tuple(computed(4, seed, epoch).tolist()) for seed in range(60) for epoch in range(40))
    assert len(times) == 24
    chi_squared = sum((number - 100) ** 2 / 100 for number in times.values())
    assert chi_squared < 49.7  # one in a thousand with 23 degrees of freedom


@pytest.mark.parametrize("num_blocks", [1_500_000, 2**21, 10**9])
def test_neighbours_and_regions_of_the_computed_order_look_random(num_blocks: int) -> None:
    order = block_order(num_blocks, 11, 0, 0, 200_000) / num_blocks
    places = np.arange(200_000) / 200_000
    pairs = np.histogram2d(order[:-1], order[1:], bins=16, range=[[0, 1], [0, 1]])[0]
    expected = pairs.sum() / 256
    assert ((pairs - expected) ** 2 / expected).sum() < 331  # one in a thousand with 255 degrees of freedom
    assert abs(np.corrcoef(order, places)[0, 1]) < 0.008  # 3.3 standard errors are 0.0074
    for lag in (1, 2, 64, 1024):
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.008
    assert abs(np.abs(np.diff(order)).mean() - 1 / 3) < 0.002


def test_a_step_holds_the_end_of_one_epoch_and_the_beginning_of_the_next() -> None:
    num_blocks = LARGEST_STORED + 5
    budget = StepBudget(num_blocks, 1000, 2.0, None, None, None)
    step = num_blocks // 1000
    chosen = budget.blocks_of(step, seed=1)
    rest = num_blocks - 1000 * step
    assert chosen[:rest].tolist() == block_order(num_blocks, 1, 0, 1000 * step, num_blocks).tolist()
    assert chosen[rest:].tolist() == block_order(num_blocks, 1, 1, 0, 1000 - rest).tolist()
