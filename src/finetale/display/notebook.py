"""Show the events of a run in one display of a notebook, which is updated in place.

Jupyter and Colab keep every printed line, and a run prints hundreds. So one block of HTML is replaced instead, at most
a few times per second.
"""

from __future__ import annotations

import html
import sys
import time
from types import TracebackType
from typing import Any

from finetale.display.state import RunState, count_of
from finetale.schema import (
    BeginEvent,
    EvaluationEvent,
    Event,
    SampleEvent,
    StageEvent,
    StoppedEvent,
    TrainEvent,
    WarningEvent,
)

_SECONDS_APART = 0.25
"""Minimum time between two updates. Important events and the end are always drawn."""


def in_notebook() -> bool:
    """Return whether the program runs in a notebook's kernel, which shows HTML. IPython in a terminal is not one."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class NotebookDisplay:
    """Context manager and listener like `Display`: call it with events.

    Args:
        quiet: show warnings only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._handle: Any = None
        self._shown = 0.0
        self._stage: StageEvent | None = None
        self._state = RunState()
        self._notes: list[tuple[str, str]] = []

    def __enter__(self) -> NotebookDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage = None
        if self._handle is not None:
            self._draw()

    def __call__(self, event: Event) -> None:
        """Store an event, and draw if it is important or the last drawing is old enough."""
        important = True
        if isinstance(event, WarningEvent):
            self._notes.append(("warning", event.message))
        elif self.quiet:
            return
        elif isinstance(event, StoppedEvent):
            self._notes.append(("note", event.message))
        elif isinstance(event, StageEvent):
            important = self._stage is None or self._stage.message != event.message
            self._stage = event
        elif isinstance(event, BeginEvent | TrainEvent):
            important, self._stage = isinstance(event, BeginEvent), None
            self._state.take(event)
        elif isinstance(event, EvaluationEvent | SampleEvent):
            self._state.take(event)
        else:
            return
        if important or time.monotonic() - self._shown >= _SECONDS_APART:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML, display

        self._shown = time.monotonic()
        block = HTML(self.to_html())
        if self._handle is None:
            self._handle = display(block, display_id=True)
        else:
            self._handle.update(block)

    def to_html(self) -> str:
        """Return the current state as HTML."""
        parts = [f"<b>{kind}:</b> {html.escape(message)}" for kind, message in self._notes]
        state = self._state
        if state.total:
            step = state.train.step if state.train else state.first_step
            left = state.time_left(step)
            parts.append(f"{_bar(step, state.total)} step {step:,} of {state.total:,}{left and ', about ' + left}")
            if figures := self._figures():
                parts.append(" · ".join(figures))
        if self._stage is not None:
            count = html.escape(count_of(self._stage))
            parts.append(f"{html.escape(self._stage.message)} … {_bar(self._stage.done, self._stage.total)} {count}")
        if state.sample is not None:
            text = state.sample.prompt + state.sample.text
            parts.append(f"<i>{html.escape(text[:300] + (' …' if len(text) > 300 else ''))}</i>")
        return "".join(f"<div>{part}</div>" for part in parts)

    def _figures(self) -> list[str]:
        state = self._state
        figures = []
        if state.train is not None:
            figures.append(f"loss {state.train.loss:.4f}")
            if state.train.tokens_per_second is not None:
                figures.append(f"{state.train.tokens_per_second:,.0f} tokens/s")
        if state.evaluation is not None:
            figures.append(f"validation perplexity {state.evaluation.perplexity:,.2f}")
        if state.best is not None and state.best is not state.evaluation:
            figures.append(f"best {state.best.perplexity:,.2f} at step {state.best.step:,}")
        return figures


def _bar(done: int | None, total: int | None) -> str:
    if done is None or not total:
        return ""
    return f'<progress value="{done}" max="{total}" style="width:14em"></progress>'
