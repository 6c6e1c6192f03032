"""Write report.html: one page that opens offline and loads nothing. `report.html.j2` has the layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Template
from markupsafe import Markup

from finetale.config import read_settings_file, setting_groups
from finetale.errors import ConfigError, RunError
from finetale.formatting import UNKNOWN, count, plain, share, shell_command
from finetale.report import charts
from finetale.report.table import COPIED_KEY, Measure, Row
from finetale.report.views import bars_of, shared_view, template_environment
from finetale.rundir import RunDirectory, write_bytes
from finetale.schema import (
    ComparisonFile,
    DataFile,
    EvaluationEvent,
    Event,
    Record,
    RunManifest,
    Sample,
    SampleEvent,
    WarningEvent,
)
from finetale.surrogates import escape_surrogates
from finetale.text.findings import cleaned
from finetale.text.source_names import source_name

E = TypeVar("E", bound=Record)
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
            f"`{shell_command('finetale', 'compare', run.root)}` writes it. Continue an interrupted run with "
            f"`{shell_command('finetale', 'resume', run.root)}`.",
        )
    manifest = run.read_manifest() if run.manifest.is_file() else None
    html = render_report(
        run.read_comparison(),
        events=run.read_events(),
        manifest=manifest,
        data=run.read_data() if run.data.is_file() else None,
        settings=run_settings(run, manifest),
    )
    write_bytes(run.report, escape_surrogates(html).encode())
    return run.report


def run_settings(run: RunDirectory, manifest: RunManifest | None) -> dict[str, Any]:
    """Return a run's settings by name; from run.json where config.yaml is missing, as in copies of old runs."""
    try:
        return read_settings_file(run.config)
    except ConfigError:
        return (manifest and manifest.config) or {}


def render_report(
    comparison: ComparisonFile,
    *,
    events: Sequence[Event] = (),
    manifest: RunManifest | None = None,
    data: DataFile | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return the report as one HTML page.

    Args:
        comparison: content of comparison.json.
        events: of metrics.jsonl.
        manifest: content of run.json; None when two models were compared without a run.
        data: content of data.json, if known.
        settings: of config.yaml, by name.
    """
    curves = charts.read_curves(events)
    text = data.text if data else None
    view = shared_view(comparison, manifest, data)
    return _template().render(
        view,
        bars=bars_of(comparison),
        prompts=_samples_by_prompt(comparison),
        curves=curves,
        loss_drawing=_draw(curves),
        evaluations=_of(events, EvaluationEvent),
        sample_tokens=max((each.sample_tokens or 0 for each in _of(events, EvaluationEvent)), default=0),
        samples_on_the_way=_of(events, SampleEvent),
        warnings=_of(events, WarningEvent),
        setting_groups=_settings(settings or {}),
        text_facts=_text_facts(data) if data else [],
        longest_bin=max((each.documents for each in text.length_histogram), default=0) if text else 0,
        command=shell_command(*manifest.command) if manifest and manifest.command else "",
        headline=_headline(view["groups"]),
        meanings=_meanings(view["groups"]),
    )


@cache
def _template() -> Template:
    return template_environment(autoescape=True).get_template("report.html.j2")


def _of(events: Sequence[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def _headline(groups: list[tuple[str, list[Row]]]) -> list[tuple[Measure, list[Row]]]:
    """Return the figures for all readers, by measure: verdict, watched text, answers, and two of the samples."""
    found: dict[Measure, list[Row]] = {}
    for _, rows in groups:
        for row in rows:
            if row.decides or row.group in ("watched", "answers") or row.measure.key in ("distinct_1", COPIED_KEY):
                found.setdefault(row.measure, []).append(row)
    return list(found.items())


def _meanings(groups: list[tuple[str, list[Row]]]) -> list[tuple[str, str]]:
    """Return (name, meaning) of each measure that is shown, in the order of the table."""
    shown = {row.measure.name: row.measure for _, rows in groups for row in rows}
    return [(measure.name, measure.meaning) for measure in shown.values()]


def _samples_by_prompt(comparison: ComparisonFile) -> list[tuple[str, list[dict[str, Sample]]]]:
    """Return (prompt, [{"before": sample, "after": sample}]) in order, paired by prompt, seed and number."""
    pairs: dict[tuple[str, int | None, int], dict[str, Sample]] = {}
    for name, side in (("before", comparison.before), ("after", comparison.after)):
        seen: dict[tuple[str, int | None], int] = {}
        for sample in side.samples:
            key = (sample.prompt, sample.seed)
            seen[key] = seen.get(key, 0) + 1
            pairs.setdefault((*key, seen[key]), {})[name] = sample
    prompts: dict[str, list[dict[str, Sample]]] = {}
    for (prompt, _, _), pair in pairs.items():
        prompts.setdefault(prompt, []).append(pair)
    return list(prompts.items())


def _draw(curves: charts.Curves) -> Drawing:
    """Return the chart for wide pages and for phones, as (CSS class, SVG). All text in the SVG is our own."""
    drawn = [("wide", charts.loss_chart(curves, charts.WIDE)), ("narrow", charts.loss_chart(curves, charts.NARROW))]
    return [(name, Markup(svg)) for name, svg in drawn if svg]


def _text_facts(data: DataFile) -> list[tuple[str, str]]:
    """Return further facts about the text, as (label, value)."""
    facts = []
    if data.text is not None:
        text = data.text
        languages = ", ".join(f"{each.language} {count(each.sampled_documents)}" for each in text.languages)
        facts = [
            ("Files", count(len(text.files) + text.more_files)),
            ("Languages of a sample", languages or UNKNOWN),
            ("Cleaned", cleaned(text) or "nothing"),
        ]
    if data.blocks is not None:
        blocks = data.blocks
        packed = f"{count(blocks.count)} of {count(blocks.size)} tokens, {share(blocks.padding_share)} of them padding"
        facts.append(("Blocks", packed))
    return [(label, value) for label, value in facts if value != UNKNOWN]


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return a run's settings under the titles of the settings file. Unknown names come last."""
    groups = [(title, [name for name in names if name in settings]) for title, names in setting_groups()]
    known = {name for _, names in groups for name in names}
    groups.append(("Other", [name for name in settings if name not in known]))
    named = {
        key: _named_sources(settings[key]) for key in ("sources", "validation", "test", "watch") if key in settings
    }
    shown = {**settings, **named}
    return [(title, [(name, plain(shown[name])) for name in names]) for title, names in groups if names]


def _named_sources(value: Any) -> Any:
    """Return a setting with names for text from memory and standard input, whose files have meaningless names."""
    return list(map(source_name, map(str, value))) if isinstance(value, list) else value
