"""`finetale serve` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Serving:
    """The real command in a process of its own."""

    def __init__(self, folder: Path, *words: str, python: Sequence[str] | None = None) -> None:
        """`finetale serve WORDS`, or what is given to Python instead."""
        command = [sys.executable, *(python or ("-m", "finetale", "serve", *words, "--port", "0"))]
        self._log = folder / "log"
        with self._log.open("wb") as log:  # a pipe that nobody reads fills up
            self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " at http://127.0.0.1:" in line, line
        self.port = int(line.partition("127.0.0.1:")[2].partition("/")[0])

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def log(self) -> str:
        """What it has written on stderr so far."""
        return self._log.read_text(encoding="utf-8")

    def end(self) -> tuple[int, str]:
        """Exit code and the log, after SIGTERM at the latest."""
        self.process.terminate()
        self.process.communicate(timeout=30)
        return self.process.returncode, self.log()
