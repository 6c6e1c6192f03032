"""Compare numbers with fixed values. Each docstring names the only reasons for a change; any other change is a bug.

The numbers are the same on every machine: ids and counts exactly, losses to 1e-4. If a change affects existing runs or
caches, add the reason to the changelog.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetale.blocks import pack, windows
from finetale.config import TrainSettings
from finetale.forward import PackedForward
from finetale.metrics import change, measure
from finetale.tokens import TokenStore
from finetale.training import StepBudget
from finetale.training.optimizer import learning_rate
from tiny import model, part, store, story, tokenizer

TEXT = "The lamp stood on the sill.\n\nShe — naïve — counted 12 eggs; 你好!"


@pytest.fixture
def stored(tmp_path: Path) -> TokenStore:
    parts = [part(story(number)) for number in range(6)]
    parts += [part(story(6), "validation"), part(story(7), "test"), part(story(1), dropped="duplicate")]
    return store(tmp_path, parts)


def test_ids_of_a_text() -> None:
    """May change with `train_tokenizer` or `tiny.story`. New models then have other tokens."""
    assert tokenizer()(TEXT, add_special_tokens=False)["input_ids"] == [
        *(279, 379, 317, 265, 261, 365, 14, 199, 199, 325, 221, 159, 223, 243, 332, 65, 128, 108, 86, 69, 221, 159),
        *(223, 243, 383, 355, 18, 324, 27, 221, 161, 122, 255, 162, 99, 122, 1),
    ]


def test_account_of_a_text(stored: TokenStore) -> None:
    """May change with the ids above or the definition of a target. Accounts of old and new runs then differ."""
    assert stored.account == {
        "tokens": {
            "read": 1342,
            "trained": 896,
            "validation": 132,
            "test": 157,
            "watched": 0,
            "context": 0,
            "unused": 0,
            "dropped": 157,
        },
        "dropped": [{"reason": "duplicate", "documents": 1, "tokens": 157}],
    }


def test_hash_of_a_store(stored: TokenStore) -> None:
    """May change with the layout of stores. Existing runs then report changed text and cannot be resumed."""
    assert stored.info["sha256"] == "09b667e376787b52c264011d45442804e4d752f33882ccf79fd14ba86f4ebf9a"


def test_blocks_of_a_text(stored: TokenStore) -> None:
    """May change with the packing. Runs with the same seed then train on other blocks."""
    blocks = pack(stored, "train", 64, fill=True)
    assert (len(blocks), blocks.num_targets) == (15, 896)
    assert [blocks.targets_in(np.array([block])) for block in range(15)] == [
        *(64, 64, 64, 64, 62, 64, 64, 64, 64, 15, 64, 64, 64, 64, 51)
    ]


def test_order_of_blocks() -> None:
    """May change with numpy's generators or the use of the seed. Runs with the same seed then differ."""
    budget = StepBudget(10, 5, 2.0, None, None, None)
    assert [budget.blocks_of(step, seed=0).tolist() for step in range(4)] == [
        [4, 6, 2, 7, 3],
        [5, 9, 0, 8, 1],
        [9, 1, 3, 8, 7],
        [6, 0, 4, 2, 5],
    ]


def test_learning_rates() -> None:
    """May change with the default schedule. Runs with the same settings then differ."""
    settings = TrainSettings.resolve({"learning_rate": 1e-3})
    rates = [learning_rate(step, 40, settings) for step in (0, 1, 2, 21, 39)]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 5.5e-4, 1.0153698e-4], rel=1e-6)


def test_losses_of_the_seeded_tiny_model(stored: TokenStore) -> None:
    """May change with torch's random numbers, the tiny model or the ids above, never with the metrics."""
    forward = PackedForward(model(0))
    validation = measure(forward, pack(stored, "validation", 64))
    assert validation.loss == pytest.approx(6.879199, rel=1e-4)
    assert measure(forward, windows(stored, "validation", 64, 16)).loss == pytest.approx(6.886772, rel=1e-4)
    figures = validation.summary().to_dict()
    assert figures["perplexity"] == pytest.approx(971.848, rel=1e-3)
    assert figures["word_perplexity"] == pytest.approx(1274.149, rel=1e-3)
    assert figures["bits_per_byte"] == pytest.approx(2.589023, rel=1e-4)
    assert [figures[name] for name in ("tokens", "words", "bytes", "documents")] == [132, 127, 506, 1]


def test_intervals_of_the_seeded_tiny_model(stored: TokenStore) -> None:
    """May change with the method for intervals. Intervals of old and new reports then differ."""
    one, other = (measure(PackedForward(model(seed)), pack(stored, "train", 64)) for seed in (0, 1))
    assert one.summary().to_dict()["interval"]["loss"] == pytest.approx([6.485711, 6.734947], rel=1e-4)
    found = change(one, other, per="token").to_dict()
    assert found["percent"] == pytest.approx(-10.7896, abs=0.02)
    assert found["interval"] == pytest.approx([-29.0402, 12.1549], abs=0.02)
