"""The process of one tracker, seen from the run: send messages without waiting, and find out whether they arrive."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from finetale.formatting import plural
from finetale.tracking.clients import Start


class TrackerProcess:
    """A tracker's client in a process of its own.

    A client can hang in a system call, end its process, or read keys and signals that belong to the run. A process
    can always be ended, and a pause in it is no pause of the run.

    Args:
        name: name of the tracker.
        start: what it gets first.

    Raises:
        OSError: the process can't be started.
    """

    def __init__(self, name: str, start: Start) -> None:
        self.name = name
        self._messages: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: the last
        self._sent = self._answered = 0
        self._progress = time.monotonic()  # of the last answer, or of the message that nothing was waiting before
        self._error: str | None = None
        self._silent = threading.Event()  # set when the process has closed its output
        self._process = subprocess.Popen(
            # -P: a module in the current folder must not replace a package.
            [sys.executable, "-P", "-m", "finetale.tracking", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run, which then closes its trackers
        )
        threading.Thread(target=self._write, name=f"{name}-write", daemon=True).start()
        threading.Thread(target=self._read, name=f"{name}-read", daemon=True).start()
        self._put(asdict(start))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a method of the client some time soon."""
        self._put([name, arguments])

    def problem(self, patience: float) -> str | None:
        """Return why the tracker is of no use any more, or None.

        Args:
            patience: seconds that it may take to answer.
        """
        if self._error is not None:
            return self._error
        if self._silent.is_set() and self._answered < self._sent:
            return f"its process ended (exit code {self._process.wait()})"
        if self._answered < self._sent and time.monotonic() - self._progress > patience:
            return f"it has not answered for {patience:g} seconds"
        return None

    def wait(self, patience: float) -> str | None:
        """Wait until the process has answered all and ended, then end it in any case; return what went wrong."""
        ended = self._silent.wait(patience)
        problem = self.problem(math.inf)
        if problem is None and not ended:
            problem = f"it did not finish within {plural(round(patience), 'second')} of the end of the run"
        self.kill()
        return problem

    def kill(self) -> None:
        """End the process, and those that the client started."""
        with contextlib.suppress(OSError):  # they have ended
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._messages.put(None)

    def _put(self, message: Any) -> None:
        if self._sent == self._answered:
            self._progress = time.monotonic()
        self._sent += 1
        self._messages.put(json.dumps(message) + "\n")

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError), pipe:  # the process has ended; `problem` reports it
            while (message := self._messages.get()) is not None:
                pipe.write(message.encode())
                pipe.flush()

    def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with pipe:
            for line in pipe:
                if line == b"ok\n":
                    self._answered += 1
                    self._progress = time.monotonic()
                else:
                    self._error = json.loads(line)
        self._silent.set()
