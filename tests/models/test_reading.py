"""The way to read texts for generation is tested on the model: wrong scores are never used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GPT2LMHeadModel, PreTrainedModel

from architectures import ALL
from finetale.config import SamplingSettings
from finetale.errors import ModelError
from finetale.generate import Generator, find_way
from finetale.generate.reading import PADDED, UNPADDED, WHOLE, inference
from tiny import model, tokenizer

PROMPTS = ["The lamp stood on the sill and the boat lay in the reeds.", "She counted", "", "When the wind turned"]
GREEDY = SamplingSettings.resolve({"temperature": 0, "max_new_tokens": 8})


def texts(tested: PreTrainedModel, prompts: list[str]) -> list[str]:
    return [samples[0].text for samples in Generator(tested, tokenizer()).generate(prompts, GREEDY)]


def changed(monkeypatch: pytest.MonkeyPatch, change: Any) -> GPT2LMHeadModel:
    """Return a GPT-2 whose forward pass goes through `change`, a function of (forward, arguments)."""
    tested = model(scale=0.5)
    forward = tested.forward

    def wrong(
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        use_cache: bool = False,
    ) -> Any:
        given = {"past_key_values": past_key_values, "attention_mask": attention_mask, "position_ids": position_ids}
        return change(forward, {"input_ids": input_ids, "use_cache": use_cache, **given})

    monkeypatch.setattr(tested, "forward", wrong)
    return tested


def without_cache(forward: Any, given: dict[str, Any]) -> Any:
    return forward(input_ids=given["input_ids"])


def without_mask(forward: Any, given: dict[str, Any]) -> Any:
    return forward(**{**given, "attention_mask": None, "position_ids": None})


def raising(forward: Any, given: dict[str, Any]) -> Any:
    if given["past_key_values"] is not None:
        raise NotImplementedError("no cache")
    return forward(**given)


def forgetting_rows(forward: Any, given: dict[str, Any]) -> Any:
    """A cache whose rows are never reordered, as of a model that keeps its state in its own modules."""
    if isinstance(cache := given["past_key_values"], DynamicCache):
        cache.reorder_cache = lambda rows: None
    return forward(**given)


@pytest.mark.parametrize(
    ("change", "way"),
    [(without_cache, WHOLE), (raising, WHOLE), (forgetting_rows, WHOLE), (without_mask, UNPADDED)],
)
def test_text_is_right_whatever_the_code_ignores(change: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = changed(monkeypatch, change)
    assert find_way(tested) == way
    assert texts(tested, PROMPTS) == texts(model(scale=0.5), PROMPTS)


def test_a_model_that_sees_what_follows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def both_ways(forward: Any, given: dict[str, Any]) -> Any:
        length = given["input_ids"].shape[1]
        return forward(input_ids=given["input_ids"], attention_mask=torch.ones(1, 1, length, length, dtype=torch.bool))

    tested = changed(monkeypatch, both_ways)
    with pytest.raises(ModelError, match="not a causal language model"):
        find_way(tested)


def test_a_state_in_the_modules_is_found() -> None:
    (recurrent,) = (item for item in ALL if item.kind == "recurrent_gemma")
    tested = recurrent.build()
    assert find_way(tested) == WHOLE
    together = texts(tested, PROMPTS)
    assert together == [texts(tested, [prompt])[0] for prompt in PROMPTS]


def test_the_test_runs_once_and_leaves_the_model_as_it_was() -> None:
    tested = model().train()
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    tested.register_forward_pre_hook(count)
    before = torch.get_rng_state()
    assert find_way(tested) == PADDED
    assert 0 < calls <= 8
    assert find_way(tested) == PADDED
    assert calls <= 8
    assert tested.training
    assert torch.equal(torch.get_rng_state(), before)


def test_corrupted_weights_are_left_to_the_sampler() -> None:
    tested = model()
    with torch.no_grad():
        tested.transformer.ln_f.weight.fill_(torch.nan)
    assert find_way(tested) == PADDED


def test_a_model_of_few_positions_is_read() -> None:
    for positions in (3, 4, 8):
        tested = model(positions=positions)
        with inference(tested):
            assert find_way(tested) == PADDED
