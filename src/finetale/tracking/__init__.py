"""Send the events of a run to experiment trackers. Knows no training.

Each tracker runs in a process of its own, so that it can't delay or end the run. One that hangs, fails or dies is
dropped with one warning. `clients.py` has the trackers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from finetale.errors import InterruptedRun
from finetale.notify import Notify
from finetale.schema import ComparisonFile, Event, SampleEvent, WarningEvent, scalars
from finetale.tracking.clients import CLIENTS, Start
from finetale.tracking.process import TrackerProcess

__all__ = ["CLIENTS", "Start", "Trackers", "final_figures"]

PATIENCE = 120.0
"""Seconds that a tracker may take for one message during training. Training does not wait for it."""
PATIENCE_AT_END = {"finished": 60.0, "failed": 10.0, "interrupted": 10.0}
"""Seconds to wait for the rest at the end, by the status of the run. An interrupted run may soon be killed."""


class Trackers:
    """The trackers of a run, as a context: it begins with the run and ends with its status.

    Args:
        names: names of trackers.
        start: creates what they get first; called only if there is a tracker.
        notify: receives the warnings that don't come from the training loop.
    """

    def __init__(self, names: Sequence[str], start: Callable[[], Start], notify: Notify) -> None:
        self.figures: dict[str, float] = {}
        """The final figures; set before the end."""
        self._notify = notify
        self._alive: list[TrackerProcess] = []
        given = start() if names else None
        for name in names:
            assert given is not None
            try:
                self._alive.append(TrackerProcess(name, given))
            except OSError as error:
                notify(_warning(name, f"its process can't be started ({error})"))

    def listener(self, record: Notify) -> Notify:
        """Return the listener for the training loop.

        Args:
            record: receives the warnings, as events of the training loop.
        """

        def listen(event: Event) -> None:
            if not self._alive:
                return
            step, numbers = getattr(event, "step", None), scalars(event)
            for tracker in list(self._alive):
                if problem := tracker.problem(PATIENCE):
                    self._drop(tracker)
                    record(_warning(tracker.name, problem, event))
                elif isinstance(event, SampleEvent):
                    tracker.call("sample", event.prompt + event.text, step)
                elif numbers:
                    tracker.call("scalars", numbers, step)

        return listen

    def _drop(self, tracker: TrackerProcess) -> None:
        tracker.kill()
        self._alive.remove(tracker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stopped = isinstance(error, InterruptedRun | KeyboardInterrupt)
        status = "finished" if error is None else "interrupted" if stopped else "failed"
        for tracker in self._alive:
            tracker.call("finish", self.figures, status)
        deadline = time.monotonic() + PATIENCE_AT_END[status]
        for tracker in self._alive:
            if problem := tracker.wait(max(1.0, deadline - time.monotonic())):
                self._notify(_warning(tracker.name, problem))


def _warning(name: str, problem: str, event: Event | None = None) -> WarningEvent:
    return WarningEvent(
        message=f"The tracker {name} was dropped: {problem}. The run is not affected.",
        step=getattr(event, "step", None),
        tokens=getattr(event, "tokens", None),
    )


def final_figures(comparison: ComparisonFile) -> dict[str, float]:
    """Return the figures of base and tuned model on held-out text by name, such as `after/test/perplexity`."""
    found = {}
    for when in ("before", "after"):
        for split in ("validation", "test"):
            figures = getattr(getattr(comparison, when), split)
            for measure in ("loss", "perplexity", "bits_per_byte"):
                value = getattr(figures, measure, None)
                if value is not None:
                    found[f"{when}/{split}/{measure}"] = value
    return found
