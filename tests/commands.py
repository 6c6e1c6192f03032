"""Run the `finetale` command for tests: in a new process, or many commands in one worker process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

EXECUTABLE = shutil.which("finetale", path=str(Path(sys.executable).parent)) or "finetale"
TIMEOUT = 240
_KEPT = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")

# Reads one JSON list of arguments per line, and answers each with one line of JSON.
_WORKER = """
import contextlib, io, json, sys, time
from finetale.cli import run

if sys.argv[1:] == ["impatient"]:
    time.sleep = lambda seconds: None

answers, questions = sys.stdout, sys.stdin
for line in questions:
    sys.stdin = io.TextIOWrapper(io.BytesIO())
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(json.loads(line))
    answers.write(json.dumps([code, out.getvalue(), err.getvalue()]) + "\\n")
    answers.flush()
"""


@dataclass(frozen=True)
class Result:
    """Exit code, stdout and stderr of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """Return the `error:` lines."""
        return [line for line in self.stderr.splitlines() if line.startswith("error:")]

    @property
    def hints(self) -> list[str]:
        """Return the `hint:` lines."""
        return [line for line in self.stderr.splitlines() if line.startswith("hint:")]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return environment variables that hide the machine's home, caches and hubs from a command, with `more` added."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "HF_HOME": str(home / "huggingface"),
        "FINETALE_CACHE": str(home / "finetale"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


def finetale(*arguments: str | Path, cwd: Path, env: Mapping[str, str], stdin: bytes = b"") -> Result:
    """Run the installed command and wait for it."""
    words = [EXECUTABLE, *map(str, arguments)]
    done = subprocess.run(words, cwd=cwd, env=dict(env), input=stdin, capture_output=True, timeout=TIMEOUT, check=False)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def start(*arguments: str | Path, cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the installed command. The caller must wait for it (`finish`)."""
    return subprocess.Popen(
        [EXECUTABLE, *map(str, arguments)],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finish(process: subprocess.Popen[str]) -> Result:
    """Wait for a command that `start` started."""
    out, err = process.communicate(timeout=TIMEOUT)
    return Result(process.returncode, out, err)


class Worker:
    """A process that runs one command after another and imports the libraries once.

    It is for variables that the libraries read at import, such as HF_ENDPOINT.

    Args:
        impatient: let the Hub's clients retry at once. Their increasing delays add up to 23 s otherwise.
    """

    def __init__(self, cwd: Path, env: Mapping[str, str], *, impatient: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, *(["impatient"] if impatient else [])],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, *arguments: str | Path) -> Result:
        """Run a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(word) for word in arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the worker ended with exit code {self._process.wait(TIMEOUT)}"
        return Result(*json.loads(answer))

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=TIMEOUT)
