"""The table of figures: a comparison → rows of text, for the terminal, HTML and Markdown alike. Knows no markup."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath

from finetale.formatting import UNKNOWN, count, interval, measure, percent, share, signed
from finetale.schema import Change, ComparisonFile, Figures, Side, WatchedFigures
from finetale.text.words import unit_of

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Measure:
    """A measure: its key in `Figures` or `SampleMetrics`, its name, and one sentence for readers who do not know it."""

    key: str
    name: str
    meaning: str


MEASURES = (
    Measure(
        "perplexity",
        "perplexity per token",
        "How many words or pieces of words the model hesitates between at each step, on average: lower means that the "
        "text surprises it less.",
    ),
    Measure(
        "word_perplexity",
        "perplexity per word",
        "The same for whole words: lower is better.",
    ),
    Measure(
        "bits_per_byte",
        "bits per byte",
        "How much is left to guess in each byte of the text: lower is better. It is comparable between any two models.",
    ),
    Measure(
        "loss",
        "loss, nats per token",
        "The logarithm of the perplexity per token, which training makes smaller.",
    ),
)
SAMPLE_MEASURES = (
    Measure(
        "distinct_1",
        "different words",
        "The share of words in the samples that differ: low means that it repeats itself.",
    ),
    Measure("distinct_2", "different word pairs", "The same for pairs of words."),
    Measure("distinct_3", "different word triples", "The same for three words in a row."),
    Measure(
        "repetition",
        "4-grams seen before",
        "The share of four words in a row that already occurred in the same sample.",
    ),
)
ENDED = Measure(
    "ended",
    "samples that end",
    "The share of samples that the model ended itself, before the limit of tokens.",
)
ANSWER_MEASURES = (
    Measure(
        "exact_match",
        "exact answers",
        "The share of answers to held-out examples that equal the answer in the text, white space aside.",
    ),
    Measure(
        "chrf",
        "chrF",
        "How much of the characters, in runs of up to six, the answers share with those in the text: 0 to 100.",
    ),
    Measure(
        "ended",
        "answers that end",
        "The share of answers that the model ended itself, before the limit of tokens.",
    ),
)
COPIED_KEY = "longest_match"
_BY_TOKEN = ("perplexity", "loss")
COMPARED = {"token": "perplexity", "word": "word_perplexity", "byte": "bits_per_byte"}


@dataclass(frozen=True)
class Row:
    """One row of the table. An absent value is an empty string.

    Attributes:
        group: "validation", "test", "watched", "answers" or "samples".
        measure: what the line shows.
        before, after, change: formatted values.
        intervals: 95% intervals of the three.
        effect: "better", "worse" or "no clear change", if there is an interval of the change.
        decides: whether the verdict is about this measure.
    """

    group: str
    measure: Measure
    before: str
    after: str
    change: str
    intervals: tuple[str, str, str] = ("", "", "")
    effect: str = ""
    decides: bool = False

    @property
    def what(self) -> str:
        """Return the name of the measure."""
        return self.measure.name


def table_rows(comparison: ComparisonFile) -> list[Row]:
    """Return the rows of the table. A measure that neither model has is left out."""
    rows = []
    for split in SPLITS:
        before, after = comparison.before.on(split), comparison.after.on(split)
        decides = compared_by(comparison, split)
        for item in MEASURES:
            old, new = _figure(before, item.key), _figure(after, item.key)
            if old is None and new is None:
                continue
            change, change_interval, effect = _change(comparison, split, item.key, old, new)
            if comparison.improved_reason == "random base":
                effect = ""  # any training beats random weights
            intervals = (_interval(before, item.key), _interval(after, item.key), change_interval)
            values = (_value(old, item.key), _value(new, item.key), change)
            rows.append(Row(split, item, *values, intervals, effect, item.key == decides))
    rows += [row for watched in comparison.watched for row in _watched_rows(comparison, watched)]
    return rows + _answer_rows(comparison.before, comparison.after) + _sample_rows(comparison.before, comparison.after)


def compared_by(comparison: ComparisonFile, split: str) -> str:
    """Return the key of the measure that the change on a split is about."""
    change = comparison.change.on(split)
    if change is not None:
        return COMPARED[change.per]
    return "bits_per_byte" if other_tokens(comparison, split) else "perplexity"


def other_tokens(comparison: ComparisonFile, split: str) -> bool:
    """Return whether the models cut the same text into different tokens. Values per token are then not comparable."""
    if comparison.same_tokenizer is not None:
        return not comparison.same_tokenizer
    before, after = comparison.before.on(split), comparison.after.on(split)
    change = comparison.change.on(split)
    if change is not None and change.per == "word":
        return True
    return before is not None and after is not None and before.tokens != after.tokens


def _figure(figures: Figures | None, key: str) -> float | None:
    return None if figures is None else getattr(figures, key)


def _change(
    comparison: ComparisonFile, split: str, key: str, old: float | None, new: float | None
) -> tuple[str, str, str]:
    """Return the change of one measure: (value, interval, effect)."""
    if key in _BY_TOKEN and other_tokens(comparison, split):
        return "not comparable", "", ""
    given = comparison.change.on(split)
    if given is not None and key == COMPARED[given.per]:
        return percent(given.percent), interval(given.interval, percent), _effect(given)
    if old is None or new is None:
        return UNKNOWN, "", ""
    if key != "loss":
        return (percent(100 * (new / old - 1)) if old > 0 else UNKNOWN), "", ""
    if given is None or given.per != "token":
        return signed(new - old, 3), "", ""
    # The loss is the logarithm of the perplexity, so the interval of one gives the interval of the other.
    return signed(new - old, 3), interval(given.interval, lambda end: signed(_log_ratio(end), 3)), _effect(given)


def _effect(given: Change) -> str:
    """Return "better", "worse" or "no clear change" by the interval of a change; empty without an interval."""
    if given.excludes_zero is None:
        return ""
    if not given.excludes_zero:
        return "no clear change"
    return "better" if given.percent < 0 else "worse"


def _log_ratio(change_percent: float) -> float | None:
    return math.log1p(change_percent / 100) if change_percent > -100 else None


def _watched_rows(comparison: ComparisonFile, watched: WatchedFigures) -> list[Row]:
    """Return a row with the perplexity per token of a watched text, or its bits per byte for other tokens."""
    key = COMPARED[watched.change.per] if watched.change else "bits_per_byte"
    item = next(each for each in MEASURES if each.key == key)
    name = PurePath(watched.source).name if PurePath(watched.source).is_absolute() else watched.source
    named = Measure(item.key, f"{item.name}, {name}", f"{item.meaning} This text was not trained on.")
    old, new = (_figure(side, key) for side in watched.sides)
    values = (_value(old, key), _value(new, key), percent(watched.change.percent) if watched.change else UNKNOWN)
    moved = interval(watched.change.interval, percent) if watched.change else ""
    effect = _effect(watched.change) if watched.change and comparison.improved_reason != "random base" else ""
    intervals = (_interval(watched.before, key), _interval(watched.after, key), moved)
    return [Row("watched", named, *values, intervals, effect)]


def _answer_rows(before: Side, after: Side) -> list[Row]:
    old, new = before.answers, after.answers
    if old is None or new is None:
        return []
    rows = []
    for item in ANSWER_MEASURES:
        first, second = getattr(old, item.key), getattr(new, item.key)
        if first is None or second is None:
            continue
        if item.key == "chrf":
            intervals = (interval(old.chrf_interval, measure), interval(new.chrf_interval, measure), "")
            rows.append(Row("answers", item, measure(first), measure(second), signed(second - first, 1), intervals))
        else:
            change = f"{signed(100 * (second - first), 1)} points"
            rows.append(Row("answers", item, share(first), share(second), change))
    return rows


def _sample_rows(before: Side, after: Side) -> list[Row]:
    rows = []
    unit = unit_of(" ".join(sample.text for side in (before, after) for sample in side.samples))
    for item in (*SAMPLE_MEASURES, ENDED):
        item = Measure(item.key, item.name.replace("word", unit), item.meaning.replace("word", unit))
        old, new = getattr(before.sample_metrics, item.key), getattr(after.sample_metrics, item.key)
        if old is not None or new is not None:
            change = UNKNOWN if old is None or new is None else f"{signed(100 * (new - old), 1)} points"
            rows.append(Row("samples", item, share(old), share(new), change))
    matches = [side.sample_metrics.longest_match for side in (before, after)]
    copies = [None if match is None else match.words for match in matches]
    if copies != [None, None]:
        change = UNKNOWN if copies[0] is None or copies[1] is None else signed(copies[1] - copies[0], 0)
        rows.append(Row("samples", _copied(before, after), count(copies[0]), count(copies[1]), change))
    return rows


def _copied(before: Side, after: Side) -> Measure:
    """Return the measure of copied passages, with the unit in which they are counted."""
    unit = copied_unit(before, after)
    return Measure(
        COPIED_KEY,
        f"longest copied passage, {unit}s",
        f"The longest run of {unit}s in the samples that also occurs in the training text.",
    )


def copied_unit(*sides: Side) -> str:
    """Return "word" or "character": the unit of the longest copied passages, or of the samples if nothing is copied."""
    matches = [side.sample_metrics.longest_match for side in sides]
    copied = " ".join(match.text for match in matches if match is not None)
    return unit_of(copied or " ".join(sample.text for side in sides for sample in side.samples))


def _value(value: float | None, key: str) -> str:
    return measure(value, 3 if key in ("loss", "bits_per_byte") else None)


def _interval(figures: Figures | None, key: str) -> str:
    if figures is None or figures.interval is None:
        return ""
    return interval(getattr(figures.interval, key), lambda end: _value(end, key))
