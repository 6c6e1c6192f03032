"""PyTorch's rows begin with the keys and values of earlier texts: same scores, bounded memory, one adapter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetale.models import adapter_hooks
from finetale.models.adapter_hooks import LoadedAdapter
from finetale.server.engines import NoRoom
from finetale.server.engines.prefixes import SIZE, Prefixes
from finetale.server.engines.pytorch_rows import TorchRows
from tiny import model

VOCABULARY = 400


def pieces_of(ids: Sequence[int]) -> Any:
    """Return a callback that gives keys and values which are the tokens themselves, in 4 bytes each."""
    return lambda start, stop: [(torch.tensor([[[ids[start:stop]]]], dtype=torch.int32),) * 2]


def test_a_piece_is_found_only_after_the_same_beginning_and_kind() -> None:
    kept, limit = Prefixes(), 10**6
    text = [number % 50 for number in range(3 * SIZE + 9)]
    kept.keep(0, text, 0, pieces_of(text), limit)
    found = kept.find(0, text)
    assert [pairs[0][0].flatten().tolist() for pairs in found] == [text[at : at + SIZE] for at in (0, SIZE, 2 * SIZE)]
    assert len(kept.find(0, [*text[:SIZE], 51, *text[SIZE + 1 :]])) == 1
    assert kept.find(0, text[SIZE:]) == []
    assert kept.find(1, text) == []
    assert kept.num_bytes == 3 * SIZE * 8
    kept.keep(0, text, 0, pieces_of(text), limit)
    assert kept.num_bytes == 3 * SIZE * 8, "equal pieces are kept once"


def test_the_ends_of_the_oldest_texts_are_dropped_first() -> None:
    kept, piece = Prefixes(), SIZE * 8
    texts = [[start] * (3 * SIZE) for start in range(3)]
    for text in texts[:2]:
        kept.keep(0, text, 0, pieces_of(text), 6 * piece)
    kept.find(0, texts[0])
    kept.keep(0, texts[2], 0, pieces_of(texts[2]), 6 * piece)
    assert [len(kept.find(0, text)) for text in texts] == [3, 0, 3]
    kept.shrink(5 * piece)
    assert [len(kept.find(0, text)) for text in texts] == [2, 0, 3]
    large = [9] * (9 * SIZE)
    kept.keep(0, large, 0, pieces_of(large), 4 * piece)
    assert [len(kept.find(0, text)) for text in (*texts, large)] == [0, 0, 0, 4]
    kept.keep(0, large, 5, pieces_of(large), 9 * piece)
    assert len(kept.find(0, large)) == 4, "a piece is of no use without the one before"
    kept.shrink(0)
    assert kept.num_bytes == 0
    assert not kept.find(0, large)


def score(base: PreTrainedModel, ids: list[int], adapter: LoadedAdapter | None) -> Tensor:
    with torch.inference_mode(), adapter_hooks.using([adapter]):
        scores: Tensor = base(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        return scores


@pytest.mark.parametrize(("seed", "memory"), [(0, None), (1, None), (2, 150_000), (3, 400_000), (4, 0)])
def test_texts_with_known_beginnings_have_the_scores_of_texts_alone(seed: int, memory: int | None) -> None:
    base = model(3, positions=600)
    adapter_hooks.add_hooks(base)
    adapters = [None, adapter_hooks.probe(base), adapter_hooks.probe(base)]
    rows = TorchRows(base, context=600, slots=4, memory=memory)
    drawn = random.Random(seed)
    beginnings = [[drawn.randrange(VOCABULARY) for _ in range(200)] for _ in range(2)]
    texts: list[tuple[list[int], LoadedAdapter | None]] = []
    known = 0

    def read(row: int, more: list[int]) -> None:
        ids, adapter = texts[row]
        ids += more
        try:
            found = rows.read([row], [more])[0]
        except NoRoom:
            del ids[len(ids) - len(more) :]
            return
        torch.testing.assert_close(found, score(base, ids, adapter), rtol=1e-4, atol=1e-4)
        if memory is not None and len(texts) > 1:
            assert rows._kept.num_bytes == 0 or rows.num_bytes <= memory

    with torch.inference_mode():
        for _ in range(60):
            if len(texts) == 4 or (texts and drawn.random() < 0.4):
                row = drawn.randrange(len(texts))
                rows.leave(row)
                last = texts.pop()
                if row < len(texts):
                    texts[row] = last
                continue
            ids = [*drawn.choice(beginnings)[: drawn.choice((70, 128, 200))], drawn.randrange(VOCABULARY), 5]
            adapter = drawn.choice(adapters)
            count = rows.join(ids, adapter)
            assert count < len(ids)
            assert count % SIZE == 0
            known += count > 0
            texts.append((ids[:count], adapter))
            read(len(texts) - 1, ids[count:])
            if texts[-1][0]:
                read(drawn.randrange(len(texts)), [drawn.randrange(VOCABULARY)])
        assert known > 5 if memory is None else (known > 0) == (memory > 0)
        for _ in range(len(texts)):
            rows.leave(0)
        rows.rest()
    assert rows.num_bytes == 0


def test_texts_of_two_adapters_share_nothing() -> None:
    base = model(3, positions=600)
    adapter_hooks.add_hooks(base)
    one, two = adapter_hooks.probe(base), adapter_hooks.probe(base)
    rows = TorchRows(base, context=600, slots=4)
    ids = [number % VOCABULARY for number in range(3 * SIZE)]
    with torch.inference_mode():
        for adapter, running in ((one, True), (two, False), (None, False)):
            assert rows.join(ids, adapter) == 0
            rows.read([len(rows._rows) - 1], [ids])
            if not running:
                rows.leave(len(rows._rows) - 1)
        for adapter in (one, two, None):
            assert rows.join(ids, adapter) == 2 * SIZE, "at least the last token is read"


def test_a_pass_that_fails_leaves_all_rows_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    base = model(3, positions=600)
    rows, alone = (TorchRows(base, context=600, slots=4) for _ in range(2))
    with torch.inference_mode():
        alone.join()
        expected = alone.read([0], [[1, 2, 3, 4, 5]])
        rows.join()
        rows.join()
        rows.read([0, 1], [[1, 2], [1, 2]])
        once = rows._read
        monkeypatch.setattr(rows, "_read", lambda *words: _fail() if words[2].shape[1] == 1 else once(*words))
        with pytest.raises(RuntimeError, match="no memory"):
            rows.read([0, 1], [[3, 4, 5], [3]])
        monkeypatch.undo()
        torch.testing.assert_close(rows.read([0], [[3, 4, 5]]), expected, rtol=1e-4, atol=1e-4)


def _fail() -> Tensor:
    raise RuntimeError("no memory")
