"""Test the schema: old files open, reading and writing lose nothing, and errors name invalid values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetale import schema
from finetale.schema import (
    ComparisonFile,
    DataFile,
    EvaluationEvent,
    Record,
    RunManifest,
    SampleEvent,
    StageEvent,
    TrainEvent,
    event_line,
    parse,
    parse_events,
    recorded_lines,
)
from unknown_keys import unknown_keys

OLD = Path(__file__).parents[1] / "old_runs/version-1"
FILES: list[tuple[str, type[Record]]] = [
    ("run.json", RunManifest),
    ("data.json", DataFile),
    ("comparison.json", ComparisonFile),
]


def old(name: str) -> str:
    return (OLD / name).read_text(encoding="utf-8")


def holds_all_of(after: object, before: object) -> bool:
    """Return whether every value of the old object is in the new one, which may have more keys."""
    if isinstance(before, dict) and isinstance(after, dict):
        return all(key in after and holds_all_of(after[key], before[key]) for key in before)
    if isinstance(before, list) and isinstance(after, list):
        return len(after) == len(before) and all(map(holds_all_of, after, before))
    return after == before


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_a_version_1_file_opens_without_loss(name: str, kind: type[Record]) -> None:
    record, before = parse(kind, old(name)), json.loads(old(name))
    assert unknown_keys(record) == []
    after = record.to_dict()
    assert len(before) >= 6
    changed = {key for key in before if after[key] != before[key]}
    assert (
        changed
        == {"run.json": {"command"}, "data.json": {"tokens", "text"}, "comparison.json": {"before", "after"}}[name]
    )
    # Later versions added fields; every old value is still there.
    for key in changed & {"text", "before", "after"}:
        assert holds_all_of(after[key], before[key])
    assert parse(kind, json.dumps(after)) == record


def test_changed_fields_of_version_1_are_converted() -> None:
    manifest = parse(RunManifest, old("run.json"))
    assert manifest.schema_version == 1
    assert manifest.command is not None
    assert manifest.command[:5] == ["finetale", "train", "stories", "--model", "base"]
    assert manifest.config is not None
    assert manifest.config["max_steps"] == 3
    assert parse(DataFile, old("data.json")).tokens.context == 0


def test_an_old_command_with_an_apostrophe_is_split_at_spaces() -> None:
    command = parse(RunManifest, '{"command": "finetale train it\'s here"}').command
    assert command == ["finetale", "train", "it's", "here"]


def test_events_of_version_1() -> None:
    events = parse_events(old("metrics.jsonl"))
    assert len(events) == len(old("metrics.jsonl").splitlines()) == 11
    assert [event.event for event in events[:4]] == ["evaluation", "train", "checkpoint", "train"]
    written = [json.loads(event_line(event)) for event in events]
    before = [json.loads(line) for line in old("metrics.jsonl").splitlines()]
    assert holds_all_of(written, before)  # later versions added fields
    assert parse_events("".join(map(event_line, events))) == events


def test_a_line_separator_in_text_does_not_end_a_line() -> None:
    """U+2028, U+0085 and form feeds occur in books; `str.splitlines` splits at them."""
    sample = SampleEvent(step=3, tokens=30, prompt="One\u2028two", text="\x85\x0c\x1c three\nfour")
    assert parse_events(event_line(sample) + event_line(sample)) == [sample, sample]


def test_cut_and_unknown_lines_are_skipped() -> None:
    lines = [
        event_line(TrainEvent(step=1, tokens=8, loss=4.0, learning_rate=1e-4)),
        '{"event": "tracker", "step": 2, "url": 1}\n',
        '{"event": "train", "step": 3, "loss": NaN, "learning_rate": 1}\n',
        "[1]\n",
        '{"event": "train", "step": true}\n',
        '{"event": "train", "st',
    ]
    assert [(step, json.loads(line)["event"]) for step, line in recorded_lines("".join(lines))] == [
        (1, "train"),
        (2, "tracker"),
        (3, "train"),
    ]
    assert [event.event for event in parse_events("".join(lines))] == ["train"]


def test_missing_counts_of_a_stage_are_omitted() -> None:
    assert StageEvent(message="Reading").to_dict() == {"event": "stage", "message": "Reading"}


def test_keys_of_newer_versions_are_kept() -> None:
    text = json.dumps({"schema_version": 9, "status": "running", "mood": "good", "base": {"name": "a", "colour": 1}})
    manifest = parse(RunManifest, text)
    assert unknown_keys(manifest) == ["base.colour", "mood"]
    assert manifest.to_dict()["mood"] == "good"
    assert manifest.to_dict()["base"]["colour"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"steps": "three"}', "steps is 'three'; expected a valid integer"),
        ('{"steps": true}', "steps is 'True'; expected a valid integer"),
        ('{"best_loss": NaN}', "best_loss is 'nan'; expected a finite number"),
        ('{"best_loss": Infinity}', "best_loss is 'inf'; expected a finite number"),
        ('{"base": "gpt2"}', "base is 'gpt2'; expected an object"),
        ('{"base": {"parameters": 1}}', "base.name is missing"),
        ('{"process": {"pid": "1", "host": "a"}}', "process.pid is '1'; expected a valid integer"),
        ('{"status": "asleep"}', "status is 'asleep'; expected 'running', 'finished', 'interrupted' or 'failed'"),
        ("[1]", "the content is '[1]'; expected an object"),
        ("{", "it is not JSON (EOF while parsing an object at line 1 column 1)"),
    ],
)
def test_errors_name_invalid_values(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(RunManifest, content)


def test_numbers_that_are_not_finite_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            EvaluationEvent(step=1, tokens=1, loss=value, perplexity=2.0, best=True)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunManifest().steps = 3  # type: ignore[misc]


def test_every_field_is_described() -> None:
    records: list[Any] = [getattr(schema, name) for name in schema.__all__]
    records = [kind for kind in records if isinstance(kind, type) and issubclass(kind, Record)]
    assert len(records) >= 40
    missing = [
        f"{kind.__name__}.{name}"
        for kind in records
        for name, field in kind.model_fields.items()
        if not field.description and name != "event"
    ]
    assert missing == []
    assert [kind.__name__ for kind in records if not kind.__doc__] == []
