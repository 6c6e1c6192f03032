"""Ctrl-C, SIGTERM and SIGHUP → a flag that the loop asks for between micro-batches. A second signal leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from finetale.errors import InterruptedRun

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""SIGHUP is what a closed terminal sends; Windows has none."""


class StopRequest:
    """Context manager that catches SIGNALS while it is open, in the main thread.

    `requested` holds the signal's name after the first one; the second one ends the process with exit code 75.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise if a signal has come.

        Raises:
            InterruptedRun: names the signal.
        """
        if self.requested:
            raise InterruptedRun(f"Stopped by {self.requested}.")

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(75)  # files are written atomically, so nothing half-written stays behind
        self.requested = signal.Signals(number).name
