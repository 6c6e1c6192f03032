"""Turn Ctrl-C, SIGTERM and SIGHUP into a request to stop, which takes effect between pieces of work.

A second signal does not wait. On the command line it ends the process; in a program that uses Finetale as a library it
raises KeyboardInterrupt, because a library must not end its host.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import FrameType
from typing import Any, NoReturn, TypeVar

from finetale.errors import InterruptedRun

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask to stop. A closed terminal sends SIGHUP, which Windows lacks."""
_APART = 0.3
"""Seconds within which several signals count as one.

A closed terminal sends SIGHUP twice, and `timeout` signals both a process and its group.
"""
RESUMABLE, NOT_RESUMABLE = 75, 130
"""Exit codes of a command that a signal stopped."""


CALLER = "the caller"
"""What messages name in place of a signal when the caller cancelled the work."""

T = TypeVar("T")
_cancel: ContextVar[threading.Event | None] = ContextVar("cancel", default=None)
_calls: list[threading.Event] = []
"""One event for each running call of `leave_open`; set when the call has returned."""


class Stopped(KeyboardInterrupt):
    """A signal arrived during work that can be abandoned anywhere.

    Not an `Exception`, so that no handler for failures catches it.
    """


class StopRequest:
    """Context manager that catches SIGNALS in the main thread. May be nested: a request to one is a request to all.

    In other threads it does nothing. Signals that are ignored when it opens, as under nohup, stay ignored.
    A second signal ends the process within a second on the command line (see `ending_the_process`), and raises
    KeyboardInterrupt elsewhere. Files are written atomically, so neither leaves a half-written file.

    Args:
        at_once: raise `Stopped` immediately; otherwise wait until `check` is called.
        resumable: whether there is a run to resume; decides the exit code after a second signal.
    """

    requested: str | None = None
    """Name of the first signal since the outermost request was opened."""
    _open: list[StopRequest] = []  # noqa: RUF012 - shared by the process, as signals are
    _first = 0.0
    _ends_process = False

    def __init__(self, *, at_once: bool = False, resumable: bool = True) -> None:
        self._at_once = at_once
        self._resumable = resumable and not at_once
        self._previous: dict[int, Any] = {}
        self._outermost = False
        self._watch: _Watch | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        if not StopRequest._open:
            self._outermost, StopRequest.requested = True, None
            self._watch = _Watch() if StopRequest._ends_process else None
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
        if self._outermost:
            StopRequest.requested = None

    def check(self) -> None:
        """Raise if a signal has arrived, or if the caller has cancelled the work.

        Raises:
            InterruptedRun: names what stopped the work.
        """
        if self.requested:
            raise InterruptedRun(f"Stopped by {self.requested}.")
        if is_cancelled():
            raise InterruptedRun(f"Stopped by {CALLER}.")

    def _caught(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if StopRequest.requested:
            if time.monotonic() - StopRequest._first <= _APART:
                return
            if StopRequest._ends_process:
                _end_process()
            raise KeyboardInterrupt(name)
        StopRequest.requested, StopRequest._first = name, time.monotonic()
        if self._at_once:
            raise Stopped(name)

    @classmethod
    def _exit_code(cls) -> int:
        return RESUMABLE if any(request._resumable for request in cls._open) else NOT_RESUMABLE


@contextlib.contextmanager
def cancelled_by(event: threading.Event | None) -> Iterator[None]:
    """Stop the work of this thread as at a signal once the event is set, from any thread."""
    token = _cancel.set(event)
    try:
        yield
    finally:
        _cancel.reset(token)


def is_cancelled() -> bool:
    """Return whether the caller has cancelled the work of this thread."""
    event = _cancel.get()
    return event is not None and event.is_set()


@contextlib.contextmanager
def ending_the_process() -> Iterator[None]:
    """Let a second signal end the process while this is open. Only the command line may do that."""
    before, StopRequest._ends_process = StopRequest._ends_process, True
    try:
        yield
    finally:
        StopRequest._ends_process = before


def leave_open(work: Callable[[], T], abandon: threading.Event) -> T:
    """Return the result of a long call into native code, and let signals interrupt the wait for it.

    Python runs no signal handler in the main thread during such a call, so the call runs in another thread. When a
    signal handler raises, the call is abandoned; it ends with the process.

    Args:
        work: the call. It should return soon after `abandon` is set.
        abandon: set when a signal interrupts the wait.
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

    # Not Thread.join: if a signal handler raises within it, Python marks the thread as ended (bpo-45274).
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
    """Exit with a code, even while an abandoned call is still running.

    Python's own shutdown would stop such a call half-way, which aborts the process.
    """
    if not all(done.is_set() for done in _calls):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def in_terminal() -> bool:
    """Return whether the program was started in a terminal, which may be closed."""
    return sys.stdin is not None and sys.stdin.isatty()


@contextlib.contextmanager
def handling(handlers: Mapping[str, Callable[[int, FrameType | None], Any]]) -> Iterator[None]:
    """Install signal handlers by name while this is open. Names that the system lacks are skipped."""
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
    """Yield a list to which each SIGHUP adds an item. In a terminal SIGHUP keeps its usual meaning.

    A SIGHUP also wakes the thread that waits for a `Bell`.
    """
    asked = [] if asked is None else asked
    with handling({} if in_terminal() else {"SIGHUP": lambda number, frame: asked.append(number)}):
        yield asked


class Bell:
    """Wakes a waiting thread at every signal and at every call of `ring`. Open and close it in the main thread.

    A thread that waits for a lock or an event instead would sleep on if a signal arrived just before the wait.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)

    def ring(self) -> None:
        """Wake the waiting thread, or the next one that waits."""
        with contextlib.suppress(OSError):  # the buffer is full, or closed
            self._theirs.send(b"\0")

    def wait(self) -> bytes:
        """Return the numbers of the signals that arrived, and 0 for each ring; empty once the bell is closed."""
        data = b""
        with contextlib.suppress(OSError):
            data = self._ours.recv(64)
        if not data:
            self._ours.close()
        return data

    def close(self) -> None:
        """Stop listening to signals. A waiting thread receives what is left, then nothing."""
        signal.set_wakeup_fd(self._previous)
        self._theirs.close()


class _Watch:
    """Ends the process at the second signal, even while the main thread is in a long call into native code."""

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
                _end_process()


def _end_process() -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # a progress display hides the cursor
    os._exit(StopRequest._exit_code())
