"""Test that the files of a real run match the schema, and that its report has every section."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetale.report import model_card, render_report
from finetale.rundir import RunDirectory
from finetale.schema import ComparisonFile, DataFile, Record, RunManifest, event_line, parse, parse_events
from unknown_keys import unknown_keys


@pytest.mark.parametrize(
    ("name", "kind"), [("run.json", RunManifest), ("data.json", DataFile), ("comparison.json", ComparisonFile)]
)
def test_files_have_exactly_the_fields_of_the_schema(here: Path, name: str, kind: type[Record]) -> None:
    content = (here / "run" / name).read_text(encoding="utf-8")
    record = parse(kind, content)
    assert unknown_keys(record) == [], "a writer writes a field that the schema does not have"
    assert record.to_dict() == json.loads(content)
    assert json.loads(content)["schema_version"] == 2


def test_metrics_contain_only_events_of_the_schema(here: Path) -> None:
    content = (here / "run/metrics.jsonl").read_text(encoding="utf-8")
    events = parse_events(content)
    assert len(events) == content.count("\n") > 20
    assert [key for event in events for key in unknown_keys(event)] == []
    assert "".join(map(event_line, events)) == content


def test_the_report_has_every_section(here: Path) -> None:
    run = RunDirectory(here / "run")
    page = render_report(
        run.read_comparison(), events=run.read_events(), manifest=run.read_manifest(), data=run.read_data()
    )
    for title in ("numbers", "training", "samples", "copying", "data", "making", "use"):
        assert f'<h2 id="{title}">' in page
    assert page.count("<svg") == 2
    card = model_card(run.read_manifest(), run.read_comparison(), run.read_data())
    assert "Read = trained + validation + test + dropped, to the token." in card
