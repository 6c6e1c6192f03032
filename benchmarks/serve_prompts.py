"""Measure how long prompts disturb the streams of others, and what a prompt costs that was asked before.

    python benchmarks/serve_prompts.py MODEL [--engine auto] [--tokens 8000] [--prompts 3]

One client streams. Others send long prompts, one after the other. Prints the median and the largest time between two
tokens of the stream, without and with the prompts; the time to the first token of a long prompt, and of the same prompt
again; and the memory of the server before, at its most, and after a minute of rest. Prints one JSON object as its last
line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import httpx2
import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--tokens", type=int, default=8000, help="tokens per long prompt")
    parser.add_argument("--prompts", type=int, default=3, help="number of long prompts")
    parser.add_argument("--rest", type=float, default=70.0, help="seconds before the last reading of the memory")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "finetale", "serve", arguments.model, "--port", "0", "--name", "model"]
    server = subprocess.Popen([*command, "--engine", arguments.engine], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = next(line for line in server.stdout if "Serving" in line)
        found = re.search(r"\(([^)]*)\) at (\S+)/v1", line)
        assert found is not None
        result = {"engine": found[1]} | measure(found[2], server.pid, arguments)
    finally:
        server.terminate()
        server.wait(60)
    for name, value in result.items():
        print(f"{name:<42}{value if isinstance(value, str) else round(value, 3)}")
    print(json.dumps(result))


def measure(address: str, pid: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the figures; times in seconds, memory in MB."""
    with httpx2.Client(base_url=address, timeout=600) as client:
        stream(client, [5, 6, 7], 8, [])
        memory = Memory(pid)
        before = memory.now()
        quiet: list[float] = []
        stream(client, [5, 6, 7], 100, quiet)
        busy: list[float] = []
        ended = threading.Event()
        thread = threading.Thread(target=stream, args=(client, [5, 6, 8], 4000, busy, ended), daemon=True)
        thread.start()
        first = []
        with memory:
            for number in range(arguments.prompts):
                first.append(stream(client, prompt(arguments.tokens, number), 1, []))
            ended.set()
            thread.join()
            alone = stream(client, prompt(arguments.tokens, 99), 1, [])
            again = stream(client, prompt(arguments.tokens, 99), 1, [])
        time.sleep(arguments.rest)
        gaps, quiet_gaps = differences(busy), differences(quiet)
        return {
            "gap between tokens, median, no prompts": statistics.median(quiet_gaps),
            "gap, largest, no prompts": max(quiet_gaps),
            "gap, median, with prompts": statistics.median(gaps),
            "gap, largest, with prompts": max(gaps),
            "largest with prompts / median without": max(gaps) / statistics.median(quiet_gaps),
            "first token beside a stream": statistics.median(first),
            "first token alone": alone,
            "first token of the same prompt again": again,
            "memory before, MB": before,
            "memory at most, MB": memory.most,
            "memory after rest, MB": memory.now(),
        }


def prompt(tokens: int, number: int) -> list[int]:
    """Return token ids that begin differently for each number."""
    return [100 + number, *(200 + (at * 7 + number) % 5000 for at in range(tokens - 1))]


def stream(client: Any, ids: list[int], tokens: int, times: list[float], ended: threading.Event | None = None) -> float:
    """Stream a completion; append the time of each token; return the seconds to the first one."""
    body = {"model": "model", "prompt": ids, "max_tokens": tokens, "stream": True, "temperature": 1, "seed": 1}
    body["logit_bias"] = {"2": -100, "0": -100}  # no end-of-text
    began = time.perf_counter()
    first = None
    with client.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
                first = first or times[-1]
            if ended is not None and ended.is_set():
                break
    assert first is not None
    return first - began


def differences(times: list[float]) -> list[float]:
    """Return the times between neighbours."""
    return [after - before for before, after in itertools.pairwise(times)]


class Memory:
    """The resident memory of a process, in MB."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self.most = 0.0

    def now(self) -> float:
        """Return the memory now."""
        return float(self._process.memory_info().rss) / 1e6

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.most = max(self.most, self.now())

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


if __name__ == "__main__":
    main()
