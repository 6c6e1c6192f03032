"""Listeners that write the events of the training loop to `metrics.jsonl` and to TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from finetale.rundir import write_bytes
from finetale.schema import EvaluatingEvent, Event, SampleEvent, event_line, recorded_lines, scalars


class MetricsFile:
    """Listener that appends one line of JSON per event and flushes it.

    Args:
        path: path of `metrics.jsonl`.
        resume_step: remove the lines after this step, because the run repeats these steps. None: begin a new file.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        kept = ""
        if resume_step is not None and path.is_file():
            lines = recorded_lines(path.read_text(encoding="utf-8", errors="replace"))
            kept = "".join(f"{line}\n" for step, line in lines if step <= resume_step)
        write_bytes(path, kept.encode())
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        if isinstance(event, EvaluatingEvent):
            return
        self._file.write(event_line(event))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardFile:
    """Listener that writes scalars and samples for TensorBoard.

    Args:
        folder: folder of the event files.
        resume_step: as for `MetricsFile`. TensorBoard hides the events after this step.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def __call__(self, event: Event) -> None:
        step = getattr(event, "step", None)
        if step is None:
            return
        for name, value in scalars(event).items():
            self._writer.add_scalar(name, value, step)
        if isinstance(event, SampleEvent):
            self._writer.add_text("sample", event.prompt + event.text, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
