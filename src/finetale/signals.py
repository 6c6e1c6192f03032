"""Ctrl-C, SIGTERM and SIGHUP → a request to stop, taken up where nothing is half-done. A second signal leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

from finetale.errors import InterruptedRun

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""SIGHUP is what a closed terminal sends; Windows has none."""
RESUMABLE, NOT_RESUMABLE = 75, 130
"""Exit codes of what was stopped by a signal."""


class Stopped(KeyboardInterrupt):
    """A signal came in work that can be left anywhere. No `Exception`, so that nobody on the way out takes it for a failure."""


class StopRequest:
    """Context manager that catches SIGNALS while it is open, in the main thread. May be nested: what was asked of one is asked of all.

    The second signal ends the process within a second, whatever it is doing: files are written atomically, so
    nothing half-written stays behind.

    Args:
        at_once: raise `Stopped` out of whatever is being done; else wait until `check` is called.
    """

    requested: str | None = None
    """Name of the signal that came since the outermost one was opened."""
    _open: list[StopRequest] = []  # noqa: RUF012 - of the process, as signals are

    def __init__(self, *, at_once: bool = False) -> None:
        self._at_once = at_once
        self._previous: dict[int, Any] = {}
        self._watch: _Watch | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        if not StopRequest._open:
            StopRequest.requested = None
            self._watch = _Watch()
        StopRequest._open.append(self)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._caught)
        if self._at_once and StopRequest.requested:
            self.__exit__()
            raise Stopped(StopRequest.requested)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self in StopRequest._open:
            StopRequest._open.remove(self)
        if self._watch is not None:
            self._watch.close()
            StopRequest.requested = None

    def check(self) -> None:
        """Raise if a signal has come.

        Raises:
            InterruptedRun: names the signal.
        """
        if self.requested:
            raise InterruptedRun(f"Stopped by {self.requested}.")

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if StopRequest.requested:
            _leave()
        StopRequest.requested = signal.Signals(number).name
        if self._at_once:
            raise Stopped(StopRequest.requested)

    @classmethod
    def _exit_code(cls) -> int:
        return NOT_RESUMABLE if cls._open and cls._open[-1]._at_once else RESUMABLE


class _Watch:
    """Ends the process at the second signal even while the main thread is in a long call that is not Python's."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="finetale-signals", daemon=True).start()

    def close(self) -> None:
        signal.set_wakeup_fd(self._previous)
        self._theirs.close()  # ends the thread

    def _run(self) -> None:
        seen = 0
        with self._ours, contextlib.suppress(OSError):
            while data := self._ours.recv(64):
                seen += sum(number in SIGNALS for number in data)
                if seen > 1:
                    _leave()


def _leave() -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # a progress display hides the cursor
    os._exit(StopRequest._exit_code())
