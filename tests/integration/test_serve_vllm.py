"""vLLM behind our limits. It is not installed where tests run: a command of its name stands in, which serves the same API."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from finetale.cli import run
from serving import Serving
from tiny import save_model

STAND_IN = """#!/bin/sh
test "$1" = serve && test "$3" = --served-model-name && test "$9" = --max-num-seqs || exit 7
test -z "$PYTHONPATH" || exit 8
FINETALE_API_KEY="$VLLM_API_KEY" exec {python} -m finetale serve "$2" --name "$4" --host "$6" --port "$8" --engine torch
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    save_model(folder / "tiny")
    script = folder / "vllm"
    script.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.fixture(scope="module")
def serving(place: Path) -> Iterator[Serving]:
    before = os.environ.get("FINETALE_VLLM")
    os.environ["FINETALE_VLLM"] = str(place / "vllm")
    try:
        with Serving(place, "tiny", "--engine", "vllm", "--slots", "2", "--queue", "1") as started:
            yield started
            started.end()
    finally:
        os.environ.pop("FINETALE_VLLM")
        if before is not None:
            os.environ["FINETALE_VLLM"] = before


@pytest.fixture(scope="module")
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_answers_come_through(client: openai.OpenAI, place: Path) -> None:
    asked = {"model": "tiny", "prompt": "The lamp", "max_tokens": 12, "temperature": 0}
    found = client.completions.create(**asked)
    with Serving(place, "tiny", "--engine", "torch") as direct:
        own = openai.OpenAI(base_url=f"http://127.0.0.1:{direct.port}/v1", api_key="none", max_retries=0)
        assert own.completions.create(**asked).choices[0].text == found.choices[0].text, "a text begins a document"
        own.close()
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == found.choices[0].text


def test_requests_are_checked_before_they_get_there(client: openai.OpenAI) -> None:
    for values, parameter in [({"max_tokens": -1}, "max_tokens"), ({"n": 128, "prompt": ["a", "b"]}, "n")]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"model": "tiny", "prompt": "The"} | values)
        assert caught.value.param == parameter
    with pytest.raises(openai.BadRequestError) as caught:  # its own refusal, in our shape
        client.completions.create(model="tiny", prompt="The", max_tokens=5000)
    assert caught.value.code == "context_length_exceeded"


def test_there_is_room_for_so_many_and_who_leaves_makes_some(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "The", "max_tokens": 55, "n": 2, "temperature": 1, "stream": True}
    streams = [client.completions.create(**asked) for _ in range(3)]
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="tiny", prompt="The")
    for stream in streams:
        stream.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert client.completions.create(model="tiny", prompt="The", max_tokens=1).choices
            break
        except openai.RateLimitError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_it_ends_with_us(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETALE_VLLM", str(place / "vllm"))
    with Serving(place, "tiny", "--engine", "vllm") as started:
        children = psutil.Process(started.process.pid).children()
        assert len(children) == 1
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(20)
        children[0].wait(10)


def test_what_is_missing_or_fails_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = str(place / "tiny")
    monkeypatch.delenv("FINETALE_VLLM", raising=False)
    monkeypatch.setenv("PATH", "")
    assert run(["serve", model, "--engine", "vllm", "--port", "0"]) == 1
    told = capfd.readouterr().err
    assert "vLLM is not installed" in told
    assert "pip install vllm" in told
    monkeypatch.setenv("FINETALE_VLLM", "/bin/false")
    assert run(["serve", model, "--engine", "vllm", "--port", "0"]) == 1
    assert "vLLM ended with status 1" in capfd.readouterr().err
