"""Overload a service and measure its response times. The callers set the bounds.

The tests of promises assert what must hold on any machine. `benchmarks/serve_limits.py` compares the seconds with
bounds for an idle machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from serving import Client, Serving
from tiny import save_model

T = TypeVar("T")
LONG = 8192
"""Context length of the model. Generating as many tokens takes seconds."""
NUM_CLIENTS = 200
SLOTS = 20
COMMAND = ("tiny", "--slots", str(SLOTS), "--queue", "32")
"""Arguments of `finetale serve` for `burst`, `large_body`, `abandoned` and `small_answers`."""
DRAIN_SECONDS = 1
STUCK = f"""
import sys, time
from finetale.cli import run
from finetale.server import service
from finetale.server.engines.batching import BatchingEngine
settle = service._settle
def loaded():
    settle()
    BatchingEngine.step = lambda self: time.sleep(600)
service._settle = loaded
sys.exit(run(["serve", "tiny", "--engine", "torch", "--port", "0", "--drain", "{DRAIN_SECONDS}"]))
"""
"""Program of a service whose engine never returns from a step."""


def save_long_model(folder: Path) -> None:
    """Save the model that the commands of this module serve."""
    save_model(folder / "tiny", positions=LONG)


def completion(**values: Any) -> dict[str, Any]:
    """Return the body of a request for a text of 200 tokens."""
    return {"model": "tiny", "prompt": "The lamp", "max_tokens": 200, "temperature": 1} | values


def endless(**values: Any) -> dict[str, Any]:
    """Return the body of a request for a text that takes seconds: end-of-text is never chosen."""
    return completion(max_tokens=LONG - 100, logit_bias={"0": -100}, **values)


@dataclass(frozen=True)
class Burst:
    """Response times of simultaneous requests.

    Attributes:
        refused: seconds until each response with status 429, sorted.
        served: seconds until each response with status 200, sorted.
        health: seconds until each response to /health in the meantime, sorted.
    """

    refused: list[float]
    served: list[float]
    health: list[float]

    @property
    def health_p99(self) -> float:
        """99th percentile of `health`."""
        return self.health[int(0.99 * len(self.health))]


async def burst(serving: Serving) -> Burst:
    """Send requests of 200 clients at once, and ask for /health until all are answered."""
    clients = [await Client.to(serving) for _ in range(NUM_CLIENTS)]
    watcher = await Client.to(serving)
    asked = asyncio.gather(*(client.ask("POST", "/v1/completions", completion()) for client in clients))
    health = []
    while not asked.done():
        status, _, _, seconds = await watcher.ask("GET", "/health")
        assert status == 200
        health.append(seconds)
        await asyncio.sleep(0.005)
    for client in (*clients, watcher):
        await client.close()
    answers = await asked
    refused = [(seconds, headers) for status, headers, _, seconds in answers if status == 429]
    served = [seconds for status, _, _, seconds in answers if status == 200]
    assert len(served) + len(refused) == NUM_CLIENTS, "every request gets a response"
    assert len(served) >= 32
    assert len(refused) >= 100
    assert all(headers["retry-after"] == "1" for _, headers in refused)
    assert len(health) >= 20
    return Burst(sorted(seconds for seconds, _ in refused), sorted(served), sorted(health))


@dataclass(frozen=True)
class LargeBody:
    """The response to a body of 50 MB.

    Attributes:
        status: its status.
        seconds: seconds until its headers arrived.
        processor_seconds: processor time of the service.
        memory: bytes by which the memory of the service grew at its peak.
    """

    status: int
    seconds: float
    processor_seconds: float
    memory: int


async def large_body(serving: Serving) -> LargeBody:
    """Send a body of 50 MB."""
    process = psutil.Process(serving.process.pid)
    client = await Client.to(serving)
    body = completion(prompt="x" * 50_000_000)
    before = most = process.memory_info().rss
    used = sum(process.cpu_times()[:2])
    client.send("POST", "/v1/completions", body)
    started = time.perf_counter()

    async def answered() -> tuple[int, float]:
        status, _ = await client.head()
        return status, time.perf_counter() - started

    asked = asyncio.gather(answered(), client.writer.drain())
    while not asked.done():
        most = max(most, process.memory_info().rss)
        await asyncio.sleep(0.002)
    (status, seconds), _ = await asked
    await client.close()
    return LargeBody(status, seconds, sum(process.cpu_times()[:2]) - used, most - before)


@dataclass(frozen=True)
class Abandoned:
    """Streams whose clients have left.

    Attributes:
        seconds: seconds until all their slots were free.
        step: seconds of the slowest of five decoding steps before the disconnects.
    """

    seconds: float
    step: float


async def abandoned(serving: Serving) -> Abandoned:
    """Fill all slots with long streams, and disconnect their clients."""

    async def busy() -> float:
        text = (await watcher.ask("GET", "/metrics"))[2].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("finetale_busy_slots"))

    watcher = await Client.to(serving)
    clients = [await Client.to(serving) for _ in range(SLOTS)]
    for client in clients:
        client.send("POST", "/v1/completions", endless(stream=True))
    for client in clients:
        assert (await client.head())[0] == 200
    while await busy() < SLOTS:
        await asyncio.sleep(0.01)
    steps = []
    for _ in range(8):  # each step sends an event; a read returns all that have arrived
        started = time.perf_counter()
        await clients[0].reader.read(2**20)
        steps.append(time.perf_counter() - started)
    for client in clients:
        client.writer.transport.abort()
    started = time.perf_counter()
    while await busy():
        await asyncio.sleep(0.002)
    seconds = time.perf_counter() - started
    await watcher.close()
    return Abandoned(seconds, max(steps[3:]))  # the first reads return events that were waiting


async def small_answers(serving: Serving) -> list[float]:
    """Ask for /health 200 times over one connection; return the seconds of each, sorted."""
    client = await Client.to(serving)
    waits = []
    for _ in range(200):
        started = time.perf_counter()
        assert (await client.ask("GET", "/health"))[0] == 200
        waits.append(time.perf_counter() - started)
    await client.close()
    return sorted(waits)


@dataclass(frozen=True)
class Terminated:
    """What happened after SIGTERM during generation.

    Attributes:
        data: bytes that the client received after the headers.
        seconds: seconds from the signal to the end of the process.
    """

    data: bytes
    seconds: float


async def terminated(serving: Serving) -> Terminated:
    """Send SIGTERM while a stream of 16 long texts runs, and wait for the end of the process."""
    client, other = await Client.to(serving), await Client.to(serving)
    client.send("POST", "/v1/completions", endless(stream=True, n=16))
    assert (await client.head())[0] == 200
    serving.process.send_signal(signal.SIGTERM)
    started = time.perf_counter()
    with contextlib.suppress(
        asyncio.IncompleteReadError, ConnectionError
    ):  # the service may close the idle connection first
        while (await other.ask("GET", "/ready"))[0] == 200:
            await asyncio.sleep(0.01)
    data = await client.reader.read()
    await client.close()
    await other.close()
    assert await asyncio.to_thread(serving.process.wait, 20) == 0
    return Terminated(data, time.perf_counter() - started)


def within(seconds: float, load: Coroutine[Any, Any, T]) -> T:
    """Run a load and return its result. It must end within the given seconds."""
    return asyncio.run(asyncio.wait_for(load, seconds))
