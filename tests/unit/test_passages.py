"""Passages of held-out text that stand in the training text too: against a count by hand, and through a store and a verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetale import passages
from finetale.passages import WINDOW, shared_tokens
from finetale.pipeline.evaluating import shared_shares
from tiny import part, store, story


def counted(texts: list[tuple[int, list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and parts as a store has them: a beginning, the ids and an end of each."""
    tokens = [token for _, ids in texts for token in (0, *ids, 0)]
    parts = np.zeros(len(texts), [("start", "<i8"), ("targets", "<i8"), ("split", "<u1")])
    parts["targets"] = [len(ids) + 1 for _, ids in texts]
    parts["split"] = [split for split, _ in texts]
    parts["start"] = np.concatenate([[0], np.cumsum(parts["targets"] + 1)[:-1]])
    return np.array(tokens, np.uint16), parts


def by_hand(texts: list[tuple[int, list[int]]]) -> list[int]:
    train = {tuple(ids[at : at + WINDOW]) for split, ids in texts if not split for at in range(len(ids) - WINDOW + 1)}
    found = []
    for split, ids in texts:
        covered: set[int] = set()
        for at in range(len(ids) - WINDOW + 1):
            if split and tuple(ids[at : at + WINDOW]) in train:
                covered |= set(range(at, at + WINDOW))
        found.append(len(covered))
    return found


@pytest.mark.parametrize("chunk", [7, 50, 1 << 22])
def test_shared_passages_are_those_counted_by_hand(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(passages, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    texts = [(int(rng.integers(0, 3)), rng.integers(1, 60_000, rng.integers(1, 200)).tolist()) for _ in range(40)]
    for _ in range(30):  # copy a stretch of one into another
        (_, source), (_, target) = (texts[i] for i in rng.integers(0, len(texts), 2))
        at, to = int(rng.integers(0, len(source))), int(rng.integers(0, len(target) + 1))
        target[to:to] = source[at : at + int(rng.integers(10, 90))]
    found = shared_tokens(*counted(texts), 0)
    # The end of a text is a target too, and may stand at the end of a shared passage.
    assert all(0 <= a - b <= 1 for a, b in zip(found.tolist(), by_hand(texts), strict=True))
    assert found.sum() > 400


def test_without_training_or_held_out_text_nothing_is_shared() -> None:
    ids = list(range(1, 80))
    for texts in ([(0, ids), (0, ids)], [(1, ids), (2, ids)], [(1, ids[:5]), (0, ids)]):
        assert not shared_tokens(*counted(texts), 0).any()


def test_a_quotation_is_told_by_the_store(tmp_path: Path) -> None:
    quoted = story(7, 60)
    texts = [part(story(1) + quoted), part(story(2)), part(quoted + story(3, 60), "test"), part(story(4), "validation")]
    shares = shared_shares(store(tmp_path, texts))
    assert 0.3 < shares["test"] < 0.7
    assert shares["validation"] == 0
