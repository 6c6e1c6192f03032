"""Test the vLLM engine. A fake `vllm` command serves the same API, because the tests do not install vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import openai
import psutil
import pytest

from finetale.cli import run
from serving import Client, Serving
from tiny import save_model

STAND_IN = """#!/bin/sh
test "$1" = serve && test "$3" = --served-model-name && test "$9" = --max-num-seqs || exit 7
test -z "$PYTHONPATH" || exit 8
FINETALE_API_KEY="$VLLM_API_KEY" exec {python} -m finetale serve "$2" --name "$4" --host "$6" --port "$8" --engine torch
"""

BROKEN = """#!{python}
import http.server, json, subprocess, sys, time

# Like vLLM, start a worker process. This one ignores SIGTERM.
worker = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", worker])

words = sys.argv[1:]
name, port = words[3], int(words[7])
tokens = {{"id": "x", "object": "text_completion", "created": 1, "model": name}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def give(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.give(200, json.dumps({{"data": [{{"id": name}}]}}).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = asked["user"]
        if kind == "refuses":
            return self.give(400, b'{{"error": {{"message": "not that", "param": "top_k", "code": "odd"}}}}')
        if kind == "fails":
            return self.give(500, b"<html>")
        if kind == "hangs":
            time.sleep(60)
        if kind == "ends":
            sys.stdout.flush()
            import os
            os._exit(3)
        choice = {{"index": 0, "text": "The", "finish_reason": None}}
        event = b"data: " + json.dumps(tokens | {{"choices": [choice]}}).encode() + b"\\n\\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(event)
        self.wfile.flush()
        if kind == "stalls":
            time.sleep(60)
        self.close_connection = True


http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
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


def test_vllm_gives_the_same_text_as_pytorch(client: openai.OpenAI, place: Path) -> None:
    asked = {"model": "tiny", "prompt": "The lamp", "max_tokens": 12, "temperature": 0}
    found = client.completions.create(**asked)
    with Serving(place, "tiny", "--engine", "torch") as direct:
        own = openai.OpenAI(base_url=f"http://127.0.0.1:{direct.port}/v1", api_key="none", max_retries=0)
        assert own.completions.create(**asked).choices[0].text == found.choices[0].text, (
            "a prompt begins with beginning-of-text"
        )
        own.close()
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == found.choices[0].text


def test_structured_output_and_ollamas_api_reach_vllm(client: openai.OpenAI, serving: Serving) -> None:
    """Newer versions of vLLM know only `structured_outputs`, which is what they get."""
    for values in (
        {"guided_choice": ["yes"]},
        {"structured_outputs": {"choice": ["yes"]}},
        {"guided_json": {"const": 3}},
    ):
        found = client.completions.create(model="tiny", prompt="The", max_tokens=9, extra_body=values)
        assert found.choices[0].text in ("yes", "3")
    body = {"model": "tiny", "prompt": "The", "options": {"num_predict": 6, "temperature": 0}}
    lines = httpx2.post(f"http://127.0.0.1:{serving.port}/api/generate", json=body, trust_env=False).text.splitlines()
    assert json.loads(lines[-1])["eval_count"] == 6
    assert "".join(json.loads(line)["response"] for line in lines)


def test_requests_are_checked_before_they_reach_vllm(client: openai.OpenAI) -> None:
    for values, parameter in [({"max_tokens": -1}, "max_tokens"), ({"n": 128, "prompt": ["a", "b"]}, "n")]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"model": "tiny", "prompt": "The"} | values)
        assert caught.value.param == parameter
    with pytest.raises(openai.BadRequestError) as caught:  # vLLM's error in the service's format
        client.completions.create(model="tiny", prompt="The", max_tokens=5000)
    assert caught.value.code == "context_length_exceeded"


def test_slots_are_limited_and_a_disconnect_frees_one(serving: Serving) -> None:
    (upstream,) = psutil.Process(serving.process.pid).children()
    asked = {"model": "tiny", "prompt": "The", "max_tokens": 5}

    async def go() -> None:
        clients = [await Client.to(serving) for _ in range(3)]
        other = await Client.to(serving)
        for client in clients:
            client.send("POST", "/v1/completions", asked)
        while (found := await status_in(other, 0.2)) != 429:  # until the 3 clients fill the slots and the queue
            assert found is None, "the other clients still wait for their answers"
            await other.close()
            other = await Client.to(serving)
        for client in clients:
            await client.close()
        upstream.resume()
        while (found := (await other.ask("POST", "/v1/completions", asked))[0]) != 200:
            assert found == 429
            await asyncio.sleep(0.02)
        await other.close()

    async def status_in(client: Client, seconds: float) -> int | None:
        with contextlib.suppress(TimeoutError):
            return (await asyncio.wait_for(client.ask("POST", "/v1/completions", asked), seconds))[0]
        return None

    upstream.suspend()
    try:
        asyncio.run(asyncio.wait_for(go(), 60))
    finally:
        upstream.resume()


def test_vllm_ends_with_the_service(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETALE_VLLM", str(place / "vllm"))
    with Serving(place, "tiny", "--engine", "vllm") as started:
        children = psutil.Process(started.process.pid).children()
        assert len(children) == 1
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(20)
        children[0].wait(10)


def test_a_missing_or_failing_vllm_is_reported(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = str(place / "tiny")
    monkeypatch.delenv("FINETALE_VLLM", raising=False)
    monkeypatch.setenv("PATH", "")
    assert run(["serve", model, "--engine", "vllm", "--port", "0"]) == 1
    error = capfd.readouterr().err
    assert "vLLM is not installed" in error
    assert "pip install vllm" in error
    monkeypatch.setenv("FINETALE_VLLM", "/bin/false")
    assert run(["serve", model, "--engine", "vllm", "--port", "0"]) == 1
    assert "vLLM exited with status 1" in capfd.readouterr().err


def test_errors_of_vllm_are_reported(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "vllm"
    script.write_text(BROKEN.format(python=sys.executable), encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("FINETALE_VLLM", str(script))
    with (
        Serving(place, "tiny", "--engine", "vllm", "--timeout", "2") as started,
        openai.OpenAI(base_url=f"http://127.0.0.1:{started.port}/v1", api_key="none", max_retries=0) as client,
    ):
        asked = {"model": "tiny", "prompt": "The", "max_tokens": 5}

        def ask(kind: str, stream: bool) -> None:
            answer = client.completions.create(**asked, user=kind, stream=stream)
            if stream:
                assert [piece.choices[0].text for piece in itertools.islice(answer, 1)] == ["The"]
                list(answer)

        def error_of(kind: str, *, stream: bool = False) -> openai.APIError:
            with pytest.raises(openai.APIError) as caught:
                ask(kind, stream)
            return caught.value

        refused = error_of("refuses")
        assert isinstance(refused, openai.BadRequestError)
        assert (refused.param, refused.code) == ("top_k", "odd")
        assert "not that" in str(refused)
        assert isinstance(error_of("fails"), openai.InternalServerError)
        began = time.monotonic()
        slow = error_of("hangs")
        assert isinstance(slow, openai.InternalServerError)
        assert (slow.status_code, slow.code) == (504, "timeout")
        assert "ended the stream early" in str(error_of("breaks", stream=True))
        assert "not ready in time" in str(error_of("stalls", stream=True))
        assert time.monotonic() - began < 15
        (upstream,) = psutil.Process(started.process.pid).children()
        (worker,) = upstream.children()
        gone = error_of("ends")
        assert isinstance(gone, openai.InternalServerError)
        assert gone.status_code == 503
        deadline = time.monotonic() + 10
        while status_of(started.port, "/ready") != 503:
            assert time.monotonic() < deadline, "a service without its engine is not ready"
            time.sleep(0.05)
        started.process.send_signal(signal.SIGHUP)  # reopens the failed model
        while status_of(started.port, "/ready") != 200:
            assert time.monotonic() < deadline + 20
            time.sleep(0.05)
        worker.wait(10)  # the worker process of the old vLLM has ended
        (upstream,) = psutil.Process(started.process.pid).children()
        (worker,) = upstream.children()
        assert started.end()[0] == 0
        worker.wait(10)


def status_of(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_newer_model_replaces_an_idle_old_one(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETALE_VLLM", str(place / "vllm"))
    save_model(tmp_path / "tiny")
    with (
        Serving(tmp_path, "tiny", "--engine", "vllm") as started,
        openai.OpenAI(base_url=f"http://127.0.0.1:{started.port}/v1", api_key="none", max_retries=0) as client,
    ):
        (old,) = psutil.Process(started.process.pid).children()
        old.suspend()  # while it answers
        try:
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(client.completions.create, model="tiny", prompt="The", max_tokens=5)
                time.sleep(0.5)
                shutil.rmtree(tmp_path / "tiny")
                save_model(tmp_path / "tiny", seed=1)
                started.process.send_signal(signal.SIGHUP)
                while "has been reloaded" not in started.log():
                    time.sleep(0.05)
                assert old.is_running()
                assert client.completions.create(model="tiny", prompt="The", max_tokens=5).choices, (
                    "the new model answers"
                )
                old.resume()
                assert answer.result(timeout=20).choices, "the old model finishes its answer"
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                old.resume()
        old.wait(20)
        assert len(psutil.Process(started.process.pid).children()) == 1
        assert started.end()[0] == 0
