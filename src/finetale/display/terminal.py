"""Show the events of a run in a terminal.

A terminal gets a progress line for each stage and a live panel during training: loss, validation, speed, memory and
time left. A log file gets plain lines, one every ten seconds at most. `quiet` leaves only warnings.
"""

from __future__ import annotations

import io
import time
from types import TracebackType
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from finetale.display.state import RunState, count_of
from finetale.formatting import plural
from finetale.schema import (
    BeginEvent,
    CheckpointEvent,
    EvaluatingEvent,
    EvaluationEvent,
    Event,
    NoteEvent,
    ProbeEvent,
    SampleEvent,
    StageEvent,
    StoppedEvent,
    TrainEvent,
    WarningEvent,
)

_LINE_SECONDS = 10.0


class Display:
    """Context manager and listener: call it with events.

    Args:
        console: where to draw. Default: stderr.
        quiet: show only warnings.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True)
        self.quiet = quiet
        self._live: Live | None = None
        self._busy: Progress | None = None
        self._progress: Progress | None = None
        self._state = RunState()
        self._last_line = 0.0
        self._stage = ""

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the live panel and the progress line. The panel's last state stays on the screen. The line vanishes."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._busy is not None:
            self._busy.stop()
            self._busy = None

    def __call__(self, event: Event) -> None:
        try:
            self._show(event)
        except OSError:  # the terminal was closed; the run continues without it
            self.quiet, self._live, self._busy = True, None, None
            self.console = Console(file=io.StringIO())

    def _show(self, event: Event) -> None:
        if isinstance(event, WarningEvent):
            self.console.print(f"[yellow]warning:[/] {escape(event.message)}", soft_wrap=True, highlight=False)
        elif self.quiet:
            return
        elif isinstance(event, StageEvent):
            self._on_stage(event)
        elif isinstance(event, StoppedEvent):
            self.close()
            self._say(event.message)
        elif isinstance(event, NoteEvent):
            self._say(event.message)
        elif isinstance(event, ProbeEvent):
            self._on_probe(event)
        elif isinstance(event, BeginEvent):
            self._on_begin(event)
        elif isinstance(event, EvaluatingEvent):
            self._on_evaluating(event)
        else:
            self._on_training(event)

    def _on_stage(self, event: StageEvent) -> None:
        message, count = event.message, count_of(event)
        if message != self._stage or self._live is not None:
            self.close()
            self._stage = message
            self._last_line = time.monotonic()
            self._say(f"{message} …")
            if self.console.is_terminal:
                columns = (
                    SpinnerColumn(),
                    BarColumn(bar_width=24),
                    TextColumn("{task.fields[count]}"),
                    TimeElapsedColumn(),
                )
                self._busy = Progress(*columns, console=self.console, transient=True)
                self._busy.add_task("", total=None, count="")
                self._busy.start()
        if self._busy is not None:
            self._busy.update(self._busy.task_ids[0], completed=event.done or 0, total=event.total, count=count)
        elif count and time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            self._say(f"{message}: {count}")

    def _on_probe(self, event: ProbeEvent) -> None:
        best = event.chosen
        attention = "attention by documents" if best.attention == "documents" else "the model's own attention"
        tried = "" if event.skipped else f", the fastest of {len(event.trials)} tried in {event.seconds:.0f} s"
        self._say(
            f"Computing in {best.precision}, {plural(best.micro_batch_size, 'sequence')} per pass, {attention}{tried}"
        )

    def _on_begin(self, event: BeginEvent) -> None:
        self.close()
        self._state.take(event)
        what = f"from step {event.step:,} of" if event.step else "for"
        self._say(
            f"Training {what} {plural(event.total, 'step')}; {event.targets:,} tokens per epoch; "
            f"run directory {event.run}"
        )
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self.console,
                expand=True,
            )
            self._progress.add_task("", total=event.total, completed=event.step, left="")
            self._live = Live(self._panel(), console=self.console, refresh_per_second=4, transient=False)
            self._live.start()

    def _on_training(self, event: TrainEvent | EvaluationEvent | SampleEvent | CheckpointEvent) -> None:
        self._state.take(event)
        if self._live is not None and self._progress is not None:
            self._progress.update(
                self._progress.task_ids[0], completed=event.step, left=self._state.time_left(event.step)
            )
            self._live.update(self._panel())
        else:
            self._plain(event)

    def _on_evaluating(self, event: EvaluatingEvent) -> None:
        measured = f"{100 * event.done // event.total}% of the validation text measured"
        if self._live is not None and self._progress is not None:
            self._progress.update(self._progress.task_ids[0], left=measured)
            self._live.update(self._panel())
        elif time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            self._say(f"step {event.step}/{self._state.total}  {measured}")

    def _plain(self, event: TrainEvent | EvaluationEvent | SampleEvent | CheckpointEvent) -> None:
        step = f"step {event.step}/{self._state.total}"
        if isinstance(event, EvaluationEvent):
            mark = "  best so far" if event.best else ""
            self._say(f"{step}  validation loss {event.loss:.4f}  perplexity {event.perplexity:,.2f}{mark}")
        elif isinstance(event, SampleEvent):
            self._say(f"{step}  sample: {_one_line(event.prompt + event.text, 160)}")
        elif isinstance(event, TrainEvent) and (event.step <= 1 or time.monotonic() - self._last_line > _LINE_SECONDS):
            self._last_line = time.monotonic()
            figures = [f"loss {event.loss:.4f}", f"learning rate {event.learning_rate:.2e}", *self._machine(event)]
            self._say("  ".join([step, *figures, self._state.time_left(event.step)]))

    def _machine(self, event: TrainEvent) -> list[str]:
        memory = [] if event.memory_bytes is None else [f"{event.memory_bytes / 2**30:.2f} GiB"]
        return [f"{self._state.speed:,.0f} tokens/s", *memory]

    def _panel(self) -> Group:
        state = self._state
        row: list[str] = []
        if state.train:
            row += [f"loss [bold]{state.train.loss:.4f}[/]", f"learning rate {state.train.learning_rate:.2e}"]
        if state.evaluation:
            row.append(f"validation perplexity [bold]{state.evaluation.perplexity:,.2f}[/]")
        if state.best and state.evaluation and state.best.step != state.evaluation.step:
            row.append(f"best {state.best.perplexity:,.2f} at step {state.best.step:,}")
        if state.train:
            row += self._machine(state.train)
        figures = Columns([Text.from_markup(item) for item in row or ["starting …"]], padding=(0, 3))
        assert self._progress is not None
        parts: list[Any] = [self._progress, figures]
        if state.sample:
            parts.append(Text(_one_line(state.sample.prompt + state.sample.text, 400), style="dim"))
        return Group(*parts)

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)


def _one_line(text: str, limit: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
