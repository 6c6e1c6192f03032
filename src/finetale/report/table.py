"""The table of numbers: comparison.json → rows of text, for the terminal, HTML and Markdown alike. Knows no markup."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetale.formatting import UNKNOWN, at, count, finite, interval, measure, percent, share, signed

SPLITS = ("validation", "test")
_MEASURES = (
    ("perplexity", "perplexity a token"),
    ("word_perplexity", "perplexity a word"),
    ("bits_per_byte", "bits a byte"),
    ("loss", "loss, nats a token"),
)
_BY_TOKEN = ("perplexity", "loss")
_COMPARED = {"token": "perplexity", "byte": "bits_per_byte", "word": "word_perplexity"}
"""Measure by the `per` of a change; files of older versions have "word"."""
_SAMPLE_SHARES = (
    ("distinct_1", "different words"),
    ("distinct_2", "different word pairs"),
    ("distinct_3", "different word triples"),
    ("repetition", "4-grams seen before"),
)


@dataclass(frozen=True)
class Row:
    """One line of the table; an empty string stands for what is not there.

    Attributes:
        group: "validation", "test" or "samples".
        what: the measure.
        before, after, change: formatted values.
        intervals: 95% intervals of the three.
        effect: "better", "worse" or "no clear change", where an interval of the change says so.
    """

    group: str
    what: str
    before: str
    after: str
    change: str
    intervals: tuple[str, str, str] = ("", "", "")
    effect: str = ""


def comparison_table(comparison: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The numbers as rows (what, before, after, change); 95% intervals stand in brackets behind their values.

    Args:
        comparison: content of comparison.json.
    """
    return [
        (
            f"{row.group}: {row.what}",
            _with_interval(row.before, row.intervals[0]),
            _with_interval(row.after, row.intervals[1]),
            _with_interval(row.change, row.intervals[2]),
        )
        for row in table_rows(comparison)
    ]


def table_rows(comparison: Mapping[str, Any]) -> list[Row]:
    """The rows behind `comparison_table`, with intervals apart. A measure that neither model has is left out."""
    rows = []
    for split in SPLITS:
        before, after = at(comparison, "before", split), at(comparison, "after", split)
        for name, what in _MEASURES:
            old, new = finite(at(before, name)), finite(at(after, name))
            if old is None and new is None and (name != "perplexity" or not (before and after)):
                continue
            change, change_interval, effect = _change(comparison, split, name, old, new)
            intervals = (_interval(before, name), _interval(after, name), change_interval)
            rows.append(Row(split, what, _value(old, name), _value(new, name), change, intervals, effect))
    return rows + _sample_rows(comparison)


def other_tokens(comparison: Mapping[str, Any], split: str) -> bool:
    """Return whether the two models cut the text into different tokens, so that no value per token is comparable."""
    same = at(comparison, "same_tokenizer")
    if isinstance(same, bool):
        return not same
    if at(comparison, "change", split, "per") == "word":  # files of older versions
        return True
    before, after = (finite(at(comparison, side, split, "tokens")) for side in ("before", "after"))
    return before is not None and after is not None and before != after


def _change(
    comparison: Mapping[str, Any], split: str, name: str, old: float | None, new: float | None
) -> tuple[str, str, str]:
    """Change of one measure: (value, interval, effect)."""
    if name in _BY_TOKEN and other_tokens(comparison, split):
        return "not comparable", "", ""
    given = at(comparison, "change", split)
    given_percent, ends = finite(at(given, "percent")), at(given, "interval")
    compared = _COMPARED.get(str(at(given, "per")), "perplexity")  # the measure whose change has an interval
    if name == compared and given_percent is not None:
        return percent(given_percent), interval(ends, percent), _effect(given, given_percent)
    if old is None or new is None:
        return UNKNOWN, "", ""
    if name != "loss":
        return (percent(100 * (new / old - 1)) if old > 0 else UNKNOWN), "", ""
    if compared != "perplexity" or given_percent is None:
        return signed(new - old, 3), "", ""
    # The loss is the logarithm of the perplexity, so the interval of one gives the interval of the other.
    return signed(new - old, 3), interval(ends, lambda end: signed(_log_ratio(end), 3)), _effect(given, given_percent)


def _effect(given: Any, given_percent: float) -> str:
    """What the interval of a change says: whether it leaves out zero."""
    if not isinstance(at(given, "excludes_zero"), bool):
        return ""
    if not given["excludes_zero"]:
        return "no clear change"
    return "better" if given_percent < 0 else "worse"


def _log_ratio(change_percent: float) -> float | None:
    return math.log1p(change_percent / 100) if change_percent > -100 else None


def _sample_rows(comparison: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, what in _SAMPLE_SHARES:
        old, new = (finite(at(comparison, side, "sample_metrics", name)) for side in ("before", "after"))
        if old is not None or new is not None:
            change = UNKNOWN if old is None or new is None else f"{signed(100 * (new - old), 1)} points"
            rows.append(Row("samples", what, share(old), share(new), change))
    keys = ("sample_metrics", "longest_match", "words")
    old, new = (finite(at(comparison, side, *keys)) for side in ("before", "after"))
    if old is not None or new is not None:
        change = UNKNOWN if old is None or new is None else signed(new - old, 0)
        rows.append(Row("samples", "longest copied passage, words", count(old), count(new), change))
    return rows


def _value(value: float | None, name: str) -> str:
    return measure(value, 3 if name in ("loss", "bits_per_byte") else None)


def _interval(measured: Any, name: str) -> str:
    if finite(at(measured, name)) is None:
        return ""
    return interval(at(measured, "interval", name), lambda end: _value(end, name))


def _with_interval(value: str, ends: str) -> str:
    return f"{value} [{ends}]" if ends else value
