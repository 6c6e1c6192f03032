"""Ctrl-C, SIGTERM and SIGHUP → a request to stop, taken up where nothing is half-done. A second signal leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn, TypeVar

from finetale.errors import InterruptedRun

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""SIGHUP is what a closed terminal sends; Windows has none."""
_APART = 0.3
"""Seconds within which signals are one: a closed terminal sends SIGHUP twice, and `timeout` both to a process and to its group."""
RESUMABLE, NOT_RESUMABLE = 75, 130
"""Exit codes of what was stopped by a signal."""


T = TypeVar("T")
_calls: list[threading.Event] = []
"""Whether the calls of `leave_open` that did not come back are done."""


class Stopped(KeyboardInterrupt):
    """A signal came in work that can be left anywhere. No `Exception`, so that nobody on the way out takes it for a failure."""


class StopRequest:
    """Context manager that catches SIGNALS while it is open, in the main thread. May be nested: what was asked of one is asked of all.

    The second signal ends the process within a second, whatever it is doing: files are written atomically, so
    nothing half-written stays behind.

    Signals that are ignored when it is opened, as under nohup, stay ignored.

    Args:
        at_once: raise `Stopped` out of whatever is being done; else wait until `check` is called.
        resumable: whether there is a run to go on with; what the exit code of a second signal says.
    """

    requested: str | None = None
    """Name of the signal that came since the outermost one was opened."""
    _open: list[StopRequest] = []  # noqa: RUF012 - of the process, as signals are
    _first = 0.0

    def __init__(self, *, at_once: bool = False, resumable: bool = True) -> None:
        self._at_once = at_once
        self._resumable = resumable and not at_once
        self._previous: dict[int, Any] = {}
        self._watch: _Watch | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        if not StopRequest._open:
            StopRequest.requested = None
            self._watch = _Watch()
        StopRequest._open.append(self)
        for number in (number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN):
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
            if time.monotonic() - StopRequest._first > _APART:
                _leave()
            return
        StopRequest.requested, StopRequest._first = signal.Signals(number).name, time.monotonic()
        if self._at_once:
            raise Stopped(StopRequest.requested)

    @classmethod
    def _exit_code(cls) -> int:
        return RESUMABLE if any(request._resumable for request in cls._open) else NOT_RESUMABLE


def leave_open(work: Callable[[], T], abandon: threading.Event) -> T:
    """Result of a long call that is not Python's, during which Python could not act on a signal; here it can.

    The call runs in a thread. When a signal raises, the call is left behind, to end with the process.

    Args:
        work: gives up soon after `abandon` is set, as far as it can.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    # Not Thread.join: where a signal raises within it, Python takes the thread for ended (bpo-45274).
    done = threading.Event()
    _calls.append(done)
    try:
        threading.Thread(target=run, name="finetale-call", daemon=True).start()
        while not done.wait(0.05):
            pass
    except BaseException:
        abandon.set()
        done.wait(1)
        raise
    _calls.remove(done)
    if errors:
        raise errors[0]
    return results[0]


def leave(code: int) -> NoReturn:
    """End the process, also while a call that was left behind is still at work: Python would stop it in the midst, and abort."""
    if not all(done.is_set() for done in _calls):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def in_terminal() -> bool:
    """Whether there is a terminal that may be closed."""
    return sys.stdin is not None and sys.stdin.isatty()


@contextlib.contextmanager
def handling(handlers: Mapping[str, Callable[[int, FrameType | None], Any]]) -> Iterator[None]:
    """Handlers of signals by name, as long as it is open. Those that the system lacks are passed over: Windows has no SIGHUP."""
    before = {
        number: signal.signal(number, handler)
        for name, handler in handlers.items()
        if (number := getattr(signal, name, None)) is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def hangups(asked: list[int] | None = None) -> Iterator[list[int]]:
    """A list, to which each SIGHUP adds something; it wakes the one that waits for a Bell besides. Not that of a closed terminal."""
    asked = [] if asked is None else asked
    with handling({} if in_terminal() else {"SIGHUP": lambda number, frame: asked.append(number)}):
        yield asked


class Bell:
    """Rung by every signal and by `ring`, from any thread. To be made and closed in the main thread.

    A thread that waits for a lock or an event sleeps on if a signal comes in the moment before; here it does not.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)

    def ring(self) -> None:
        """Wake the one that waits, or will."""
        with contextlib.suppress(OSError):  # full of rings, or closed
            self._theirs.send(b"\0")

    def wait(self) -> bytes:
        """The numbers of signals that have come, 0 for other rings; nothing at the end, once it is closed."""
        data = b""
        with contextlib.suppress(OSError):
            data = self._ours.recv(64)
        if not data:
            self._ours.close()
        return data

    def close(self) -> None:
        """Signals ring it no more, and who waits gets what is left and then nothing."""
        signal.set_wakeup_fd(self._previous)
        self._theirs.close()


class _Watch:
    """Ends the process at the second signal even while the main thread is in a long call that is not Python's."""

    def __init__(self) -> None:
        self._bell = Bell()
        threading.Thread(target=self._run, name="finetale-signals", daemon=True).start()

    def close(self) -> None:
        self._bell.close()  # ends the thread

    def _run(self) -> None:
        first = None
        while data := self._bell.wait():
            if not any(number in SIGNALS for number in data):
                continue
            now = time.monotonic()
            first = now if first is None else first
            if now - first > _APART:
                _leave()


def _leave() -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # a progress display hides the cursor
    os._exit(StopRequest._exit_code())
