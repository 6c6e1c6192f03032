"""Run and round GGUF files with llama.cpp, through the package cyllama, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetale.environment import num_cores, versions
from finetale.errors import ModelError
from finetale.export.runtimes import Scores


class LlamaRuntime:
    """A GGUF file in llama.cpp. Implements Runtime.

    Raises:
        ModelError: llama.cpp can't load the file, here, or fails later.
    """

    def __init__(self, file: Path) -> None:
        self.name = f"llama.cpp (cyllama {versions('cyllama')['cyllama']})"
        self._process = _Process()
        self._process.call("load", str(file), num_cores())

    def encode(self, text: str) -> list[int]:
        """See Runtime."""
        found: list[int] = self._process.call("encode", text)
        return found

    def reset(self) -> None:
        """See Runtime."""
        self._process.call("reset")

    def read(self, ids: Sequence[int]) -> Scores:
        """See Runtime."""
        shape = self._process.call("read", [int(token) for token in ids])
        return np.frombuffer(self._process.raw(4 * shape[0] * shape[1]), np.float32).reshape(shape)

    def close(self) -> None:
        """See Runtime."""
        self._process.close()


def quantize(source: Path, target: Path, weights: str) -> None:
    """Round the weights of a GGUF file, as llama.cpp's `llama-quantize` does.

    Raises:
        ModelError: llama.cpp refuses.
    """
    process = _Process()
    try:
        process.call("quantize", str(source), str(target), weights, num_cores())
    finally:
        process.close()


class _Process:
    """A process that holds llama.cpp; see `llama_process`."""

    def __init__(self) -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "finetale.export.llama_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the holder; return its result.

        Raises:
            ModelError: it failed, or the process ended.
        """
        try:
            self._requests.write(json.dumps({"call": name, "arguments": arguments}).encode() + b"\n")
            self._requests.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self._fail(self._last_message())
        answer = json.loads(line)
        if "error" in answer:
            self._fail(answer["error"])
        return answer["result"]

    def raw(self, size: int) -> bytes:
        """Return the raw bytes that follow an answer."""
        data = self._answers.read(size)
        if len(data) < size:
            self._fail(self._last_message())
        return data

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):  # the process is gone, and a request is unsent
            self._requests.close()
        self._answers.close()
        self._process.wait()
        self._messages.close()

    def _last_message(self) -> str:
        self._process.wait()
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else f"it ended with exit code {self._process.returncode}"

    def _fail(self, why: str) -> None:
        self.close()
        raise ModelError(f"llama.cpp failed: {why}", "Choose other --weights, or another format.")
