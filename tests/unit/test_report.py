"""The report: complete, honest about what is missing, safe with any text, and without a single outside address."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetale import formatting
from finetale.errors import RunError
from finetale.report import charts, comparison_table, model_card, render_report, write_report
from finetale.rundir import RunDirectory, write_json

VERDICT = "On text it never saw, perplexity fell from 61.3 to 24.8 (−59.6%, 95% interval −62.1% to −56.8%)."
STORY = """ there lived a miller who kept the slow clock of Pellimoor.

“It runs,” said the miller, “when the river does.”  And nobody in the village had ever seen the river run."""


def split(perplexity: float, tokens: int = 18_412) -> dict[str, Any]:
    """What compare writes of one model on one split."""
    loss = math.log(perplexity)
    values = {"loss": loss, "perplexity": perplexity, "word_perplexity": perplexity**1.31, "bits_per_byte": loss / 3.02}
    intervals = {name: [value * 0.96, value * 1.05] for name, value in values.items()}
    return values | {"tokens": tokens, "words": 14_020, "bytes": 80_233, "documents": 31, "interval": intervals}


def example() -> dict[str, Any]:
    """A comparison with everything in it."""

    def samples(*texts: str) -> list[dict[str, Any]]:
        ends = ["length", "end"]
        return [
            {"prompt": prompt, "text": text, "seed": seed, "num_tokens": 120 - 33 * seed, "finish_reason": ends[seed]}
            for prompt in ("Once upon a time", "Why the Tarrow runs both ways\n\nIn the days when")
            for seed, text in enumerate(texts)
        ]

    def metrics(distinct: float, words: int, match: str) -> dict[str, Any]:
        shares = {"distinct_1": distinct, "distinct_2": distinct + 0.3, "distinct_3": distinct + 0.38}
        return shares | {"repetition": 0.08 - distinct / 10, "longest_match": {"words": words, "text": match}}

    change = {"percent": -59.6, "interval": [-62.1, -56.8], "excludes_zero": True, "per": "token"}
    return {
        "schema_version": 1,
        "verdict": VERDICT,
        "improved": True,
        "interval_unit": "document",
        "prompts": ["Once upon a time", "Why the Tarrow runs both ways\n\nIn the days when"],
        "settings": {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "max_new_tokens": 120, "seed": 0},
        "before": {
            "name": "gpt2",
            "parameters": 124_439_808,
            "validation": split(61.3),
            "test": split(58.9),
            "samples": samples(
                ", the company said it would be the first of its kind in the country. " * 3,
                ", I was a big fan of the game, and I have to say that it is a very good game.",
            ),
            "sample_metrics": metrics(0.41, 5, "at the end of the"),
        },
        "after": {
            "name": "runs/tales",
            "parameters": 124_439_808,
            "validation": split(24.8),
            "test": split(26.1),
            "samples": samples(STORY, ", when the ferry was still a plank,\n\tthe Nibbets came down to drink."),
            "sample_metrics": metrics(0.52, 9, "and nobody in the village had ever seen the"),
        },
        "change": {
            "validation": change | {"documents": [-71.5 + 2.6 * index for index in range(31)]},
            "test": change | {"percent": -55.7, "interval": [-58.8, -52.0]},
        },
    }


def example_metrics() -> list[dict[str, Any]]:
    """The events of a run of 240 steps."""
    events: list[dict[str, Any]] = []
    for step in range(241):
        loss = 3.1 + 1.1 * math.exp(-step / 45)
        if step:
            rate = 1e-4 * min(step / 12, 0.55 + 0.45 * math.cos(math.pi * step / 240))
            noisy = loss + 0.13 * math.sin(step * 12.9898) * math.cos(step * 4.1)
            event = {"event": "train", "step": step, "tokens": step * 8192, "loss": noisy, "learning_rate": rate}
            events.append(event | {"tokens_per_second": 1043.0, "grad_norm": 1.1, "time": 1_795_000_000.0 + step})
        if step % 48 == 0:
            at = {"step": step, "tokens": step * 8192}
            value = loss + 0.02 + max(0, step - 192) * 0.0008
            best = {"best": step <= 192}
            events.append({"event": "evaluation", "loss": value, "perplexity": math.exp(value)} | at | best)
            events.append({"event": "sample", "prompt": "Once upon a time", "text": STORY[: 20 + step]} | at)
    events.append({"event": "warning", "step": 17, "message": "Memory ran out; the micro-batch went from 8 to 4."})
    return events


def example_manifest() -> dict[str, Any]:
    """A finished run's manifest."""
    return {
        "schema_version": 1,
        "status": "finished",
        "name": "tales",
        "created": "2026-11-23T12:43:05+00:00",
        "finished": "2026-11-23T13:15:49+00:00",
        "seconds": 1964.2,
        "steps": 240,
        "best_step": 192,
        "seed": 0,
        "versions": {"finetale": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
        "hardware": {"cpu": "AMD EPYC 9R14", "cores": 2, "memory_bytes": 16 * 2**30, "gpu": None},
        "base": {
            "name": "gpt2",
            "kind": "hub",
            "revision": "607a30d7",
            "sha256": "248d" * 16,
            "parameters": 124_439_808,
        },
        "data_sha256": "9af1" * 16,
        "config": {
            "epochs": 3.0,
            "learning_rate": 1e-4,
            "batch_size": 8,
            "block_size": 1024,
            "seed": 0,
            "sources": ["tales/"],
        },
        "command": ["finetale", "train", "my tales/", "--model", "gpt2"],
        "peak_memory_bytes": 5_912_330_240,
        "tokens_per_second": 1043.4,
    }


def example_data() -> dict[str, Any]:
    """A run's data account."""
    bins = [(0, 1000, 41), (1000, 2000, 118), (2000, 5000, 260), (5000, 10_000, 164), (10_000, None, 29)]
    kinds = [("undecodable bytes", 3, "read as Windows-1252"), ("mixed newlines", 12, "")]
    return {
        "tokens": {"read": 702_113, "trained": 655_360, "validation": 18_412, "test": 19_207, "dropped": 9_134},
        "dropped": [{"reason": "exact duplicate of another document", "documents": 11, "tokens": 9_134}],
        "text": {
            "documents": 612,
            "characters": 3_011_872,
            "words": 533_410,
            "length_histogram": [{"from": low, "to": high, "documents": number} for low, high, number in bins],
            "languages": [
                {"language": "English", "sampled_documents": 19},
                {"language": "French", "sampled_documents": 1},
            ],
            "duplicates": {"documents": 11, "examples": []},
            "splits": {
                "train": {"documents": 550, "characters": 2_850_410, "words": 505_001, "bytes": 2_870_000},
                "validation": {"documents": 31, "characters": 79_911, "words": 14_020, "bytes": 80_233},
                "test": {"documents": 31, "characters": 81_551, "words": 14_389, "bytes": 82_012},
            },
            "overlap": {"documents": 0, "examples": []},
            "skipped": {"hidden": 2, "linked_folders": 0, "other": {".docx": 3}},
            "cleaning": {"newlines": 12},
            "problems": [
                {
                    "file": f"tales/{index}.txt",
                    "line": 7,
                    "kind": kind,
                    "count": count,
                    "detail": detail,
                    "fatal": False,
                }
                for index, (kind, count, detail) in enumerate(kinds)
            ],
            "split_rule": "By a hash of each document’s content: 90% training, 5% validation, 5% test.",
            "files": [{"file": "tales/0.txt"}, {"file": "tales/1.txt"}],
            "more_files": 610,
            "more_problems": 1500,
        },
        "warnings": ["3 tokens of the text are unknown to the tokenizer."],
        "blocks": {"size": 1024, "count": 641, "padding_share": 0.0009},
    }


class Page(HTMLParser):
    """What the tests look at in a page: tags, attributes, text by tag, headings in order."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> str:
        return " ".join(" ".join(self.text.get(tag, [])).split())


def full_page(**changes: Any) -> str:
    parts = {"metrics": example_metrics(), "manifest": example_manifest(), "data": example_data()} | changes
    return render_report(parts.pop("comparison", example()), **parts)


# ------------------------------------------------------------------------------------------------------- the page


def test_page_is_well_formed_and_complete() -> None:
    page = Page(full_page())
    assert page.open == []
    assert page.all("h1") == VERDICT
    assert page.text["h2"] == [
        "The numbers",
        "Samples, side by side",
        "Does it copy?",
        "How it learned",
        "The text it learned from",
        "How it was made",
        "How to use it",
    ]
    assert page.tags.count("article") == 8  # two prompts, two samples, two models
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 4  # two charts, each for wide and for narrow pages


def test_headings_do_not_skip_a_level() -> None:
    levels = [int(tag[1]) for tag in Page(full_page()).tags if re.fullmatch("h[1-6]", tag)]
    assert len(levels) > 15
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_table_header_has_a_scope_and_every_chart_a_label() -> None:
    page = Page(full_page())
    assert page.tags.count("th") == sum(name == "scope" for tag, name, _ in page.attributes if tag == "th") > 30
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == 4
    assert all(labels)


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = full_page()
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"} & set(page.tags)
    references = [
        value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "srcset")
    ]
    assert len(references) > 10  # the charts refer to their own marks
    assert all(value.startswith("#") and value[1:] in page.ids for value in references)
    inner = re.findall(r"url\(([^)]*)\)", html)
    assert len(inner) > 4
    assert all(value.startswith("#") and value[1:] in page.ids for value in inner)
    assert "@import" not in html
    assert "//" not in html
    policy = [
        value for tag, name, value in page.attributes if tag == "meta" and name == "content" and "default" in value
    ]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


@pytest.mark.parametrize(
    ("improved", "state"),
    [
        (True, "It got better"),
        (False, "It did not get better"),
        (None, "Whether it got better is not known"),
    ],
)
def test_verdict_has_three_states(improved: bool | None, state: str) -> None:
    page = Page(full_page(comparison=example() | {"improved": improved, "verdict": "As measured."}))
    assert page.all("h1") == "As measured."
    assert state in page.all("p")
    assert state.lower() in page.all("title")
    classes = [value for tag, name, value in page.attributes if tag == "header" and name == "class"]
    assert classes == [{True: "better", False: "not-better", None: "unknown"}[improved]]


def test_foreign_text_is_escaped_everywhere() -> None:
    evil = "<script>alert(1)</script>{{ 7*7 }}{% raw %}</style>&amp;\"'"

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return (
            value + evil
            if isinstance(value, str) and value not in ("train", "evaluation", "sample", "warning")
            else value
        )

    comparison, manifest, data = poison(example()), poison(example_manifest()), poison(example_data())
    manifest["config"]["<b>x</b>"] = 1
    data["text"]["splits"]["<b>y</b>"] = {"documents": 1}
    metrics = [event | {"event": event["event"]} for event in poison(example_metrics())]
    html = render_report(comparison, metrics=metrics, manifest=manifest, data=data)
    page = Page(html)
    assert page.open == []
    assert not {"script", "b"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert html.count("{{ 7*7 }}") > 30
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "49" not in page.all("h1")


def test_samples_keep_their_white_space_and_mark_the_prompt() -> None:
    html = full_page()
    assert f"<mark>Once upon a time</mark>{STORY}</p>" in html
    assert "a plank,\n\tthe Nibbets" in html
    assert re.search(r"\.prose \{[^}]*white-space: pre-wrap", html)


def test_samples_meet_by_prompt_and_seed() -> None:
    comparison = example()
    comparison["after"]["samples"] = comparison["after"]["samples"][:0:-1]  # other order, the very first missing
    html = full_page(comparison=comparison)
    assert html.count("No sample.") == 1
    assert Page(html).tags.count("article") == 8


def test_a_missing_test_split_leaves_no_hole() -> None:
    comparison = example()
    for part in ("before", "after", "change"):
        comparison[part]["test"] = None
    html = full_page(comparison=comparison)
    assert "Validation text" in html
    assert "Test text" not in html
    assert len(comparison_table(comparison)) == 4 + 5


def test_a_page_without_a_run_tells_what_it_can() -> None:
    page = Page(render_report(example()))
    assert page.text["h2"] == ["The numbers", "Samples, side by side", "Does it copy?", "How to use it"]
    assert page.all("h1") == VERDICT
    assert "finetale generate runs/tales" in page.all("pre")


def test_an_empty_comparison_still_gives_a_page() -> None:
    page = Page(render_report({}))
    assert page.open == []
    assert page.all("h1") == "The model was not compared with the one it came from."
    assert page.text["h2"] == ["How to use it"]


@pytest.mark.parametrize("filler", [None, [], {}, "text", 0, True])
def test_no_key_of_another_shape_stops_the_report(filler: Any) -> None:
    whole = {"comparison": example(), "manifest": example_manifest(), "data": example_data()}
    del whole["comparison"]["change"]["validation"]["documents"]  # its charts would take the time of all the rest
    tried = 0
    for part, value in whole.items():
        for keys in _paths(value):
            changed = copy.deepcopy(whole)
            place = changed[part]
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = filler
            assert "</html>" in render_report(changed["comparison"], manifest=changed["manifest"], data=changed["data"])
            assert model_card(changed["manifest"], changed["comparison"], changed["data"]).startswith("---\n")
            tried += 1
    assert tried > 60


def _paths(value: Any, depth: int = 2) -> list[tuple[str, ...]]:
    if not isinstance(value, dict) or not depth:
        return []
    return [path for key in value for path in [(key,), *((key, *rest) for rest in _paths(value[key], depth - 1))]]


def test_an_unbalanced_account_is_said() -> None:
    data = example_data()
    assert "The account balances to the token." in full_page(data=data)
    data["tokens"]["trained"] -= 12
    html = full_page(data=data)
    assert "The account does not balance: 12 tokens are not accounted for." in html
    assert "balances to the token" not in html


@pytest.mark.parametrize(("words", "warned"), [(0, False), (11, False), (12, True)])
def test_copying_is_warned_of_from_twelve_words_on(words: int, warned: bool) -> None:
    comparison = example()
    comparison["after"]["sample_metrics"]["longest_match"]["words"] = words
    assert ("repeats what it was trained on" in full_page(comparison=comparison)) is warned
    assert ("more than chance" in model_card(example_manifest(), comparison, None)) is warned


def audited(memorised: int, personal: int = 0) -> dict[str, Any]:
    example_of = {"place": "a.txt:3", "tokens": 9, "bits": 80.0, "personal_data": False, "text": "| a *passage* <b>"}
    training = {"tokens": 20_000, "of_tokens": 80_000, "memorised_tokens": memorised, "passages": 2 if memorised else 0}
    training |= {"with_personal_data": personal, "examples": [example_of] if memorised else []}
    held_out = {"tokens": 5_000, "of_tokens": 5_000, "memorised_tokens": 0, "passages": 0, "with_personal_data": 0}
    return example() | {"memorisation": {"training": training, "held_out": held_out}}


@pytest.mark.parametrize(
    ("memorised", "personal", "says", "warned"),
    [
        (0, 0, "the model writes no passage word for word when given what stands before.", False),
        (19, 0, "writes <0.1% word for word when given what stands before, in 2 passages.", False),
        (300, 0, "writes 1.5% word for word when given what stands before, in 2 passages.", True),
        (10, 1, "in 2 passages, 1 of them with personal data.", True),
    ],
)
def test_what_is_known_by_heart_is_told(memorised: int, personal: int, says: str, warned: bool) -> None:
    comparison = audited(memorised, personal)
    html = full_page(comparison=comparison)
    card = model_card(example_manifest(), comparison, None)
    plain = html.replace("&lt;", "<")
    assert says in plain
    assert "Of 20,000 tokens of the training text that were looked through (25.0% of it)" in plain
    assert "Of text it never saw: 0.0%." in plain
    assert ("Fewer epochs, more text" in plain) is warned
    assert ("&lt;b&gt;" in html) is bool(memorised), "examples are shown as they are"
    assert says in card.replace("\\<", "<")
    assert "<b>" not in card, "a card is published; it has no examples"
    assert "this was not measured" not in card
    without = full_page(comparison=example())
    assert "looked through" not in without


def test_other_tokenizers_are_not_compared_by_token() -> None:
    comparison = example()
    comparison["before"]["validation"]["tokens"] = 20_000
    rows = {row[0]: row for row in comparison_table(comparison)}
    assert rows["validation: perplexity a token"][3] == "not comparable"
    assert rows["validation: loss, nats a token"][3] == "not comparable"
    assert rows["validation: bits a byte"][3] == "−22.0%"
    html = full_page(comparison=comparison)
    assert "different tokens" in html
    assert "Perplexity on the validation text" not in html
    assert "Perplexity on the test text" in html


def test_a_change_by_word_stands_with_the_words() -> None:
    comparison = example()
    comparison["change"]["validation"] |= {"per": "word", "percent": -41.0, "interval": [-44.0, -38.5]}
    rows = {row[0]: row[3] for row in comparison_table(comparison)}
    assert rows["validation: perplexity a word"] == "−41.0% [−44.0% to −38.5%]"
    assert rows["validation: perplexity a token"] == rows["validation: loss, nats a token"] == "not comparable"
    assert rows["test: perplexity a token"].startswith("−55.7%")


def test_a_change_by_byte_stands_with_the_bytes() -> None:
    comparison = example() | {"same_tokenizer": False}
    comparison["change"]["validation"] |= {"per": "byte", "percent": -41.0, "interval": [-44.0, -38.5]}
    rows = {row[0]: row[3] for row in comparison_table(comparison)}
    assert rows["validation: bits a byte"] == "−41.0% [−44.0% to −38.5%]"
    assert rows["validation: perplexity a token"] == rows["validation: loss, nats a token"] == "not comparable"
    rows = {row[0]: row[3] for row in comparison_table(comparison | {"same_tokenizer": True})}
    assert rows["validation: bits a byte"] == "−41.0% [−44.0% to −38.5%]"
    assert rows["validation: perplexity a token"].startswith("−59.5%"), "comparable, but the verdict is by byte"


def test_words_that_white_space_does_not_separate_have_no_row() -> None:
    comparison = example()
    for side in ("before", "after"):
        for name in ("validation", "test"):
            comparison[side][name] |= {"word_perplexity": None, "words": None}
    html = full_page(comparison=comparison)
    assert "a word" not in " ".join(row[0] for row in comparison_table(comparison))
    assert "14,020 words" in full_page()
    assert "14,020 words" not in html


def test_intervals_say_where_they_come_from() -> None:
    for given, said in (
        ({"interval_method": "jackknife-t"}, "from a jackknife over documents"),
        ({"interval_unit": "document"}, "from a bootstrap over documents"),
        ({"interval_unit": "piece"}, "from a bootstrap over pieces of the text"),
    ):
        comparison = example() | given
        assert said in full_page(comparison=comparison)
        assert said in model_card(example_manifest(), comparison, None)


def test_without_intervals_none_are_spoken_of() -> None:
    comparison = example()
    for name in ("validation", "test"):
        comparison["before"][name]["interval"] = comparison["after"][name]["interval"] = None
        comparison["change"][name] |= {"interval": None, "excludes_zero": None}
    html = full_page(comparison=comparison)
    assert "There are no 95% intervals" in html
    assert 'whisker"' not in html
    assert "has too few documents for them, so the figures hold for this text only" in html
    card = model_card(example_manifest(), comparison, None).split("---\n", 2)[2]
    assert "In brackets" not in card
    assert "The figures hold for this held-out text only, which has too few documents for 95% intervals." in card


def test_what_is_known_of_the_text_is_shown() -> None:
    assert "3 tokens of the text are unknown" in Page(full_page()).all("li")
    text = " ".join(Page(full_page()).text["dd"])
    assert "612" in text
    assert "hidden 2, .docx 3" in text
    assert "English 19, French 1" in text
    assert "641 of 1,024 tokens, <0.1% of them padding" in text
    assert "And 1,500 more; data.json lists the first 2." in full_page()


def test_an_unfinished_run_is_called_so() -> None:
    assert "its status is “interrupted” after 240 steps" in full_page(
        manifest=example_manifest() | {"status": "interrupted"}
    )


@pytest.mark.parametrize("path", ["/home/ada/secret/tales", "C:\\Users\\ada\\secret\\tales"])
def test_private_folders_stay_private(path: str) -> None:
    comparison, manifest = example(), example_manifest()
    manifest["base"] = {"name": path, "kind": "local"}
    comparison["before"]["name"] = comparison["after"]["name"] = path
    for made in (full_page(comparison=comparison, manifest=manifest), model_card(manifest, comparison, None)):
        assert "secret" not in made
        assert "tales" in made


# ------------------------------------------------------------------------------------------------------ the table


def test_rows_of_the_table() -> None:
    rows = comparison_table(example())
    assert len(rows) == 13
    assert rows[0] == (
        "validation: perplexity a token",
        "61.3 [58.8 to 64.4]",
        "24.8 [23.8 to 26.0]",
        "−59.6% [−62.1% to −56.8%]",
    )
    assert rows[3][0] == "validation: loss, nats a token"
    assert rows[3][3] == "−0.905 [−0.970 to −0.839]"
    assert rows[8] == ("samples: different words", "41.0%", "52.0%", "+11.0 points")
    assert rows[12] == ("samples: longest copied passage, words", "5", "9", "+4")


def test_huge_and_missing_numbers() -> None:
    comparison = example()
    comparison["before"]["validation"] |= {"perplexity": 1e9, "interval": {"perplexity": [9e8, None]}}
    comparison["after"]["validation"] |= {"perplexity": None, "word_perplexity": 10**400}
    comparison["change"]["validation"] = None
    first, second, *_ = comparison_table(comparison)
    assert first == ("validation: perplexity a token", "1.0 × 10⁹", "–", "–")
    assert second[2:] == ("–", "–")
    assert "1.0 × 10⁹" in full_page(comparison=comparison)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formatting.measure(8.314), "8.31"),
        (formatting.measure(12_345.6), "12,346"),
        (formatting.measure(float("nan")), "–"),
        (formatting.measure(True), "–"),
        (formatting.percent(-0.04), "0.0%"),
        (formatting.percent(123_456), "+123,456%"),
        (formatting.signed(-0.0004, 3), "0.000"),
        (formatting.share(0.0004), "<0.1%"),
        (formatting.size(5_912_330_240), "5.5 GiB"),
        (formatting.duration(1964.2), "32 min 44 s"),
        (formatting.duration(90_000), "1 d 1 h"),
        (formatting.moment("2026-11-23T12:43:05+00:00"), "23 November 2026, 12:43 UTC"),
        (formatting.moment("yesterday"), "yesterday"),
        (formatting.plain({"a": [1, True], "b": 1e-4}), "a 1, yes, b 0.0001"),
    ],
)
def test_formats(shown: str, expected: str) -> None:
    assert shown == expected


# ----------------------------------------------------------------------------------------------------- the charts


def test_charts_are_the_same_each_time_and_leave_matplotlib_as_it_was() -> None:
    import matplotlib

    curves = charts.read_curves(example_metrics())
    before = list(dict.items(matplotlib.rcParams))  # rcParams.items() would look for a display
    first = charts.loss_chart(curves, charts.WIDE)
    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 40}):
        assert charts.loss_chart(curves, charts.WIDE) == first
    assert list(dict.items(matplotlib.rcParams)) == before
    assert "loss (nats a token)</text>" in first
    assert "currentColor" in first
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'"#[^"]*"', "", first))  # every colour is the page's


def test_curves_count_a_repeated_step_once_and_skip_what_is_not_finite() -> None:
    events = [
        {"event": "train", "step": 1, "loss": 4.0, "learning_rate": 1e-4},
        {"event": "train", "step": 2, "loss": float("nan")},
        {"event": "train", "step": 1, "loss": 3.0},
        {"event": "evaluation", "step": 0, "loss": 4.5, "best": True},
        {"event": "evaluation", "step": 1, "loss": None, "best": True},
        {"event": "train", "loss": 1.0},
    ]
    curves = charts.read_curves(events)
    assert curves == charts.Curves(training=[(1, 3.0)], rate=[(1, 1e-4)], evaluations=[(0, 4.5)], best=0)


def test_smoothing_keeps_a_straight_line_and_levels_noise() -> None:
    line = [(step, 2.0 - 0.01 * step) for step in range(200)]
    assert charts.smooth(line) == [(step, pytest.approx(value)) for step, value in line]
    noisy = charts.smooth([(step, value + 0.3 * (-1) ** step) for step, value in line])
    assert all(abs(found - value) < 0.15 for (_, found), (_, value) in zip(noisy, line, strict=True))
    assert charts.smooth([(5, 1.0)]) == [(5, 1.0)]


def test_a_long_run_keeps_its_chart_small() -> None:
    events = [{"event": "train", "step": step, "loss": 3.0 + step % 7} for step in range(20_000)]
    assert 10_000 < len(charts.loss_chart(charts.read_curves(events), charts.WIDE)) < 80_000


def test_no_events_no_chart() -> None:
    assert charts.loss_chart(charts.read_curves([]), charts.WIDE) == ""
    assert charts.change_chart([], charts.WIDE) == ""
    page = Page(full_page(metrics=[], comparison=example() | {"change": {}}))
    assert "svg" not in page.tags
    assert "How it learned" not in page.text["h2"]


# -------------------------------------------------------------------------------------------------- the model card


def parse_card(card: str) -> tuple[dict[str, Any], str]:
    _, front_matter, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front_matter)
    assert isinstance(metadata, dict)
    return metadata, body


def test_model_card_has_metadata_numbers_and_the_account() -> None:
    metadata, body = parse_card(model_card(example_manifest(), example(), example_data()))
    assert metadata["base_model"] == "gpt2"
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-generation"
    assert metadata["language"] == ["en"]  # French is below a tenth
    assert "license" not in metadata
    results = metadata["model-index"][0]["results"]
    assert [result["metrics"][0]["value"] for result in results] == [24.8, 26.1]
    assert f"> {VERDICT}" in body
    assert (
        "| validation: perplexity a token | 61.3 (58.8 to 64.4) | 24.8 (23.8 to 26.0) | −59.6% (−62.1% to −56.8%) |"
        in body
    )
    assert "| **read** | **702,113** | |" in body
    assert "- exact duplicate of another document: 11 documents, 9,134 tokens" in body
    assert "| `learning_rate` | 0.0001 |" in body
    assert "AutoModelForCausalLM.from_pretrained" in body
    assert "\n\n\n" not in body


@pytest.mark.parametrize(
    "name", ["no: yes", "---", "'\"", "- #x", "名前 \u2028 x", "{a}: [b]", "null", "1e3", "a\nb: c", "\ud800"]
)
def test_awkward_names_come_back_from_the_front_matter(name: str) -> None:
    card = model_card(example_manifest() | {"name": name}, example(), None)
    card.encode("utf-8")
    metadata = yaml.safe_load(re.match(r"---\n(.*?\n)---\n\n", card, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert metadata["model-index"][0]["name"] == name.replace("\ud800", "?")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({"name": "uer/gpt2-chinese-cluecorpussmall", "kind": "hub"}, "uer/gpt2-chinese-cluecorpussmall"),
        ({"name": "models/mine", "kind": "local"}, None),
        ({"name": "new:1m", "kind": "new"}, None),
        ({"name": "a/b/c", "kind": "hub"}, None),
    ],
)
def test_only_a_hub_id_is_a_base_model(base: dict[str, str], expected: str | None) -> None:
    metadata, _ = parse_card(model_card({"base": base}, None, None))
    assert metadata.get("base_model") == expected


def test_model_card_shows_foreign_text_as_it_is() -> None:
    comparison, manifest, data = example(), example_manifest(), example_data()
    comparison["after"]["samples"][0] |= {"text": " x\n```\n# no heading {{ 7*7 }}\n````", "prompt": "a ` b"}
    comparison["verdict"] = "# <b>bold</b> | [link](x)"
    data["dropped"][0]["reason"] = "in <script>\n\n# heading"
    _, body = parse_card(model_card(manifest, comparison, data))
    assert "`````text\n x\n```\n# no heading {{ 7*7 }}\n````\n`````" in body
    assert "`` a ` b ``" in body
    assert "> \\# \\<b\\>bold\\</b\\> \\| \\[link\\](x)" in body
    assert "- in \\<script\\> \\# heading: 11 documents" in body


def test_a_card_of_nothing_is_still_a_card() -> None:
    metadata, body = parse_card(model_card({}, None, None))
    assert metadata["library_name"] == "transformers"
    assert "model-index" not in metadata
    assert "was not compared" in body
    assert "this was not measured" in body


# ----------------------------------------------------------------------------------------------------- from a run


def test_write_report_from_a_run_directory(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    write_json(run.manifest, example_manifest())
    write_json(run.data, example_data())
    write_json(run.comparison, example() | {"verdict": "Better. \\ud800"})
    run.comparison.write_text(run.comparison.read_text("utf-8").replace("\\\\ud800", "\\ud800"), "utf-8")
    lines = [json.dumps(event) for event in example_metrics()]
    run.metrics.write_text("\n".join([*lines, '{"event": "train", "st']), "utf-8")
    assert write_report(run) == run.report
    page = Page(run.report.read_text("utf-8"))
    assert page.all("h1") == "Better. ?"
    assert page.tags.count("svg") == 4
    names = sorted(path.name for path in run.root.iterdir())
    assert names == ["comparison.json", "data.json", "metrics.jsonl", "report.html", "run.json"]
    first = run.report.read_bytes()
    write_report(run)
    assert run.report.read_bytes() == first


def test_write_report_needs_only_the_comparison(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(RunError, match=r"comparison\.json is missing.*finetale compare"):
        write_report(run)
    assert list(tmp_path.iterdir()) == []
    write_json(run.comparison, example())
    assert VERDICT in write_report(run).read_text("utf-8")


def test_report_does_not_load_torch() -> None:
    code = "import sys, finetale.report; print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
