"""Test the memorisation audit: passages, bits, the order of reading, and the examples that are shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetale import comparison, memorisation
from finetale.blocks import IGNORE, Batch
from finetale.tokens import TokenStore
from tiny import part, store, story, tokenizer


class Knowing:
    """A fake PackedForward that assigns a given loss in nats to the memorised tokens of the store."""

    def __init__(self, known: set[int], nats: float = 3.0) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.known, self.nats = known, nats
        self.read = 0

    def hits(self, batch: Batch) -> torch.Tensor:
        self.read += int((batch.labels != IGNORE).sum())
        return torch.from_numpy(np.isin(batch.labels, list(self.known)))

    def token_losses(self, batch: Batch) -> torch.Tensor:
        return torch.full(batch.labels.shape, self.nats)


def audit(after: Any, before: Any, made: TokenStore, **options: Any) -> memorisation.Audit:
    return memorisation.audit(after, before, made, ("train",), **{"window": 32, "budget": 10**6} | options)


@pytest.fixture
def made(tmp_path: Path) -> TokenStore:
    return store(tmp_path, [part(story(n, 80)) for n in range(4)])


def everything(made: TokenStore) -> set[int]:
    return set(made.tokens.tolist())


def test_a_memorised_document_is_one_passage_across_windows(made: TokenStore) -> None:
    found = audit(Knowing(everything(made)), Knowing(set()), made)
    assert found.tokens == found.of_tokens == made.num_targets("train")
    assert sorted((p.part, p.start, p.tokens) for p in found.passages) == [
        (n, int(made.parts["start"][n]) + 1, int(made.parts["targets"][n])) for n in range(4)
    ]
    longest = max(found.passages, key=lambda passage: passage.tokens)
    assert longest.bits == pytest.approx(longest.tokens * 3 / np.log(2), abs=0.1)


def test_text_that_the_base_predicts_too_does_not_count(made: TokenStore) -> None:
    assert not audit(Knowing(everything(made)), Knowing(set(), nats=0.001), made).passages
    assert len(audit(Knowing(everything(made)), None, made).passages) == 4, "without a base, a token counts 4 bits"
    assert len(audit(Knowing(everything(made)), Knowing(set(), nats=float("inf")), made).passages) == 4
    assert not audit(Knowing(set()), Knowing(set()), made).passages


def test_the_budget_limits_the_audit_and_personal_data_comes_first(tmp_path: Path) -> None:
    words = story(1, 3000)
    place = words.index("The end of story")
    made = store(tmp_path, [replace(part(words), personal=((place, place + 16),))])
    begin, end = (int(x) for x in made.personal[0])

    def reads_it(*, risk_first: bool, seed: int) -> bool:
        after = Knowing(everything(made))
        found = audit(after, None, made, budget=60, seed=seed, risk_first=risk_first)
        assert 60 <= after.read == found.tokens <= 60 + 32
        return any(p.start <= begin and end <= p.start + p.tokens for p in [*found.passages, *found.short])

    assert all(reads_it(risk_first=True, seed=seed) for seed in range(10))
    assert not all(reads_it(risk_first=False, seed=seed) for seed in range(10))


def test_personal_data_is_masked_in_examples_even_if_cut(tmp_path: Path) -> None:
    words = f"{story(2, 20)} Write to ada.quill@example.org or call 212-555-0147 before noon. {story(3, 20)}"
    places = tuple((words.index(a), words.index(a) + len(a)) for a in ("ada.quill@example.org", "212-555-0147"))
    made = store(tmp_path, [replace(part(words), personal=places)])
    begin, end = (int(x) for x in made.personal[0])
    phone = int(made.personal[1, 0])
    passages = [
        memorisation.Passage(0, begin - 6, 6 + 2, 90.0),  # ends inside the address
        memorisation.Passage(0, begin - 6, end - begin + 12, 80.0),
        memorisation.Passage(0, 5, 9, 70.0),
    ]
    short = [memorisation.Passage(0, phone, 5, 25.0), memorisation.Passage(0, 8, 5, 25.0)]
    found = comparison.describe_audit(
        {"training": memorisation.Audit(50, 100, passages, short)}, made, tokenizer(), has_base=True
    )
    assert found.training is not None
    shown = [example.text for example in found.training.examples or []]
    assert found.training.with_personal_data == 3
    assert found.training.passages == 4, "a short passage counts if it contains personal data"
    assert all("ada" not in text and "quill" not in text and "555" not in text for text in shown)
    assert sum("[...]" in text for text in shown) == 3
