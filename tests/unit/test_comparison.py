"""Test the comparison: the verdict, the figures of the samples, copies of training text, and the choice of prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finetale import tokens
from finetale.comparison import (
    Side,
    build,
    draw_samples,
    first_prompt,
    held_out_prompts,
    longest_copies,
    sample_metrics,
)
from finetale.config import CompareSettings
from finetale.metrics import Measurement
from finetale.schema import Sample
from finetale.text.languages import COMMON_WORDS, SCRIPTS
from finetale.text.openings import OPENINGS
from tiny import loaded, part, store, tokenizer

SETTINGS = CompareSettings.resolve({})
FIGURES = {"loss", "perplexity", "word_perplexity", "bits_per_byte", "tokens"}


def measured(
    losses: Iterable[float], *, tokens: float = 100.0, words: float = 50.0, spaced: bool = True
) -> Measurement:
    """Return the measurement of documents of equal length with these losses per token."""
    nats = np.array(list(losses)) * tokens
    full = np.ones(len(nats))
    return Measurement(nats, full * tokens, full * words, full * 400, spaced=spaced)


def spread(mean: float, number: int = 30, seed: int = 0, width: float = 0.5) -> list[float]:
    """Return losses that vary around a mean and have exactly this mean."""
    drawn = np.random.default_rng(seed).normal(0, width, number)
    return [float(value) for value in mean + drawn - drawn.mean()]


def side(name: str, samples: Iterable[str] = (), kind: str = "local", **measurements: Measurement) -> Side:
    """Return one side of a comparison, without a model."""
    model: Any = SimpleNamespace(provenance=SimpleNamespace(parameters=1234, kind=kind))
    return Side(name, model, measurements, [Sample(prompt="p", text=text, seed=0, num_tokens=1) for text in samples])


def compared(
    before: Side,
    after: Side,
    *,
    same_tokenizer: bool = True,
    training_texts: Callable[[], Iterable[str]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    found = build(
        before, after, SETTINGS, ["p"], same_tokenizer=same_tokenizer, training_texts=training_texts, **options
    )
    return found.to_dict()


def both(old: Measurement, new: Measurement, **options: Any) -> dict[str, Any]:
    return compared(side("base", test=old), side("run", test=new), **options)


# The verdict


def test_verdict_better() -> None:
    old = spread(math.log(60))
    result = both(measured(old), measured([loss - math.log(2) for loss in old]))
    assert (
        result["verdict"]
        == "On text it never saw, perplexity fell from 60.0 to 30.0 (−50.0%, 95% interval −50.0% to −50.0%)."
    )
    assert (result["improved"], result["judged_on"], result["interval_unit"]) == (True, "test", "document")


def test_verdict_worse() -> None:
    old = spread(math.log(20))
    result = both(measured(old), measured([loss + math.log(1.5) for loss in old]))
    assert result["verdict"] == (
        "The model did not get better: on text it never saw, perplexity rose from 20.0 to 30.0 "
        "(+50.0%, 95% interval +50.0% to +50.0%)."
    )
    assert result["improved"] is False


def test_verdict_worse_within_chance() -> None:
    result = both(measured(spread(3.0)), measured(spread(3.001, seed=1)))
    assert result["verdict"].startswith(
        "The model did not get better: on text it never saw, perplexity rose from 20.1 to"
    )
    assert result["change"]["test"]["excludes_zero"] is False
    assert result["improved"] is False


def test_verdict_unchanged() -> None:
    result = both(measured(spread(math.log(20))), measured(spread(math.log(20))))
    assert result["verdict"] == "The model did not get better: on text it never saw, perplexity stayed at 20.0."
    assert result["improved"] is False


def test_verdict_unclear() -> None:
    result = both(measured(spread(3.0)), measured(spread(2.99, seed=1)))
    low, high = result["change"]["test"]["interval"]
    assert low < 0 < high
    assert result["verdict"] == (
        "It is not clear that the model got better: on text it never saw, perplexity went from 20.1 to 19.9 "
        f"(−1.0%, 95% interval −{-low:.1f}% to +{high:.1f}%), and the interval includes no change."
    )
    assert result["improved"] is False


def test_verdict_with_nothing_held_out() -> None:
    result = compared(side("base"), side("run"))
    assert result["verdict"] == "There was no held-out text, so it is unknown whether the model got better."
    assert (result["improved"], result["judged_on"], result["interval_unit"]) == (None, None, None)
    assert result["change"] == {"validation": None, "test": None}


def test_verdict_on_too_few_documents_is_limited_to_this_text() -> None:
    result = both(measured([math.log(20)]), measured([math.log(10)]))
    assert result["verdict"] == (
        "On text it never saw, perplexity fell from 20.0 to 10.0 (−50.0%). "
        "This is one document, so the figures hold for this text only."
    )
    assert (result["improved"], result["improved_reason"]) == (None, "too few documents")
    assert (result["interval_unit"], result["interval_method"]) == (None, None)
    assert result["before"]["test"]["interval"] is None
    result = both(measured(spread(2.0, 4)), measured(spread(3.0, 4)))
    assert result["verdict"] == (
        "The model did not get better: on text it never saw, perplexity rose from 7.4 to 20.1 (+171.8%). "
        "These are 4 documents, too few for an interval, so the figures hold for this text only."
    )
    assert (result["improved"], result["improved_reason"]) == (False, None)
    assert both(measured(spread(3.0, 5)), measured(spread(2.0, 5)))["improved"] is True


def test_verdict_on_different_tokenizers_is_by_byte() -> None:
    losses = spread(1.0, width=0.05)
    old, new = measured(losses, tokens=200), measured([loss * 1.5 for loss in losses], tokens=100)
    result = both(old, new, same_tokenizer=False)
    assert result["verdict"].startswith(
        "On text it never saw, bits per byte fell from 0.721 to 0.541 (−25.0%, 95% interval −25.0% to −25.0%)."
    )
    assert result["after"]["test"]["perplexity"] > result["before"]["test"]["perplexity"]  # has no meaning here
    assert (result["improved"], result["same_tokenizer"], result["change"]["test"]["per"]) == (True, False, "byte")


def test_verdict_on_text_without_spaces_is_by_byte() -> None:
    losses = spread(2.0)
    old, new = measured(losses, words=1, spaced=False), measured([loss / 2 for loss in losses], words=1, spaced=False)
    result = both(old, new)
    assert result["verdict"].startswith("On text it never saw, bits per byte fell from 0.721 to 0.361 (−50.0%, ")
    assert result["after"]["test"]["word_perplexity"] is None
    assert (result["same_tokenizer"], result["change"]["test"]["per"]) == (True, "byte")


def test_different_numbers_of_documents_give_no_interval() -> None:
    result = both(measured(spread(3.0, 30)), measured(spread(2.0, 29)), same_tokenizer=False)
    assert result["verdict"].endswith(
        " There is no interval: one model read 30 documents of the text and the other 29."
    )
    assert result["improved"] is None


def test_verdict_on_only_validation_text_says_that_it_chose_the_step() -> None:
    old, new = measured(spread(3.0)), measured(spread(2.0))
    result = compared(side("base", validation=old), side("run", validation=new))
    assert result["verdict"].startswith(
        "On the validation text, which also chose the step that was kept, perplexity fell from 20.1 to 7.4 (−63.2%, "
    )
    result = compared(side("base", validation=old), side("run", validation=new), shared={"validation": 0.25})
    assert result["verdict"].startswith(
        "On the validation text, which also chose the step that was kept and of which 25% also occurs in the training "
        "text, perplexity fell from "
    )


def test_verdict_names_text_shared_with_training() -> None:
    result = both(measured(spread(3.0)), measured(spread(2.0)), shared={"test": 0.25})
    assert result["verdict"].startswith(
        "On held-out text of which 25% also occurs in the training text, perplexity fell from "
    )
    assert "never saw" in both(measured(spread(3.0)), measured(spread(2.0)), shared={"test": 0.009})["verdict"]


def test_verdict_does_not_call_a_given_text_held_out() -> None:
    result = both(measured(spread(3.0)), measured(spread(2.0)), is_held_out=False)
    assert result["verdict"].startswith("On the given text, perplexity fell from ")


def test_a_gain_over_random_weights_does_not_count_as_improved() -> None:
    old, new = measured(spread(9.0)), measured(spread(2.0))
    result = compared(side("new:1m", kind="new", test=old), side("run", test=new))
    assert result["verdict"].startswith(
        "Compared with random weights, which any training beats: on text it never saw, perplexity fell from 8,103 to "
    )
    assert (result["improved"], result["improved_reason"]) == (None, "random base")
    worse = compared(side("new:1m", kind="new", test=new), side("run", test=old))
    assert (worse["improved"], worse["improved_reason"]) == (False, None)


def test_verdict_on_huge_perplexities_is_readable() -> None:
    result = both(measured([math.log(4e7)]), measured([math.log(12_345)]))
    assert "perplexity fell from 4.00e+07 to 12,345 (" in result["verdict"]


def test_the_verdict_prefers_the_test_text_to_the_validation_text() -> None:
    better, worse = measured(spread(2.0)), measured(spread(3.0))
    result = compared(
        side("base", validation=worse, test=better),
        side("run", validation=better, test=worse),
    )
    assert (result["judged_on"], result["improved"]) == ("test", False)
    result = compared(side("base", validation=worse), side("run", validation=better))
    assert (result["judged_on"], result["improved"]) == ("validation", True)
    result = compared(side("base", validation=worse, test=worse), side("run", validation=better))
    assert (result["judged_on"], result["change"]["test"]) == ("validation", None)


# The content of comparison.json


def test_the_keys_of_comparison_json() -> None:
    before = side("gpt2", ["one two three four five"], validation=measured(spread(3.0)), test=measured(spread(3.1)))
    after = side("run", ["six seven"], validation=measured(spread(2.0)))
    result = compared(before, after, training_texts=lambda: ["zero one two three four"])
    assert set(result) >= {
        "schema_version",
        "verdict",
        "improved",
        "judged_on",
        "prompts",
        "settings",
        "before",
        "after",
    }
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    names = {"name", "parameters", "validation", "test", "samples", "sample_metrics"}
    for key, given in (("before", before), ("after", after)):
        found = result[key]
        assert set(found) >= names
        assert (found["name"], found["parameters"]) == (given.name, 1234)
        assert [sample["text"] for sample in found["samples"]] == [sample.text for sample in given.samples]
        for split in ("validation", "test"):
            if split in given.measurements:
                assert set(found[split]) >= FIGURES
                assert found[split]["tokens"] == 3000
            else:
                assert found[split] is None
    assert result["before"]["validation"]["loss"] == pytest.approx(3.0)
    assert result["before"]["test"]["loss"] == pytest.approx(3.1)
    assert result["after"]["validation"]["loss"] == pytest.approx(2.0)
    assert result["before"]["sample_metrics"]["longest_match"] == {"words": 4, "text": "one two three four"}
    assert result["after"]["sample_metrics"]["longest_match"] == {"words": 0, "text": ""}
    assert result["prompts"] == ["p"]
    assert (result["settings"]["temperature"], result["settings"]["seed"]) == (0.8, 0)


def test_intervals_are_repeatable_and_do_not_depend_on_the_seed() -> None:
    old, new = measured(spread(3.0)), measured(spread(2.9, seed=1))
    first = both(old, new)
    assert first == both(old, new)
    seeded = build(
        side("base", test=old),
        side("run", test=new),
        SETTINGS.model_copy(update={"seed": 1}),
        ["p"],
        same_tokenizer=True,
        training_texts=None,
    ).to_dict()
    assert seeded["change"] == first["change"]


# Samples


def test_samples_of_both_models_have_the_same_seeds() -> None:
    settings = CompareSettings.resolve({"num_samples": 2, "max_new_tokens": 6, "seed": 5})
    sides = [Side(name, loaded(seed)) for name, seed in (("base", 0), ("run", 1), ("base again", 0))]
    calls: list[str] = []
    for item in sides:
        draw_samples(item, ["The lamp", "A heron"], settings, lambda: calls.append("between"))
    assert len(calls) > 3 * 2 * 4  # between prompts and between tokens
    seeds = [[(sample.prompt, sample.seed) for sample in item.samples] for item in sides]
    assert seeds[0] == seeds[1] == seeds[2]
    assert [prompt for prompt, _ in seeds[0]] == ["The lamp"] * 2 + ["A heron"] * 2
    assert len({sample.text for sample in sides[0].samples[:2]}) == 2  # of one prompt
    assert sides[0].samples == sides[2].samples
    assert [s.text for s in sides[0].samples] != [s.text for s in sides[1].samples]
    assert sides[0].samples[0].finish_reason in ("length", "end")


def test_greedy_search_gives_one_sample_and_long_prompts_are_shortened() -> None:
    item = Side("base", loaded(0, positions=16))
    settings = CompareSettings.resolve({"num_samples": 3, "temperature": 0, "max_new_tokens": 4})
    draw_samples(item, ["The lamp stood on the sill and the boat lay in the reeds. " * 3], settings)
    assert len(item.samples) == 1
    assert item.samples[0].num_tokens >= 1


def test_sample_metrics_by_hand() -> None:
    found = sample_metrics(["The cat, the CAT; the cat!", "a dog's day"])
    # words: the cat the cat the cat · a dog's day
    assert found["distinct_1"] == pytest.approx(5 / 9)
    assert found["distinct_2"] == pytest.approx(4 / 7)  # the-cat ×3, cat-the ×2, a-dog's, dog's-day
    assert found["distinct_3"] == pytest.approx(3 / 5)  # the-cat-the ×2, cat-the-cat ×2, a-dog's-day
    assert found["repetition"] == pytest.approx(1 / 3)  # the third of three 4-grams repeats the first
    assert list(found) == ["distinct_1", "distinct_2", "distinct_3", "repetition"]


def test_repetition_is_counted_within_a_sample_and_distinct_over_all() -> None:
    apart = sample_metrics(["one two three four"] * 2)
    assert apart["repetition"] == 0
    assert apart["distinct_1"] == 0.5


def test_sample_metrics_of_no_words_are_none() -> None:
    nothing = {"distinct_1": None, "distinct_2": None, "distinct_3": None, "repetition": None}
    assert sample_metrics([]) == sample_metrics(["", "…"]) == nothing
    assert sample_metrics(["one"]) == nothing | {"distinct_1": 1.0}


# Copies of the training text


def copied(sample: str, *training: str) -> dict[str, Any] | None:
    (found,) = longest_copies([[sample]], lambda: training)
    return found.to_dict() if found else None


def test_the_longest_copy_by_hand() -> None:
    training = "Once the lamp stood on the sill, and nobody came."
    assert copied("then the lamp stood on the roof", "Nothing.", training) == {
        "words": 5,
        "text": "the lamp stood on the",
    }
    assert copied(training, training) == {"words": 10, "text": training.rstrip(".")}
    assert copied("x the lamp stood on y. Sill and nobody came z", training) == {
        "words": 4,
        "text": "the lamp stood on",
    }


def test_copies_ignore_case_and_punctuation_and_are_quoted_from_the_sample() -> None:
    found = copied("So: THE LAMP — stood;\non the “Sill”!", "the lamp stood on the sill")
    assert found == {"words": 6, "text": "THE LAMP — stood;\non the “Sill"}
    assert copied("the old man's dog ran", "The old MAN'S dog ran.") == {"words": 5, "text": "the old man's dog ran"}
    assert copied("the old man's dog ran", "The old man dog ran.") == {"words": 0, "text": ""}


def test_fewer_than_four_words_are_not_a_copy() -> None:
    assert copied("one two three and more", "one two three or less") == {"words": 0, "text": ""}
    assert copied("one two three four", "one two three four five") == {"words": 4, "text": "one two three four"}
    assert copied("", "one two three four") == {"words": 0, "text": ""}


def test_copies_end_with_a_document_or_sample() -> None:
    assert copied("one two three four five", "one two three four", "five") == {"words": 4, "text": "one two three four"}
    found = longest_copies(
        [["one two three four", "five six seven eight"]], lambda: ["one two three four five six seven"]
    )
    assert [item.to_dict() for item in found if item] == [{"words": 4, "text": "one two three four"}]


def test_the_longest_copy_can_start_at_any_occurrence_of_its_words() -> None:
    sample = "a b c d x a b c d e f"
    assert copied(sample, "a b c d e f") == {"words": 6, "text": "a b c d e f"}
    assert copied("a b c d e f", "a b c d y a b c d e f") == {"words": 6, "text": "a b c d e f"}


def test_each_group_gets_its_longest_copy_in_one_pass_over_the_text() -> None:
    reads: list[int] = []

    def training() -> Iterator[str]:
        reads.append(1)
        yield "one two three four five"

    groups = [["two three four five"], ["zero", "one two three four five six"], []]
    found = longest_copies(groups, training)
    assert [item.words for item in found if item is not None] == [4, 5, 0]
    assert len(reads) == 1
    assert longest_copies(groups, None) == [None, None, None]


def test_prompts_do_not_count_as_copies() -> None:
    before, after = side("base", ["and then it rained"]), side("run", ["and then the sun shone"])
    for item in (before, after):
        item.samples[0] = item.samples[0].model_copy(update={"prompt": "The lamp stood on the sill"})
    result = compared(before, after, training_texts=lambda: ["The lamp stood on the sill and then the fish sang."])
    words = [result[key]["sample_metrics"]["longest_match"]["words"] for key in ("before", "after")]
    assert words == [0, 0]


# Prompts


def test_prompts_are_the_openings_of_test_documents_then_of_validation_documents(tmp_path: Path) -> None:
    held = store(
        tmp_path,
        [
            part("Training one two three four five six seven eight nine."),
            part("Validation one two three four five six seven eight nine.", "validation"),
            part("Test one two three four five six seven eight nine.", "test"),
            part("Other test one two three four five six seven eight.", "test"),
        ],
    )
    prompts = [
        "Test one two three four five six seven",
        "Other test one two three four five six",
        "Validation one two three four five six seven",
    ]
    for number in range(1, 4):
        assert held_out_prompts(held, tokenizer(), number) == prompts[:number]
    assert held_out_prompts(held, tokenizer(), 9) == prompts
    assert held_out_prompts(held, tokenizer(), 1, ("train",), words=3) == ["Training one two"]


def test_prompts_skip_headings_and_repeats(tmp_path: Path) -> None:
    text = "CHAPTER ONE\n\nThe Lamp\n\nThe lamp stood on the sill and the boat lay in the reeds."
    held = store(tmp_path, [part(text, "test"), part(text + " Again.", "test")])
    assert held_out_prompts(held, tokenizer(), 5) == ["The lamp stood on the sill and the"]


def test_the_longest_line_is_the_prompt_if_all_are_short(tmp_path: Path) -> None:
    held = store(tmp_path, [part("Ode\nO lamp upon the sill\nshine on", "test")])
    assert held_out_prompts(held, tokenizer(), 5) == ["O lamp upon the sill"]


@pytest.mark.parametrize(
    ("languages", "prompt"),
    [
        (["English", "Chinese"], "Once upon a time"),
        (["Chinese", "English"], "从前"),
        (["German"], "Es war einmal"),
        (["unknown"], "Training text alone."),
        (["Devanagari"], "Training text alone."),
        ([], "Training text alone."),
    ],
)
def test_without_held_out_text_the_prompt_is_in_the_language_of_the_text(
    tmp_path: Path, languages: list[str], prompt: str
) -> None:
    report = {"languages": [{"language": name, "sampled_documents": 1} for name in languages]}
    parts = [part("Training text alone."), part(" \n ", "test")]
    held = tokens.build_store(iter(parts), tokenizer(), tmp_path / "store", report=lambda: report)
    assert held_out_prompts(held, tokenizer(), 3) == [prompt]
    assert first_prompt(held, tokenizer()) == prompt


def test_the_prompt_is_empty_if_the_training_text_is_personal_data(tmp_path: Path) -> None:
    held = store(tmp_path, [part("nobody@example.org")])
    assert first_prompt(held, tokenizer()) == ""


def test_every_recognised_language_has_an_opening() -> None:
    """Two scripts are shared by many languages; for them the prompt is the first words of the text."""
    assert set(SCRIPTS) | set(COMMON_WORDS) == set(OPENINGS) | {"Arabic script", "Devanagari"}
    assert len(set(OPENINGS.values())) == len(OPENINGS) == 20


def test_text_without_spaces_has_prompts(tmp_path: Path) -> None:
    held = store(tmp_path, [part("从前有一座山，山上有一座庙，庙里有一个老和尚在讲故事。" * 20, "test")])
    prompt = held_out_prompts(held, tokenizer(), 1)[0]
    assert "\ufffd" not in prompt
    assert 2 <= len(prompt) <= 40
