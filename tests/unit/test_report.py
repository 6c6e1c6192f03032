"""Test the report: it is complete, names missing data, escapes any text, and loads nothing from other sites."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from huggingface_hub import ModelCard

from finetale import formatting
from finetale.errors import RunError
from finetale.models.cards import read_license
from finetale.report import charts, model_card, render_report, write_report
from finetale.report.table import table_rows
from finetale.rundir import RunDirectory, write_record
from finetale.schema import (
    BaseModelSource,
    BlockReport,
    Change,
    Changes,
    ComparisonFile,
    DataFile,
    DroppedTokens,
    EvaluationEvent,
    Event,
    FigureIntervals,
    Figures,
    FileReport,
    Hardware,
    LanguageCount,
    LengthBin,
    LongestMatch,
    Memorisation,
    MemorisationAudit,
    MemorisedPassage,
    MixedText,
    Problem,
    Record,
    Repeats,
    RunManifest,
    Sample,
    SampleEvent,
    SampleMetrics,
    Side,
    SkippedFiles,
    SplitCounts,
    Splits,
    TextReport,
    TokenAccount,
    TrainEvent,
    WarningEvent,
    event_line,
    parse,
    parse_events,
)

VERDICT = "On text it never saw, perplexity fell from 61.3 to 24.8 (−59.6%, 95% interval −62.1% to −56.8%)."
STORY = """ there lived a miller who kept the slow clock of Pellimoor.

