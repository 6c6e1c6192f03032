"""The files of a real run hold what the schema knows, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetale.schema import ComparisonFile, DataFile, Record, RunManifest, event_line, parse, parse_events


@pytest.mark.parametrize(
    ("name", "kind"), [("run.json", RunManifest), ("data.json", DataFile), ("comparison.json", ComparisonFile)]
)
def test_writers_and_schema_agree(here: Path, name: str, kind: type[Record]) -> None:
    content = (here / "run" / name).read_text(encoding="utf-8")
    record = parse(kind, content)
    assert record.unknown_keys() == [], "a writer writes a field that the schema does not have"
    written, known = json.loads(content), record.to_dict()
    assert {key: value for key, value in known.items() if key in written} == written | {
        key: known[key] for key in ("command", "tokens") if key in written
    }


def test_every_line_of_the_metrics_is_a_known_event(here: Path) -> None:
    content = (here / "run/metrics.jsonl").read_text(encoding="utf-8")
    events = parse_events(content)
    assert len(events) == content.count("\n") > 20
    assert [key for event in events for key in event.unknown_keys()] == []
    assert "".join(map(event_line, events)) == content
