"""Events of the loop → metrics.jsonl and TensorBoard files. Knows nothing of models."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import IO, Any

from finetale.rundir import write_bytes

_SCALARS = ("loss", "perplexity", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes")


class MetricsFile:
    """Listener that appends one JSON object a line; each line is on its way to disk when the call returns.

    Args:
        resume_step: lines after this step are removed first, as their steps will be done again. None: start anew.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        kept = [] if resume_step is None else [row for row in read_metrics(path) if row["step"] <= resume_step]
        write_bytes(path, "".join(_line(row) for row in kept).encode())
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def __call__(self, event: dict[str, Any]) -> None:
        self._file.write(_line(event))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardFile:
    """Listener that writes scalars and samples for TensorBoard.

    Args:
        resume_step: as for MetricsFile; TensorBoard hides what came after it.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def __call__(self, event: dict[str, Any]) -> None:
        group = "validation" if event["event"] == "evaluation" else event["event"]
        for name in _SCALARS:
            if isinstance(event.get(name), int | float):
                self._writer.add_scalar(f"{group}/{name}", event[name], event["step"])
        if event["event"] == "sample":
            self._writer.add_text("sample", event["prompt"] + event["text"], event["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The events in a metrics.jsonl; a last line cut short by a crash is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
