"""What a run reports while it works: one class per event, and the lines of `metrics.jsonl`.

The training loop's own events carry the step and are recorded in `metrics.jsonl`; the other events are only displayed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from finetale.schema.base import Record, SparseRecord
from finetale.schema.run import ProbeResult


class StageEvent(SparseRecord):
    """A stage of the work began, or advanced."""

    event: Literal["stage"] = "stage"
    message: str = Field(description="What is being done, without a full stop.")
    done: int | None = Field(default=None, description="How much of it is done, in `unit`.")
    total: int | None = Field(default=None, description="How much there is, in `unit`.")
    unit: str | None = Field(default=None, description="Such as `documents` or `MB`.")


class WarningEvent(SparseRecord):
    """A warning. Recorded in `metrics.jsonl` if it comes from the training loop."""

    event: Literal["warning"] = "warning"
    message: str = Field(description="One or more sentences.")
    step: int | None = Field(default=None, description="Optimizer steps done.")
    tokens: int | None = Field(default=None, description="Target tokens trained on so far.")


class NoteEvent(SparseRecord):
    """A piece of information, such as which files were left out."""

    event: Literal["note"] = "note"
    message: str = Field(description="One or more sentences.")


class BeginEvent(Record):
    """Training begins, or continues after a resume."""

    event: Literal["begin"] = "begin"
    step: int = Field(description="Optimizer steps done.")
    total: int = Field(description="Optimizer steps of the whole run.")
    targets: int = Field(description="Target tokens per epoch.")
    run: str = Field(description="Path of the run directory.")


class ProbeEvent(ProbeResult):
    """The probe chose how to compute the run."""

    event: Literal["probe"] = "probe"
    step: int = Field(default=0, description="Optimizer steps done.")


class RecordedEvent(Record):
    """An event of the training loop; a line of `metrics.jsonl`."""

    step: int = Field(description="Optimizer steps done.")
    tokens: int = Field(default=0, description="Target tokens trained on so far.")


class TrainEvent(RecordedEvent):
    """An optimizer step, or the last of several that were not reported."""

    event: Literal["train"] = "train"
    epoch: float | None = Field(default=None, description="Epochs done.")
    loss: float = Field(description="Mean training loss of the step, nats per token.")
    learning_rate: float = Field(description="Learning rate of the step.")
    grad_norm: float | None = Field(default=None, description="Norm of the gradient before clipping.")
    tokens_per_second: float | None = Field(default=None, description="Target tokens per second since the last line.")
    memory_bytes: int | None = Field(default=None, description="Peak memory so far, bytes.")


class EvaluatingEvent(SparseRecord):
    """Progress of an evaluation within a run. Not recorded in `metrics.jsonl`."""

    event: Literal["evaluating"] = "evaluating"
    step: int = Field(description="Optimizer steps done.")
    done: int = Field(description="Passes over the validation text that are done.")
    total: int = Field(description="Passes that the evaluation takes.")


class EvaluationEvent(RecordedEvent):
    """An evaluation on the validation text."""

    event: Literal["evaluation"] = "evaluation"
    loss: float = Field(description="Mean validation loss, nats per token.")
    perplexity: float = Field(description="Perplexity per token.")
    best: bool = Field(default=False, description="Whether it is the best evaluation so far.")
    sample_tokens: int | None = Field(
        default=None, description="Validation tokens measured, where only a sample was; null: all."
    )


class SampleEvent(RecordedEvent):
    """A text that the model generates at this step."""

    event: Literal["sample"] = "sample"
    prompt: str = Field(description="The prompt.")
    text: str = Field(description="Its continuation.")


class CheckpointEvent(RecordedEvent):
    """A checkpoint was saved."""

    event: Literal["checkpoint"] = "checkpoint"
    path: str = Field(description="Its folder, relative to the run directory.")


class StoppedEvent(RecordedEvent):
    """Training ended early because the validation loss stopped falling."""

    event: Literal["stopped"] = "stopped"
    message: str = Field(description="One sentence.")


Event = (
    StageEvent
    | WarningEvent
    | NoteEvent
    | BeginEvent
    | ProbeEvent
    | TrainEvent
    | EvaluatingEvent
    | EvaluationEvent
    | SampleEvent
    | CheckpointEvent
    | StoppedEvent
)
EVENTS: tuple[type[Record], ...] = (
    StageEvent,
    WarningEvent,
    NoteEvent,
    BeginEvent,
    ProbeEvent,
    TrainEvent,
    EvaluationEvent,
    SampleEvent,
    CheckpointEvent,
    StoppedEvent,
)
RECORDED: tuple[str, ...] = ("train", "evaluation", "sample", "checkpoint", "warning", "stopped")
"""The events that `metrics.jsonl` holds."""

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


_SCALARS = ("loss", "perplexity", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes")


def scalars(event: Event) -> dict[str, float]:
    """Return the numbers of an event of the training loop, by the names that trackers show, such as `train/loss`."""
    group = "validation" if isinstance(event, EvaluationEvent) else event.event
    found = {f"{group}/{name}": getattr(event, name, None) for name in _SCALARS}
    return {name: value for name, value in found.items() if value is not None}


def event_line(event: Event) -> str:
    """Return an event as a line of `metrics.jsonl`, with its line feed."""
    values = event.to_dict()
    ordered = {name: values.pop(name) for name in ("event", "step", "tokens") if name in values} | values
    return json.dumps(ordered, ensure_ascii=False, allow_nan=False) + "\n"


def recorded_lines(content: str) -> Iterator[tuple[int, str]]:
    """Yield (step, line) of each whole line of `metrics.jsonl`, of unknown events too.

    Only a line feed ends a line: text in a line may hold U+2028 and other characters that `str.splitlines` splits at. A
    line that a crash cut short is left out.
    """
    for line in content.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = row.get("step") if isinstance(row, dict) else None
        if isinstance(step, int) and not isinstance(step, bool):
            yield step, line


def parse_events(content: str) -> list[Event]:
    """Return the events in the content of `metrics.jsonl`; events that this version does not know are left out."""
    events = []
    for _, line in recorded_lines(content):
        try:
            events.append(_EVENT.validate_json(line))
        except ValidationError:
            continue
    return events
