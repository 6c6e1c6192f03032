"""Run the real command in processes forked from a server that has loaded the libraries.

Importing torch and transformers takes three seconds of processor time, and a forked process does not repeat it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

# Python 3.11 to 3.13 skip a module of this list that cannot be imported, and do not look in the tests' folder.
PRELOADED = (
    "torch",
    "torch._dynamo",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "finetale.library",
    "finetale.cli.train",
    "finetale.cli.serve",
    "finetale.server.service",
)
"""Modules that a forked process finds loaded."""
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))
Hook = Callable[[], None]


def start(folder: Path, words: Sequence[str], hook: Hook | None = None) -> BaseProcess:
    """Start `finetale WORDS` in a folder, with its cache there and its output in folder/printed.

    Args:
        hook: function of a test module, called in the process before the command.
    """
    process = CONTEXT.Process(target=run, args=(str(folder), tuple(words), hook))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """Return the exit code of a process.

    Raises:
        AssertionError: it took longer than `seconds`, and was killed.
    """
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"still running after {seconds} s")
    return process.exitcode


def call(folder: Path, *words: str, hook: Hook | None = None) -> tuple[int, str]:
    """Run `finetale WORDS`; return its exit code and output."""
    code = finish(start(folder, words, hook))
    return code, printed(folder)


def printed(folder: Path) -> str:
    """Return what the last command in a folder printed."""
    return (folder / "printed").read_text(encoding="utf-8")


class Forked:
    """`finetale WORDS` in a forked process with its own pipes and the interface of `subprocess.Popen`.

    Args:
        folder: the process's working directory.
        words: arguments of the command. The environment is the caller's.
        errors: file for the standard error.
    """

    def __init__(self, folder: Path, words: Sequence[str], errors: Path) -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        arguments = (str(folder), tuple(words), dict(os.environ), str(errors), writer)
        self._process = CONTEXT.Process(target=_run_with_pipe, args=arguments)
        self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or None while the process runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: the process runs on after `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(("finetale",), timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end and return the rest of the standard output."""
        self.wait(timeout)
        if self.stdout.closed:
            return "", None
        with self.stdout:
            return self.stdout.read(), None


def run(folder: str, words: tuple[str, ...], hook: Hook | None, printed: str = "printed") -> None:
    """Run `finetale WORDS` in this process, as `start` does, and end the process."""
    os.chdir(folder)
    os.environ |= {"FINETALE_CACHE": "cache", "COLUMNS": "300"}
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    _command(words, descriptor, descriptor, hook)


def _run_with_pipe(
    folder: str, words: tuple[str, ...], variables: dict[str, str], errors: str, writer: Connection
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ |= variables
    with writer:
        output = os.dup(writer.fileno())
    _command(words, output, os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), None)


def _command(words: tuple[str, ...], output: int, errors: int, hook: Hook | None) -> None:
    missing = [name for name in PRELOADED if name not in sys.modules]
    assert not missing, f"the fork server has not loaded {missing}"
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for descriptor in {output, errors}:
        os.close(descriptor)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    if hook is not None:
        hook()
    code = importlib.import_module("finetale.cli").run(list(words))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # like the installed command, without cleanup by multiprocessing