“It runs,” said the miller, “when the river does.”  And nobody in the village had ever seen the river run."""
OLD = Path(__file__).parents[1] / "old_runs/version-1"


def changed(record: Record, path: str = "", **values: Any) -> Any:
    """Return a copy of a record with other values in the record at a dotted path."""
    if not path:
        return record.model_copy(update=values)
    first, _, rest = path.partition(".")
    return record.model_copy(update={first: changed(getattr(record, first), rest, **values)})


def figures(perplexity: float, tokens: int = 18_412) -> Figures:
    """Return the figures of a model on one split."""
    loss = math.log(perplexity)
    values = {"loss": loss, "perplexity": perplexity, "word_perplexity": perplexity**1.31, "bits_per_byte": loss / 3.02}
    intervals = FigureIntervals(**{name: (value * 0.96, value * 1.05) for name, value in values.items()})
    return Figures(**values, tokens=tokens, words=14_020, bytes=80_233, documents=31, interval=intervals)


def example() -> ComparisonFile:
    """Return a comparison with every optional part."""

    def side(name: str, validation: float, test: float, metrics: SampleMetrics, *texts: str) -> Side:
        samples = [
            Sample(
                prompt=prompt,
                number=1 + seed,
                text=text,
                seed=seed,
                num_tokens=120 - 33 * seed,
                finish_reason=("length", "end")[seed],
            )
            for prompt in ("Once upon a time", "Why the Tarrow runs both ways\n\nIn the days when")
            for seed, text in enumerate(texts)
        ]
        return Side(
            name=name,
            parameters=124_439_808,
            validation=figures(validation),
            test=figures(test),
            samples=samples,
            sample_metrics=metrics,
        )

    def metrics(distinct: float, words: int, match: str) -> SampleMetrics:
        return SampleMetrics(
            distinct_1=distinct,
            distinct_2=distinct + 0.3,
            distinct_3=distinct + 0.38,
            repetition=0.08 - distinct / 10,
            longest_match=LongestMatch(words=words, text=match),
        )

    return ComparisonFile(
        verdict=VERDICT,
        improved=True,
        judged_on="test",
        interval_unit="document",
        prompts=["Once upon a time", "Why the Tarrow runs both ways\n\nIn the days when"],
        settings={"temperature": 0.8, "top_p": 0.95, "top_k": 0, "max_new_tokens": 120, "seed": 0},
        before=side(
            "gpt2",
            61.3,
            58.9,
            metrics(0.41, 5, "at the end of the"),
            ", the company said it would be the first of its kind in the country. " * 3,
            ", I was a big fan of the game, and I have to say that it is a very good game.",
        ),
        after=side(
            "runs/tales",
            24.8,
            26.1,
            metrics(0.52, 9, "and nobody in the village had ever seen the"),
            STORY,
            ", when the ferry was still a plank,\n\tthe Nibbets came down to drink.",
        ),
        change=Changes(
            validation=Change(percent=-59.6, interval=(-62.1, -56.8), excludes_zero=True),
            test=Change(percent=-55.7, interval=(-58.8, -52.0), excludes_zero=True),
        ),
    )


def example_events() -> list[Event]:
    """Return the events of a run of 240 steps."""
    events: list[Event] = []
    for step in range(241):
        loss = 3.1 + 1.1 * math.exp(-step / 45)
        at = {"step": step, "tokens": step * 8192}
        if step:
            rate = 1e-4 * min(step / 12, 0.55 + 0.45 * math.cos(math.pi * step / 240))
            noisy = loss + 0.13 * math.sin(step * 12.9898) * math.cos(step * 4.1)
            events.append(TrainEvent(**at, loss=noisy, learning_rate=rate, tokens_per_second=1043.0, grad_norm=1.1))
        if step % 48 == 0:
            value = loss + 0.02 + max(0, step - 192) * 0.0008
            events.append(EvaluationEvent(**at, loss=value, perplexity=math.exp(value), best=step <= 192))
            events.append(SampleEvent(**at, prompt="Once upon a time", text=STORY[: 20 + step]))
    events.append(WarningEvent(step=17, tokens=9, message="Memory ran out; the micro-batch went from 8 to 4."))
    return events


SETTINGS = {
    "epochs": 3.0,
    "learning_rate": 1e-4,
    "batch_size": 8,
    "block_size": 1024,
    "seed": 0,
    "sources": ["tales/"],
}


def example_manifest() -> RunManifest:
    """Return the manifest of a finished run."""
    return RunManifest(
        status="finished",
        name="tales",
        created="2026-11-23T12:43:05+00:00",
        finished="2026-11-23T13:15:49+00:00",
        seconds=1964.2,
        steps=240,
        best_step=192,
        seed=0,
        versions={"finetale": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
        hardware=Hardware(cpu="AMD EPYC 9R14", cores=2, memory_bytes=16 * 2**30),
        base=BaseModelSource(name="gpt2", kind="hub", revision="607a30d7", sha256="248d" * 16, parameters=124_439_808),
        data_sha256="9af1" * 16,
        command=["finetale", "train", "my tales/", "--model", "gpt2"],
        peak_memory_bytes=5_912_330_240,
        tokens_per_second=1043.4,
    )


def example_data() -> DataFile:
    """Return the data account of a run."""
    bins = [(0, 0, 2), (1, 1, 1), (512, 1023, 38), (1024, 2047, 118), (2048, 4095, 260), (4096, 8191, 193)]
    kinds = [("undecodable", 3, "read as Windows-1252"), ("mixed_newlines", 12, "")]
    return DataFile(
        tokens=TokenAccount(read=702_113, trained=655_360, validation=18_412, test=19_207, dropped=9_134),
        dropped=[DroppedTokens(reason="exact duplicate of another document", documents=11, tokens=9_134)],
        text=TextReport(
            sources=["tales"],
            documents=612,
            characters=3_011_872,
            words=533_410,
            length_histogram=[LengthBin(low=low, high=high, documents=number) for low, high, number in bins],
            languages=[
                LanguageCount(language="English", sampled_documents=19),
                LanguageCount(language="French", sampled_documents=1),
            ],
            duplicates=Repeats(documents=11),
            splits=Splits(
                train=SplitCounts(documents=550, characters=2_850_410, words=505_001, bytes=2_870_000),
                validation=SplitCounts(documents=31, characters=79_911, words=14_020, bytes=80_233),
                test=SplitCounts(documents=31, characters=81_551, words=14_389, bytes=82_012),
            ),
            skipped=SkippedFiles(hidden=2, empty=1, other={".docx": 3}),
            skipped_names={"hidden": ["tales/.git", "tales/.cache"], "other": ["tales/a.docx"]},
            cleaning={"newlines": 12},
            problems=[
                Problem(file=f"tales/{index}.txt", line=7, kind=kind, count=number, detail=detail)
                for index, (kind, number, detail) in enumerate(kinds)
            ],
            split_rule="By a hash of each document’s content: 90% training, 5% validation, 5% test.",
            files=[FileReport(file=f"tales/{number}.txt", kind="text") for number in range(2)],
            more_files=610,
            more_problems=1500,
        ),
        warnings=["3 tokens of the text are unknown to the tokenizer."],
        blocks=BlockReport(size=1024, count=641, padding_share=0.0009),
    )


class Page(HTMLParser):
    """The parts of a page that the tests read: tags, attributes, text by tag, and headings in order."""

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
    parts = {
        "events": example_events(),
        "manifest": example_manifest(),
        "data": example_data(),
        "settings": SETTINGS,
    } | changes
    return render_report(parts.pop("comparison", example()), **parts)


# ------------------------------------------------------------------------------------------------------- the page


def test_page_is_well_formed_and_complete() -> None:
    page = Page(full_page())
    assert page.open == []
    assert page.all("h1") == VERDICT
    assert page.text["h2"] == [
        "The numbers",
        "How it learned",
        "Samples, side by side",
        "Does it copy?",
        "The text it learned from",
        "How it was made",
        "How to use it",
    ]
    assert page.tags.count("article") == 8  # two prompts, two samples, two models
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 2  # a chart for wide and one for narrow pages
    links = [value for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert links == ["#numbers", "#training", "#samples", "#copying", "#data", "#making", "#use"]
    assert set(page.ids) >= {link[1:] for link in links}


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
    assert labels == [labels[0]] * 2
    assert labels[0].startswith("Loss against optimizer steps. Training loss goes from 4.1")
    assert "The best validation loss is at step 192." in labels[0]


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = full_page()
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"} & set(page.tags)
    references = [
        value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "srcset")
    ]
    assert len(references) == 7
    assert all(value.startswith("#") and value[1:] in page.ids for value in references)
    assert "url(" not in html
    assert "@import" not in html
    assert "//" not in html
    policy = [
        value for tag, name, value in page.attributes if tag == "meta" and name == "content" and "default" in value
    ]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


@pytest.mark.parametrize(
    ("improved", "reason", "state"),
    [
        (True, None, "It got better"),
        (False, None, "It did not get better"),
        (None, None, "Whether it got better is not known"),
        (None, "no held-out text", "Whether it got better is not known"),
        (None, "random base", "Compared with random weights"),
        (None, "too few documents", "Better on this text; whether on other text is not known"),
    ],
)
def test_verdict_has_three_states(improved: bool | None, reason: str | None, state: str) -> None:
    comparison = changed(example(), improved=improved, improved_reason=reason, verdict="As measured.")
    page = Page(full_page(comparison=comparison))
    assert page.all("h1") == "As measured."
    assert state in page.all("p")
    assert state.lower() in page.all("title")
    classes = [value for tag, name, value in page.attributes if tag == "header" and name == "class"]
    assert classes == [{True: "better", False: "not-better", None: "unknown"}[improved]]


def test_foreign_text_is_escaped_everywhere() -> None:
    evil = "<script>alert(1)</script>{{ 7*7 }}{% raw %}</style>&amp;\"'"

    keep = ("train", "evaluation", "sample", "warning", "token", "test", "finished", "document")

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value + evil if isinstance(value, str) and value not in keep else value

    def poisoned(record: Record) -> Any:
        return type(record).model_validate(poison(record.to_dict()))

    html = render_report(
        poisoned(example()),
        events=[poisoned(event) for event in example_events()],
        manifest=poisoned(example_manifest()),
        data=poisoned(example_data()),
        settings=poison(SETTINGS) | {"<b>x</b>": 1},
    )
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


def test_samples_are_paired_by_prompt_and_seed() -> None:
    comparison = example()
    # In another order and without the first.
    comparison = changed(comparison, "after", samples=comparison.after.samples[:0:-1])
    html = full_page(comparison=comparison)
    assert html.count("No sample.") == 1
    assert Page(html).tags.count("article") == 8


def test_a_page_without_a_test_split() -> None:
    comparison = example()
    for part in ("before", "after", "change"):
        comparison = changed(comparison, part, test=None)
    html = full_page(comparison=comparison)
    assert "Validation text" in html
    assert "Test text" not in html
    assert len(table_rows(comparison)) == 4 + 5


def test_a_page_without_a_run_shows_the_comparison() -> None:
    page = Page(render_report(example()))
    assert page.text["h2"] == ["The numbers", "Samples, side by side", "Does it copy?", "How to use it"]
    assert page.all("h1") == VERDICT
    assert "finetale generate runs/tales" in page.all("pre")


def test_a_page_without_text_and_samples() -> None:
    bare = ComparisonFile(verdict="There was no held-out text.", before=Side(name="a"), after=Side(name="b"))
    page = Page(render_report(bare))
    assert page.open == []
    assert page.all("h1") == "There was no held-out text."
    assert page.text["h2"] == ["How to use it"]


def test_a_version_1_run_gives_a_complete_page() -> None:
    page = Page(
        render_report(
            parse(ComparisonFile, (OLD / "comparison.json").read_bytes()),
            events=parse_events((OLD / "metrics.jsonl").read_text("utf-8")),
            manifest=parse(RunManifest, (OLD / "run.json").read_bytes()),
            data=parse(DataFile, (OLD / "data.json").read_bytes()),
        )
    )
    assert page.open == []
    assert len(page.text["h2"]) == 7
    assert "finetale train stories --model base" in page.all("pre")


def test_an_account_that_does_not_add_up_is_reported() -> None:
    data = example_data()
    assert "The account balances to the token." in full_page(data=data)
    html = full_page(data=changed(data, "tokens", trained=data.tokens.trained - 12))
    assert "The account does not balance: 12 tokens are not accounted for." in html
    assert "balances to the token" not in html


@pytest.mark.parametrize(("words", "warned"), [(0, False), (11, False), (12, True)])
def test_copies_of_twelve_words_or_more_give_a_warning(words: int, warned: bool) -> None:
    comparison = changed(example(), "after.sample_metrics.longest_match", words=words)
    assert ("repeats what it was trained on" in full_page(comparison=comparison)) is warned
    assert ("more than chance" in model_card(example_manifest(), comparison, None)) is warned


def test_a_gain_whose_interval_includes_no_change_is_not_called_a_failure() -> None:
    comparison = changed(example(), improved=False, improved_reason=None)
    unclear = changed(comparison, "change.test", percent=-3.0, interval=(-8.0, 2.0), excludes_zero=False)
    html = full_page(comparison=unclear)
    assert "It is not clear that it got better" in html
    assert "It did not get better" not in html


def test_the_variety_of_chinese_samples_is_counted_in_characters() -> None:
    comparison = example()
    for name in ("before", "after"):
        samples = [
            sample.model_copy(update={"text": "从前有一座山，山上有一座庙。"})
            for sample in getattr(comparison, name).samples
        ]
        comparison = changed(comparison, name, samples=samples)
    names = [row.what for row in table_rows(comparison) if row.group == "samples"]
    assert names[:3] == ["different characters", "different character pairs", "different character triples"]


def test_a_copied_passage_of_chinese_is_counted_in_characters() -> None:
    text = "从前有一座山山上有一座庙庙"
    comparison = changed(example(), "before.sample_metrics.longest_match", words=0, text="")
    comparison = changed(comparison, "after.sample_metrics.longest_match", words=13, text=text)
    row = table_rows(comparison)[12]
    assert (row.what, row.before, row.after) == ("longest copied passage, characters", "0", "13")
    assert row.measure.meaning == "The longest run of characters in the samples that also occurs in the training text."
    html = full_page(comparison=comparison)
    assert "<strong>13 characters in a row</strong> of a sample also occur in the training text." in html
    assert "A passage of 12 characters or more is hardly chance" in html
    assert "longest copied passage, words" not in html
    card = model_card(example_manifest(), comparison, None)
    assert "The longest passage of its samples that also occurs in the training text has 13 characters, which" in card
    one = changed(comparison, "after.sample_metrics.longest_match", words=5, text=text[:5])
    assert "occurs in the training text has <strong>5 characters</strong>. Below 12 characters" in full_page(
        comparison=one
    )


def audited(memorised: int, personal: int = 0) -> ComparisonFile:
    shown = MemorisedPassage(place="a.txt:3", tokens=9, bits=80.0, text="| a *passage* <b>")
    training = MemorisationAudit(
        tokens=20_000,
        of_tokens=80_000,
        memorised_tokens=memorised,
        passages=2 if memorised else 0,
        with_personal_data=personal,
        examples=[shown] if memorised else [],
    )
    held_out = MemorisationAudit(tokens=5_000, of_tokens=5_000, memorised_tokens=0)
    return changed(example(), memorisation=Memorisation(training=training, held_out=held_out))


@pytest.mark.parametrize(
    ("memorised", "personal", "says", "warned"),
    [
        (0, 0, "the model writes no passage word for word when given the text before.", False),
        (19, 0, "writes <0.1% word for word when given the text before, in 2 passages.", False),
        (300, 0, "writes 1.5% word for word when given the text before, in 2 passages.", True),
        (10, 1, "in 2 passages, 1 of them with personal data.", True),
    ],
)
def test_memorised_passages_are_reported(memorised: int, personal: int, says: str, warned: bool) -> None:
    comparison = audited(memorised, personal)
    html = full_page(comparison=comparison)
    card = model_card(example_manifest(), comparison, None)
    plain = html.replace("&lt;", "<")
    assert says in plain
    assert "Of 20,000 tokens of the training text that were looked through (25.0% of it)" in plain
    assert "Of text it never saw: 0.0%." in plain
    assert ("Fewer epochs, more text" in plain) is warned
    assert ("&lt;b&gt;" in html) is bool(memorised), "the examples are in the report"
    assert says in card.replace("\\<", "<")
    assert "<b>" not in card, "the published card has no examples"
    assert "this was not measured" not in card
    without = full_page(comparison=example())
    assert "looked through" not in without


def test_different_tokenizers_are_not_compared_per_token() -> None:
    comparison = example()
    comparison = changed(comparison, "before.validation", tokens=20_000)
    comparison = changed(comparison, "change.validation", per="byte", percent=-22.0, interval=(-24.0, -20.0))
    rows = {(row.group, row.what): row for row in table_rows(comparison)}
    assert rows["validation", "perplexity per token"].change == "not comparable"
    assert rows["validation", "loss, nats per token"].change == "not comparable"
    assert rows["validation", "bits per byte"].change == "−22.0%"
    assert rows["validation", "bits per byte"].intervals[2] == "−24.0% to −20.0%"
    assert [row.what for row in table_rows(comparison) if row.decides] == ["bits per byte", "perplexity per token"]
    html = full_page(comparison=comparison)
    assert "different tokens" in html
    assert "Perplexity per token on the validation text" not in html
    assert "Bits per byte on the validation text" in html
    assert "Perplexity per token on the test text" in html


def test_a_change_per_word_is_in_the_row_of_word_perplexity() -> None:
    comparison = changed(example(), "change.validation", per="word", percent=-41.0, interval=(-44.0, -38.5))
    rows = {(row.group, row.what): (row.change, row.intervals[2]) for row in table_rows(comparison)}
    assert rows["validation", "perplexity per word"] == ("−41.0%", "−44.0% to −38.5%")
    assert rows["validation", "perplexity per token"] == rows["validation", "loss, nats per token"]
    assert rows["validation", "perplexity per token"] == ("not comparable", "")
    assert rows["test", "perplexity per token"][0] == "−55.7%"


def test_perplexity_is_also_compared_if_the_verdict_is_per_byte() -> None:
    comparison = changed(example(), same_tokenizer=True)
    comparison = changed(comparison, "change.validation", per="byte", percent=-41.0, interval=(-44.0, -38.5))
    rows = {(row.group, row.what): row for row in table_rows(comparison)}
    assert rows["validation", "bits per byte"].change == "−41.0%"
    assert rows["validation", "bits per byte"].intervals[2] == "−44.0% to −38.5%"
    assert rows["validation", "perplexity per token"].change == "−59.5%"
    assert rows["validation", "loss, nats per token"].change == "−0.905"
    other = {(row.group, row.what): row for row in table_rows(changed(comparison, same_tokenizer=False))}
    assert other["validation", "perplexity per token"].change == "not comparable"
    assert other["validation", "loss, nats per token"].change == "not comparable"


def test_text_without_spaces_has_no_row_for_words() -> None:
    comparison = example()
    for side in ("before", "after"):
        for name in ("validation", "test"):
            comparison = changed(comparison, f"{side}.{name}", word_perplexity=None, words=None)
    html = full_page(comparison=comparison)
    assert "perplexity per word" in {row.what for row in table_rows(example())}
    assert "perplexity per word" not in {row.what for row in table_rows(comparison)}
    assert "31 documents, 14,020 words, 18,412 tokens" in full_page()
    assert "31 documents, 18,412 tokens" in html


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ({"interval_method": "jackknife-t"}, "from a jackknife over documents"),
        ({"interval_unit": "document"}, "from a bootstrap over documents"),
        ({"interval_unit": "piece"}, "from a bootstrap over pieces of the text"),
    ],
)
def test_the_method_of_the_intervals_is_described(given: dict[str, str], source: str) -> None:
    comparison = changed(example(), **given)
    assert source in full_page(comparison=comparison)
    assert source in model_card(example_manifest(), comparison, None)


def test_a_gain_over_random_weights_is_not_called_better() -> None:
    assert 'class="better"' in full_page()
    html = full_page(comparison=changed(example(), improved=None, improved_reason="random base"))
    assert 'class="better"' not in html


def test_a_page_without_intervals_does_not_mention_them() -> None:
    comparison = example()
    for name in ("validation", "test"):
        for part in ("before", "after"):
            comparison = changed(comparison, f"{part}.{name}", interval=None)
        comparison = changed(comparison, f"change.{name}", interval=None, excludes_zero=None)
    html = full_page(comparison=comparison)
    assert "There are no 95% intervals" in html
    assert 'whisker"' not in html
    assert "has too few documents for them, so the figures hold for this text only" in html
    card = model_card(example_manifest(), comparison, None).split("---\n", 2)[2]
    assert "In brackets" not in card
    assert "The figures hold for this held-out text only, which has too few documents for 95% intervals." in card


def test_findings_about_the_text_are_shown() -> None:
    assert "3 tokens of the text are unknown" in Page(full_page()).all("li")
    text = " ".join(Page(full_page()).text["dd"])
    assert "612" in text
    assert "left out: 3 of kinds that are not read (3 .docx) and 1 without text" in Page(full_page()).all("p")
    items = Page(full_page()).all("li")
    assert all(name in items for name in ("tales/a.docx", "tales/.git", "tales/.cache"))
    histogram = re.findall(r'<th scope="row">([^<]*)</th><td><span class="fill"', full_page())
    assert histogram == ["empty", "1", "512–1,023", "1,024–2,047", "2,048–4,095", "4,096–8,191"]
    assert "left_out" not in full_page()
    assert "mixed_newlines" not in full_page()
    assert "English 19, French 1" in text
    assert "641 of 1,024 tokens, <0.1% of them padding" in text
    assert "And 1,500 more; data.json lists the first 2." in full_page()


def test_an_unfinished_run_is_marked_as_unfinished() -> None:
    assert "its status is “interrupted” after 240 steps" in full_page(
        manifest=changed(example_manifest(), status="interrupted")
    )


@pytest.mark.parametrize("path", ["/home/ada/secret/tales", "C:\\Users\\ada\\secret\\tales"])
def test_private_folders_are_not_shown(path: str) -> None:
    manifest = changed(example_manifest(), base=BaseModelSource(name=path, kind="local"))
    comparison = changed(changed(example(), "before", name=path), "after", name=path)
    for made in (full_page(comparison=comparison, manifest=manifest), model_card(manifest, comparison, None)):
        assert "secret" not in made
        assert "tales" in made


# ------------------------------------------------------------------------------------------------------ the table


def test_rows_of_the_table() -> None:
    rows = table_rows(example())
    assert len(rows) == 13
    assert (rows[0].group, rows[0].what) == ("validation", "perplexity per token")
    assert (rows[0].before, rows[0].after, rows[0].change) == ("61.3", "24.8", "−59.6%")
    assert rows[0].intervals == ("58.8 to 64.4", "23.8 to 26.0", "−62.1% to −56.8%")
    assert rows[0].effect == "better"
    assert (rows[3].what, rows[3].change) == ("loss, nats per token", "−0.905")
    assert rows[3].intervals[2] == "−0.970 to −0.839"
    assert (rows[8].group, rows[8].what) == ("samples", "different words")
    assert (rows[8].before, rows[8].after, rows[8].change) == ("41.0%", "52.0%", "+11.0 points")
    assert (rows[12].what, rows[12].before, rows[12].after, rows[12].change) == (
        "longest copied passage, words",
        "5",
        "9",
        "+4",
    )


def test_huge_and_missing_numbers() -> None:
    comparison = changed(example(), "before.validation", perplexity=1e9, interval=None)
    comparison = changed(comparison, "after.validation", word_perplexity=None)
    comparison = changed(comparison, "change", validation=None)
    first, second, *_ = table_rows(comparison)
    assert (first.before, first.after, first.change) == ("1.0 × 10⁹", "24.8", "−100.0%")
    assert (second.after, second.change) == ("–", "–")
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


def test_a_chart_is_the_same_each_time_and_has_the_colours_of_the_page() -> None:
    curves = charts.read_curves(example_events())
    first = charts.loss_chart(curves, charts.WIDE)
    assert charts.loss_chart(curves, charts.WIDE) == first
    assert "loss (nats per token)</text>" in first
    assert "currentColor" in first
    assert not re.search(r"#[0-9a-f]{3}", first)  # all colours are those of the page
    ElementTree.fromstring(first)


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_a_chart_draws_the_numbers_to_scale_and_inside_its_box(width: int) -> None:
    points = [(step, 4.0 - step / 100) for step in range(1, 101)]
    curves = charts.Curves(training=points, rate=[(1, 0.0), (100, 2e-4)], evaluations=[(0, 4.0), (100, 3.5)], best=100)
    root = ElementTree.fromstring(charts.loss_chart(curves, width))
    _, _, right, bottom = map(float, root.attrib["viewBox"].split())
    lines = [
        [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in root.iter("polyline")
    ]
    assert [len(line) for line in lines] == [100, 100, 2, 2]
    assert all(0 <= x <= right and 0 <= y <= bottom for line in lines for x, y in line)
    raw, smoothed, evaluated, rate = lines
    for straight, fitted in zip(raw, smoothed, strict=True):
        assert straight == pytest.approx(fitted, abs=0.1)  # a straight line stays straight
    assert raw[-1][0] == evaluated[-1][0] == right - 12  # the last step is at the right end
    # The distance of losses 4.0 and 3.5 is half the distance of 4.0 and 3.0.
    assert evaluated[1][1] - evaluated[0][1] == pytest.approx((raw[-1][1] - evaluated[0][1]) / 2, abs=0.2)
    assert rate[0][1] > rate[1][1] > raw[-1][1]  # below the curve of the loss, and rising
    labels = [element.text for element in root.iter("text")]
    assert {"optimizer step", "rate", "0", "2.0e-04", "100"} <= set(labels)
    assert labels.count("optimizer step") == 1


def test_values_that_are_all_the_same_are_drawn() -> None:
    curves = charts.Curves(training=[(5, 2.0), (5, 2.0)], evaluations=[(5, 2.0)])
    assert "nan" not in charts.loss_chart(curves, charts.WIDE)


def test_a_repeated_step_is_drawn_once() -> None:
    events: list[Event] = [
        TrainEvent(step=1, tokens=1, loss=4.0, learning_rate=1e-4),
        EvaluationEvent(step=0, tokens=1, loss=4.5, perplexity=90.0, best=True),
        TrainEvent(step=1, tokens=1, loss=3.0, learning_rate=2e-4),
        EvaluationEvent(step=1, tokens=1, loss=4.6, perplexity=99.0),
    ]
    assert charts.read_curves(events) == charts.Curves(
        training=[(1, 3.0)], rate=[(1, 2e-4)], evaluations=[(0, 4.5), (1, 4.6)], best=0
    )


def test_smoothing_keeps_a_straight_line_and_levels_noise() -> None:
    line = [(step, 2.0 - 0.01 * step) for step in range(200)]
    assert charts.smooth(line) == [(step, pytest.approx(value)) for step, value in line]
    noisy = charts.smooth([(step, value + 0.3 * (-1) ** step) for step, value in line])
    assert all(abs(found - value) < 0.15 for (_, found), (_, value) in zip(noisy, line, strict=True))
    assert charts.smooth([(5, 1.0)]) == [(5, 1.0)]


def test_a_long_run_keeps_its_chart_small() -> None:
    events = [TrainEvent(step=step, tokens=step, loss=3.0 + step % 7, learning_rate=1e-4) for step in range(20_000)]
    assert 10_000 < len(charts.loss_chart(charts.read_curves(events), charts.WIDE)) < 80_000


def test_evaluations_of_a_sample_are_labelled() -> None:
    events = [
        changed(event, sample_tokens=8_192) if isinstance(event, EvaluationEvent) else event
        for event in example_events()
    ]
    assert "a fixed sample of 8,192 tokens of the validation text" in full_page(events=events)
    assert "fixed sample" not in full_page()


def test_a_page_without_events_has_no_chart() -> None:
    assert charts.loss_chart(charts.read_curves([]), charts.WIDE) == ""
    page = Page(full_page(events=[]))
    assert "svg" not in page.tags
    assert "How it learned" not in page.text["h2"]


# -------------------------------------------------------------------------------------------------- the model card


def parse_card(card: str) -> tuple[dict[str, Any], str]:
    _, front_matter, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front_matter)
    assert isinstance(metadata, dict)
    return metadata, body


def test_model_card_has_metadata_numbers_and_the_account() -> None:
    metadata, body = parse_card(model_card(example_manifest(), example(), example_data(), settings=SETTINGS))
    assert metadata["base_model"] == "gpt2"
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-generation"
    assert metadata["language"] == ["en"]  # the share of French is below 10%
    assert "license" not in metadata
    results = metadata["model-index"][0]["results"]
    assert [result["metrics"][0]["value"] for result in results] == [24.8, 26.1]
    assert [metric["type"] for metric in results[0]["metrics"]] == ["perplexity", "bits_per_byte"]
    assert results[0]["metrics"][0]["args"]["interval_95"] == pytest.approx([23.8, 26.0], abs=0.05)
    assert "datasets" not in metadata
    assert f"> {VERDICT}" in body
    assert (
        "| validation: perplexity per token | 61.3 (58.8 to 64.4) | 24.8 (23.8 to 26.0) | −59.6% (−62.1% to −56.8%) |"
        in body
    )
    assert "| **read** | **702,113** | |" in body
    assert "- exact duplicate of another document: 11 documents, 9,134 tokens" in body
    assert "| `learning_rate` | 0.0001 |" in body
    assert "AutoModelForCausalLM.from_pretrained" in body
    assert "\n\n\n" not in body


@pytest.mark.parametrize(
    "name", ["no: yes", "---", "'\"", "- #x", "名前 \u2028 x", "{a}: [b]", "null", "1e3", "a\nb: c"]
)
def test_unusual_names_survive_in_the_front_matter(name: str) -> None:
    card = model_card(changed(example_manifest(), name=name), example(), None)
    card.encode("utf-8")
    metadata = yaml.safe_load(re.match(r"---\n(.*?\n)---\n\n", card, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert metadata["model-index"][0]["name"] == name


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({"name": "uer/gpt2-chinese-cluecorpussmall", "kind": "hub"}, "uer/gpt2-chinese-cluecorpussmall"),
        ({"name": "models/mine", "kind": "local"}, None),
        ({"name": "new:1m", "kind": "new"}, None),
        ({"name": "a/b/c", "kind": "hub"}, None),
    ],
)
def test_only_a_hub_id_is_listed_as_base_model(base: dict[str, str], expected: str | None) -> None:
    metadata, _ = parse_card(model_card(RunManifest(base=BaseModelSource(**base)), None, None))
    assert metadata.get("base_model") == expected


def test_the_hub_client_reads_the_front_matter() -> None:
    base = {"name": "owner/base", "kind": "hub", "license": "apache-2.0"}
    manifest = changed(example_manifest(), base=BaseModelSource(**base))
    mixed = MixedText(source="hf:owner/general/long:train", share=0.1)
    sources = ["hf:roneneldan/TinyStories:train", "hf:wikitext", "stories", "hf:wikitext:test"]
    data = changed(example_data(), text=changed(example_data().text, sources=sources, mixed=[mixed]))
    for adapter, library, relation in ((False, "transformers", "finetune"), (True, "peft", "adapter")):
        content = model_card(manifest, example(), data, adapter=adapter)
        card = ModelCard(content)
        values = card.data.to_dict()
        assert values["base_model"] == "owner/base"
        assert (values["library_name"], values["base_model_relation"]) == (library, relation)
        assert values["license"] == "apache-2.0"
        assert "The licence is that of the base model (apache-2.0)." in content
        assert values["pipeline_tag"] == "text-generation"
        assert values["datasets"] == ["roneneldan/TinyStories", "wikitext", "owner/general"]
        read = [(each.metric_type, each.dataset_split, each.metric_value) for each in card.data.eval_results]
        after = example().after
        assert read == [
            (kind, split, pytest.approx(getattr(after.on(split), kind), abs=1e-4))
            for split in ("validation", "test")
            for kind in ("perplexity", "bits_per_byte")
        ]
        assert all(each.metric_args["interval_95"][0] < each.metric_value for each in card.data.eval_results)
        # What the client writes from it is the same front matter.
        assert yaml.safe_load(card.data.to_yaml()) == yaml.safe_load(content.split("---\n")[1])


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: 'see: my site <b>'\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("---\n- mit\n---\n", None),
        ("license: mit\n", None),
        ("\xff", None),
        (None, None),
    ],
)
def test_only_a_clear_licence_is_read(tmp_path: Path, card: str | None, expected: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode("latin-1"))
    assert read_license(tmp_path) == expected


def test_the_model_card_shows_foreign_text_unchanged() -> None:
    comparison, data = example(), example_data()
    text = " x\n```\n# no heading {{ 7*7 }}\n````"
    samples = [changed(comparison.after.samples[0], text=text, prompt="a ` b")]
    comparison = changed(changed(comparison, "after", samples=samples), verdict="# <b>bold</b> | [link](x)")
    data = changed(data, dropped=[changed(data.dropped[0], reason="in <script>\n\n# heading")])
    _, body = parse_card(model_card(example_manifest(), comparison, data))
    assert "`````text\n x\n```\n# no heading {{ 7*7 }}\n````\n`````" in body
    assert "`` a ` b ``" in body
    assert "> \\# \\<b\\>bold\\</b\\> \\| \\[link\\](x)" in body
    assert "- in \\<script\\> \\# heading: 11 documents" in body


def test_a_card_without_data() -> None:
    metadata, body = parse_card(model_card(RunManifest(), None, None))
    assert metadata["library_name"] == "transformers"
    assert "model-index" not in metadata
    assert "was not compared" in body
    assert "this was not measured" in body


# ----------------------------------------------------------------------------------------------------- from a run


def test_write_report_from_a_run_directory(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    write_record(run.manifest, example_manifest())
    write_record(run.data, example_data())
    write_record(run.comparison, example())
    run.config.write_text("learning_rate: 0.25\n", "utf-8")
    run.metrics.write_text("".join(map(event_line, example_events())) + '{"event": "train", "st', "utf-8")
    assert write_report(run) == run.report
    page = Page(run.report.read_text("utf-8"))
    assert page.all("h1") == VERDICT
    assert "0.25" in page.all("dd"), "the settings are read from config.yaml"
    assert page.tags.count("svg") == 2
    names = sorted(path.name for path in run.root.iterdir())
    assert names == ["comparison.json", "config.yaml", "data.json", "metrics.jsonl", "report.html", "run.json"]
    first = run.report.read_bytes()
    write_report(run)
    assert run.report.read_bytes() == first


def test_write_report_needs_only_the_comparison(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(RunError, match=r"comparison\.json is missing.*finetale compare"):
        write_report(run)
    assert list(tmp_path.iterdir()) == []
    write_record(run.comparison, example())
    assert VERDICT in write_report(run).read_text("utf-8")


def test_report_does_not_load_torch() -> None:
    code = "import sys, finetale.report; print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
