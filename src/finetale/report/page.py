"""report.html: one page that opens offline and loads nothing. Knows what is shown; `report.html.j2` knows how."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Template
from markupsafe import Markup

from finetale.config import setting_groups
from finetale.errors import RunError
from finetale.formatting import UNKNOWN, at, count, finite, measure, objects, percent, plain, share
from finetale.report import charts
from finetale.report.table import SPLITS, other_tokens
from finetale.report.views import shared_view, template_environment
from finetale.rundir import RunDirectory, read_json, write_bytes

Values = TypeVar("Values")
Drawing = list[tuple[str, Markup]]


def write_report(run: RunDirectory) -> Path:
    """Write a run's report.html from the files in its directory.

    Returns:
        The path of report.html.

    Raises:
        RunError: comparison.json is missing, or a file is damaged.
    """
    if not run.comparison.is_file():
        raise RunError(
            f"{run.comparison} is missing, and it is what a report is about.",
            f"`finetale compare {run.root}` writes it; an interrupted run goes on with `finetale resume {run.root}`.",
        )
    html = render_report(
        read_json(run.comparison),
        metrics=[event.to_dict() for event in run.read_events()],
        manifest=read_json(run.manifest) if run.manifest.is_file() else None,
        data=read_json(run.data) if run.data.is_file() else None,
    )
    # JSON may hold half of a surrogate pair, UTF-8 may not.
    write_bytes(run.report, html.encode("utf-8", "replace"))
    return run.report


def render_report(
    comparison: Mapping[str, Any],
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    manifest: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> str:
    """The report as one HTML page.

    Args:
        comparison: content of comparison.json.
        metrics: events of metrics.jsonl.
        manifest: content of run.json; None when two models were compared without a run.
        data: content of data.json, if known.
    """
    curves = charts.read_curves(metrics)
    return _template().render(
        shared_view(comparison, manifest, data),
        bars=_bars(comparison),
        prompts=_samples_by_prompt(comparison),
        curves=curves,
        loss_drawing=_draw(charts.loss_chart, curves),
        document_changes=_document_changes(comparison),
        evaluations=_events(metrics, "evaluation"),
        samples_on_the_way=_events(metrics, "sample"),
        warnings=_events(metrics, "warning"),
        setting_groups=_settings(at(manifest, "config")),
        text_facts=_text_facts(data),
        command=_command(at(manifest, "command")),
        after_quoted=shlex.quote(str(at(comparison, "after", "name") or "MODEL")),
    )


@cache
def _template() -> Template:
    return template_environment(autoescape=True).get_template("report.html.j2")


def _events(metrics: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [event for event in metrics if event.get("event") == kind]


def _bars(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The perplexity of each split as two bars, lengths and ends of intervals in percent of the longest."""
    bars = []
    for split in SPLITS:
        measured = [(side, at(comparison, side, split)) for side in ("before", "after")]
        values = [finite(at(split_values, "perplexity")) for _, split_values in measured]
        if other_tokens(comparison, split) or None in values:
            continue
        ends = [_ends(at(split_values, "interval", "perplexity")) for _, split_values in measured]
        longest = max(value for value in [*values, *ends[0], *ends[1]] if value is not None) or 1.0
        lines = [
            {
                "side": side,
                "text": measure(value),
                "width": _css_percent((value or 0.0) / longest),
                "interval": [_css_percent(low_high[0] / longest), _css_percent((low_high[1] - low_high[0]) / longest)]
                if low_high
                else None,
            }
            for (side, _), value, low_high in zip(measured, values, ends, strict=True)
        ]
        bars.append({"split": split, "lines": lines, "change": percent(at(comparison, "change", split, "percent"))})
    return bars


def _ends(interval: Any) -> list[float]:
    ends = [finite(end) for end in interval] if isinstance(interval, list) else []
    return [end for end in ends if end is not None] if len(ends) == 2 and None not in ends else []


def _css_percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def _samples_by_prompt(comparison: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(prompt, [{"before": sample, "after": sample}]) in order; the n-th of a prompt and seed meets the other's n-th."""
    pairs: dict[tuple[str, str, int], dict[str, Any]] = {}
    for side in ("before", "after"):
        seen: dict[tuple[str, str], int] = {}
        for sample in objects(at(comparison, side, "samples")):
            key = (str(sample.get("prompt", "")), str(sample.get("seed", "")))
            seen[key] = seen.get(key, 0) + 1
            pairs.setdefault((*key, seen[key]), {})[side] = sample
    prompts: dict[str, list[dict[str, Any]]] = {}
    for (prompt, _, _), pair in pairs.items():
        prompts.setdefault(prompt, []).append(pair)
    return list(prompts.items())


def _document_changes(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Chart and counts of each split whose `change` has `documents`: the change of each document in percent."""
    found = []
    for split in SPLITS:
        given = at(comparison, "change", split, "documents")
        values = [value for value in map(finite, given if isinstance(given, list) else []) if value is not None]
        if values:
            better = sum(value < 0 for value in values)
            found.append(
                {"split": split, "drawing": _draw(charts.change_chart, values), "better": better, "all": len(values)}
            )
    return found


def _draw(chart: Callable[[Values, int], str], values: Values) -> Drawing:
    """A chart for wide pages and one for phones, as (CSS class, SVG). All text in the SVG is our own."""
    drawn = [("wide", chart(values, charts.WIDE)), ("narrow", chart(values, charts.NARROW))]
    return [(name, Markup(svg)) for name, svg in drawn if svg]


def _text_facts(data: Any) -> list[tuple[str, str]]:
    """What else is known of the text, as (label, value)."""
    text, blocks = at(data, "text"), at(data, "blocks")
    files = at(text, "files")
    num_files = len(files) + int(finite(at(text, "more_files")) or 0) if isinstance(files, list) else None
    languages = [(item.get("language"), item.get("sampled_documents")) for item in objects(at(text, "languages"))]
    packed = f"{count(at(blocks, 'count'))} of {count(at(blocks, 'size'))} tokens"
    if finite(at(blocks, "padding_share")) is not None:
        packed += f", {share(blocks['padding_share'])} of them padding"
    facts = [
        ("Files", count(num_files)),
        ("Files left out", _counted(at(text, "skipped"))),
        ("Languages of a sample", ", ".join(f"{plain(name)} {count(number)}" for name, number in languages) or UNKNOWN),
        ("Cleaned", _counted(at(text, "cleaning"))),
        ("Blocks", packed if finite(at(blocks, "count")) is not None else UNKNOWN),
    ]
    return [(label, value) for label, value in facts if value != UNKNOWN]


def _counted(counts: Any) -> str:
    """{what: how many}, one level deep or two, as text; zeros are left out."""
    if not isinstance(counts, Mapping):
        return UNKNOWN
    flat = [
        pair
        for name, item in counts.items()
        for pair in (item.items() if isinstance(item, Mapping) else [(name, item)])
    ]
    found = [f"{str(name).replace('_', ' ')} {count(number)}" for name, number in flat if finite(number)]
    return ", ".join(found) or "none"


def _command(given: Any) -> str:
    """The command line as one would type it."""
    return shlex.join(map(str, given)) if isinstance(given, list) else str(given or "")


def _settings(config: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """A run's settings under the titles of the settings file; names this version does not know come last."""
    if not isinstance(config, Mapping):
        return []
    groups = [(title, [name for name in names if name in config]) for title, names in setting_groups()]
    known = {name for _, names in groups for name in names}
    groups.append(("Other", [name for name in config if name not in known]))
    return [(title, [(name, plain(config[name])) for name in names]) for title, names in groups if names]
