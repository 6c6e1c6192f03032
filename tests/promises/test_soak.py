"""Test a long mixed load: every response is correct, and memory, open files and threads do not grow."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
from transformers import PreTrainedModel

from finetale import models
from finetale.chat import PLAIN_TEMPLATE
from serving import Client, Serving
from tiny import model, tokenizer

LONG = int(os.environ.get("FINETALE_SOAK_SECONDS", "600"))
RUNS = [
    ("torch", 9),
    ("openvino", 15),
    *(pytest.param(name, LONG, marks=pytest.mark.slow) for name in ("torch", "openvino")),
]
"""Engine and seconds of each test. OpenVINO converts a model at each reload, so its test is longer."""
WARM_RELOADS = 10
"""Reloads before memory is recorded. The first ones fill the heap of a service (docs/log.md), which then stays."""
CLIENTS = 12
POSITIONS = 600
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
PROMPTS = [f"{word} number {number}" for number in range(5) for word in ("The lamp", "A heron", "Nobody")]


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("engine", "seconds"), RUNS)
def test_a_long_load_leaks_nothing_and_fails_nowhere(tmp_path: Path, engine: str, seconds: int) -> None:
    save(model(positions=POSITIONS), tmp_path / "tiny")
    with Serving(tmp_path, "tiny", "--engine", engine, "--slots", "8", "--queue", "16") as serving:
        process = psutil.Process(serving.process.pid)
        counts: Counter[str] = Counter()
        samples: list[tuple[int, int, int]] = []
        interval = min(4, seconds / 6)
        span = Span(seconds, round(seconds / interval / 3), tmp_path / "log")

        async def go() -> None:
            expected = await first_answers(serving)
            if engine != "torch":  # rounding, and so the text, depends on the size of the batch
                expected = dict.fromkeys(expected, "")
            work = [ask_on(serving, number, expected, span, counts) for number in range(CLIENTS)]
            await asyncio.gather(
                *work, reload_now_and_then(serving, tmp_path, span, interval), watch(process, span, samples, interval)
            )

        asyncio.run(go())
        code, log = serving.end()
    assert code == 0
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert not [line for line in lines if line["level"] in ("error", "critical") or line.get("status") == 500]
    reloads = sum("has been reloaded" in line["message"] for line in lines)
    middle = len(samples) // 3
    early, late = samples[middle : 2 * middle], samples[2 * middle :]
    # Compare peaks of memory. Compare medians of files and threads, because a reload briefly holds two models.
    grown = [max(sample[0] for sample in late) - max(sample[0] for sample in early)]
    grown += [
        round(median(sample[which] for sample in late) - median(sample[which] for sample in early)) for which in (1, 2)
    ]
    print(
        f"{engine}, {seconds} s: {sum(counts.values()):,} requests ({dict(counts)}), {reloads} reloads; "
        f"from the second third to the last {grown[0] / 1e6:+.1f} MB "
        f"(of {max(sample[0] for sample in samples) / 1e6:.0f}), {grown[1]:+d} files, {grown[2]:+d} threads"
    )
    assert reloads >= WARM_RELOADS + seconds / interval / 3
    assert all(counts[kind] > seconds / 4 for kind in KINDS), counts
    assert grown[0] < 30e6
    assert grown[1] <= 4
    assert grown[2] <= 2


def save(changed: PreTrainedModel, folder: Path) -> None:
    folder.mkdir()
    talks = copy.deepcopy(tokenizer())
    talks.chat_template = PLAIN_TEMPLATE
    models.save(changed, talks, folder)


class Span:
    """A period of `seconds` after the first reloads, extended by up to 60 s until `num_reloads` more are in the log."""

    def __init__(self, seconds: float, num_reloads: int, log: Path) -> None:
        self._seconds = seconds
        self._warm_until = time.monotonic() + 120
        self._ends: float | None = None
        self._num_reloads = WARM_RELOADS + num_reloads
        self._log = log
        self._read, self._reloads = 0, 0

    def reloads(self) -> int:
        """Return the number of reloads so far. Read only new lines of the log."""
        with self._log.open("rb") as file:
            file.seek(self._read)
            whole_lines = file.read().rpartition(b"\n")[0]
        self._read += len(whole_lines)
        self._reloads += whole_lines.count(b"has been reloaded")
        return self._reloads

    def begin(self) -> None:
        """Begin the period, after the service has been warmed up."""
        self._ends = time.monotonic() + self._seconds

    @property
    def has_begun(self) -> bool:
        return self._ends is not None

    def is_over(self) -> bool:
        """Return whether the load should stop."""
        if self._ends is None:
            return time.monotonic() > self._warm_until
        late = time.monotonic() - self._ends
        return late >= 0 and (self.reloads() >= self._num_reloads or late > 60)


async def first_answers(serving: Serving) -> dict[str, str]:
    client = await Client.to(serving)
    found = {prompt: json.loads((await client.ask(*whole(prompt)))[2])["choices"][0]["text"] for prompt in PROMPTS}
    await client.close()
    return found


def whole(prompt: str | list[str], **values: Any) -> tuple[str, str, dict[str, Any]]:
    given = {"model": "tiny", "prompt": prompt, "max_tokens": 12, "temperature": 0} | values
    return "POST", "/v1/completions", given


async def ask_on(serving: Serving, number: int, expected: dict[str, str], span: Span, counts: Counter[str]) -> None:
    """Send random requests from one client."""
    drawn = random.Random(number)
    client = await Client.to(serving)
    while not span.is_over():
        kind = drawn.choice(list(KINDS))
        prompt = drawn.choice(PROMPTS)
        if not await KINDS[kind](client, prompt, expected[prompt]):
            await client.close()
            client = await Client.to(serving)
        counts[kind] += 1
    await client.close()


async def answered(client: Client, prompt: str, text: str) -> bool:
    status, _, data, _ = await client.ask(*whole(prompt))
    assert status == 200
    assert json.loads(data)["choices"][0]["text"] == text or not text
    return True


async def many(client: Client, prompt: str, text: str) -> bool:
    asked = {"n": 3, "logprobs": 2, "temperature": 1, "top_p": 0.9, "frequency_penalty": 0.5}
    status, _, data, _ = await client.ask(*whole([prompt, "A"], **asked))
    assert status == 200
    assert len(json.loads(data)["choices"]) == 6
    return True


async def streamed(client: Client, prompt: str, text: str) -> bool:
    client.send(*whole(prompt, stream=True))
    assert (await client.head())[0] == 200
    events = await client.events()
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == text or not text
    assert events[-1] == "[DONE]"
    return True


async def left(client: Client, prompt: str, text: str) -> bool:
    """Abort the connection in the middle of a stream."""
    client.send(*whole(prompt, stream=True, temperature=1, max_tokens=40, n=2))
    assert (await client.head())[0] == 200
    await client.reader.readuntil(b"\n\n")
    client.writer.transport.abort()
    return False


async def refused(client: Client, prompt: str, text: str) -> bool:
    assert (await client.ask(*whole(prompt, max_tokens=5000)))[0] == 400
    return True


async def counted(client: Client, prompt: str, text: str) -> bool:
    for path in ("/metrics", "/health", "/v1/models"):
        assert (await client.ask("GET", path))[0] == 200
    return True


async def structured(client: Client, prompt: str, text: str) -> bool:
    status, _, data, _ = await client.ask(*whole(prompt, temperature=1, max_tokens=200, guided_json=SCHEMA))
    assert status == 200
    (choice,) = json.loads(data)["choices"]
    assert choice["finish_reason"] == "stop"
    assert json.loads(choice["text"])["n"] in range(100)
    return True


async def long(client: Client, prompt: str, text: str) -> bool:
    """Send a prompt that is read in several parts. Every third client leaves meanwhile."""
    ids = [random.randrange(300) for _ in range(500)]
    if ids[0] % 3 == 0:
        client.send(*whole(ids))
        await asyncio.sleep(0.02)
        client.writer.transport.abort()
        return False
    assert (await client.ask(*whole(ids)))[0] == 200
    return True


async def embedded(client: Client, prompt: str, text: str) -> bool:
    body = {"model": "tiny", "input": [prompt, "A heron waited. " * 20], "encoding_format": "base64"}
    status, _, data, _ = await client.ask("POST", "/v1/embeddings", body)
    if status == 400:  # OpenVINO
        assert json.loads(data)["error"]["code"] == "no_embeddings"
        return True
    assert status == 200
    assert len(json.loads(data)["data"]) == 2
    return True


async def responded(client: Client, prompt: str, text: str) -> bool:
    client.send("POST", "/v1/responses", {"model": "tiny", "input": prompt, "max_output_tokens": 12, "stream": True})
    assert (await client.head())[0] == 200
    events = await client.events()
    assert events[-1].startswith(("event: response.incomplete", "event: response.completed")), events[-1][:900]
    return True


KINDS = {
    "whole": answered,
    "many": many,
    "streamed": streamed,
    "left": left,
    "refused": refused,
    "counted": counted,
    "structured": structured,
    "long": long,
    "embedded": embedded,
    "responded": responded,
}


async def reload_now_and_then(serving: Serving, folder: Path, span: Span, interval: float) -> None:
    """Reload a changed model at intervals. Only weights of an unused position change, so answers stay the same."""
    for number in itertools.count(1):
        if span.has_begun:
            await asyncio.sleep(interval)
        if span.is_over():
            return
        changed = model(positions=POSITIONS)
        changed.transformer.wpe.weight.data[-1] += number
        shutil.rmtree(folder / "tiny")
        save(changed, folder / "tiny")
        serving.process.send_signal(signal.SIGHUP)
        while span.reloads() < number and not span.is_over():  # the service may still read the folder
            await asyncio.sleep(0.1)
        if number == WARM_RELOADS:
            span.begin()


async def watch(process: psutil.Process, span: Span, samples: list[tuple[int, int, int]], interval: float) -> None:
    """Record memory in bytes, open files and threads, four times per reload."""
    while not span.is_over():
        if span.has_begun:
            samples.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
        await asyncio.sleep(interval / 4)
