"""Events of a run → one display in a notebook that is updated in place. Knows nothing of torch.

Jupyter, Colab and their kin show each printed line for good; a run prints hundreds. So one block of HTML is replaced
instead, a few times per second at most.
"""

from __future__ import annotations

import html
import sys
import time
from types import TracebackType
from typing import Any

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
"""Updates that come faster than this are left out, except the last."""


def in_notebook() -> bool:
    """Whether the program runs in a notebook's kernel, which shows HTML. IPython's shell in a terminal is none."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class NotebookDisplay:
    """Context manager and listener like `display.Display`: call it with events.

    Args:
        quiet: show warnings only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._handle: Any = None
        self._shown = 0.0
        self._stage: StageEvent | None = None
        self._begin: BeginEvent | None = None
        self._began = 0.0
        self._train: TrainEvent | None = None
        self._evaluation: EvaluationEvent | None = None
        self._best: EvaluationEvent | None = None
        self._sample: SampleEvent | None = None
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
        """Take in an event, and draw if the last drawing is old enough."""
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
        elif isinstance(event, BeginEvent):
            self._begin, self._began, self._stage = event, time.monotonic(), None
        elif isinstance(event, TrainEvent):
            important, self._train, self._stage = False, event, None
        elif isinstance(event, EvaluationEvent):
            self._evaluation = event
            self._best = event if event.best else self._best
        elif isinstance(event, SampleEvent):
            self._sample = event
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
        """Return what is shown now."""
        parts = [f"<b>{kind}:</b> {html.escape(message)}" for kind, message in self._notes]
        if self._begin is not None:
            step = self._train.step if self._train else self._begin.step
            parts.append(
                f"{_bar(step, self._begin.total)} step {step:,} of {self._begin.total:,}{self._left(step, self._begin)}"
            )
            if figures := self._figures():
                parts.append(" · ".join(figures))
        if self._stage is not None:
            count = _count(self._stage)
            parts.append(f"{html.escape(self._stage.message)} … {_bar(self._stage.done, self._stage.total)} {count}")
        if self._sample is not None:
            text = self._sample.prompt + self._sample.text
            parts.append(f"<i>{html.escape(text[:300] + (' …' if len(text) > 300 else ''))}</i>")
        return "".join(f"<div>{part}</div>" for part in parts)

    def _figures(self) -> list[str]:
        figures = []
        if self._train is not None:
            figures.append(f"loss {self._train.loss:.4f}")
            if self._train.tokens_per_second is not None:
                figures.append(f"{self._train.tokens_per_second:,.0f} tokens/s")
        if self._evaluation is not None:
            figures.append(f"validation perplexity {self._evaluation.perplexity:,.2f}")
        if self._best is not None and self._best is not self._evaluation:
            figures.append(f"best {self._best.perplexity:,.2f} at step {self._best.step:,}")
        return figures

    def _left(self, step: int, begin: BeginEvent) -> str:
        done = step - begin.step
        if done <= 0 or step >= begin.total:
            return ""
        seconds = (time.monotonic() - self._began) / done * (begin.total - step)
        return f", about {seconds / 60:.0f} min left" if seconds >= 60 else f", about {seconds:.0f} s left"


def _bar(done: int | None, total: int | None) -> str:
    if done is None or not total:
        return ""
    return f'<progress value="{done}" max="{total}" style="width:14em"></progress>'


def _count(event: StageEvent) -> str:
    if event.done is None:
        return ""
    of = "" if event.total is None else f" of {event.total:,}"
    return f"{event.done:,}{of} {html.escape(event.unit or '')}".rstrip()
