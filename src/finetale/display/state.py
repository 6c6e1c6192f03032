"""The state of a run after its events so far. Knows nothing of how it is displayed."""

from __future__ import annotations

import time

from finetale.formatting import duration
from finetale.schema import BeginEvent, EvaluationEvent, Event, SampleEvent, StageEvent, TrainEvent

_MAX_SPEEDS = 20


class RunState:
    """The newest event of each kind that a display shows.

    Attributes:
        first_step: step that the run, or its resumption, begins at.
        total: number of steps.
        train: newest training step.
        evaluation: newest evaluation.
        best: evaluation with the lowest loss.
        sample: newest sample.
    """

    def __init__(self) -> None:
        self.first_step = 0
        self.total = 0
        self.train: TrainEvent | None = None
        self.evaluation: EvaluationEvent | None = None
        self.best: EvaluationEvent | None = None
        self.sample: SampleEvent | None = None
        self._speeds: list[float] = []
        self._began = time.monotonic()

    def take(self, event: Event) -> None:
        """Update the state with an event."""
        if isinstance(event, BeginEvent):
            self.first_step, self.total = event.step, event.total
            self._began = time.monotonic()
        elif isinstance(event, TrainEvent):
            self.train = event
            if event.tokens_per_second is not None:
                self._speeds = [*self._speeds[1 - _MAX_SPEEDS :], event.tokens_per_second]
        elif isinstance(event, EvaluationEvent):
            self.evaluation = event
            self.best = event if event.best else self.best
        elif isinstance(event, SampleEvent):
            self.sample = event

    @property
    def speed(self) -> float:
        """Return the mean tokens per second of the last training events."""
        return sum(self._speeds) / max(1, len(self._speeds))

    def time_left(self, step: int) -> str:
        """Return the time left after a step as text, from the mean time per step. Empty at both ends."""
        done = step - self.first_step
        if done <= 0 or step >= self.total:
            return ""
        seconds = (time.monotonic() - self._began) / done * (self.total - step)
        return f"{duration(round(seconds))} left"


def count_of(event: StageEvent) -> str:
    """Return how much of a stage is done: "", "3,000 documents" or "3 of 10 MiB"."""
    if event.done is None:
        return event.unit or ""
    of = "" if event.total is None else f" of {event.total:,}"
    return f"{event.done:,}{of} {event.unit or ''}".rstrip()
