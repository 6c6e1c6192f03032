"""Test the service through the real `openai` client and through raw HTTP."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import uvicorn
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoConfig

import finetale
from finetale import models
from finetale.cli import run
from finetale.config import SamplingSettings
from finetale.generate import Generator
from finetale.models import LoadedModel
from finetale.server import model_spec
from finetale.server.access import Limits
from finetale.server.answer import Served
from finetale.server.app import Service
from finetale.server.engines import selection
from finetale.server.meters import Meters
from serving import Serving
from tiny import save_model, tokenizer

KEY = "a key of the tests"


@dataclass
class Running:
    """A service in a thread of this process."""

    port: int
    served: Served
    generator: Generator

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0, timeout=60)

    def raw(
        self, body: Any, path: str = "/v1/completions", method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return the status, headers and body of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | headers
        connection.request(method, path, data if method == "POST" else None, given)
        answer = connection.getresponse()
        found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def complete(self, **values: Any) -> Any:
        """Return a completion of the tiny model. The default is greedy search."""
        given = {"model": "tiny", "prompt": "The lamp", "max_tokens": 8, "temperature": 0} | values
        extra = {name: given.pop(name) for name in ("top_k", "min_p", "repetition_penalty") if name in given}
        return self.client.completions.create(**given, extra_body=extra)

    def error(self, **values: Any) -> dict[str, Any]:
        """Send an invalid request, check that the status is 400, and return the error."""
        with pytest.raises(openai.BadRequestError) as caught:
            self.complete(**values)
        assert isinstance(caught.value.body, dict)
        assert set(caught.value.body) == {"message", "type", "param", "code"}
        return caught.value.body


def app_of(served: Served, limits: Limits) -> Any:
    """Return the application in the state after its model has loaded."""
    service = Service(limits)
    service.add(served)
    service.loading = False
    return service.app()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    loaded = models.open_model(str(save_model(tmp_path_factory.mktemp("served") / "tiny")), lambda event: None)
    served = model_spec.serve_model("tiny", loaded, slots=4, max_waiting=32)
    app = app_of(served, Limits(key=KEY, max_body_bytes=100_000, max_samples=16))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", http="h11"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Running(server.servers[0].sockets[0].getsockname()[1], served, Generator(loaded.model, loaded.tokenizer))
    server.should_exit = True
    thread.join(10)
    assert served.worker.close(10)


def expected(running: Running, prompt: str, tokens: int = 8, **settings: Any) -> str:
    given = SamplingSettings.resolve({"temperature": 0, "max_new_tokens": tokens, "top_p": 1.0} | settings)
    return running.generator.generate([prompt], given)[0][0].text


def test_models_are_listed(running: Running) -> None:
    assert [model.id for model in running.client.models.list()] == ["tiny"]
    assert running.client.models.retrieve("tiny").owned_by == "finetale"
    with pytest.raises(openai.NotFoundError, match="The model 'other' does not exist"):
        running.client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError):
        running.complete(model="other")


def test_a_completion_equals_the_text_of_generate(running: Running) -> None:
    found = running.complete()
    assert found.object == "text_completion"
    assert found.choices[0].text == expected(running, "The lamp")
    assert found.choices[0].finish_reason == "length"
    prompt = len(running.generator.tokenizer("The lamp")["input_ids"])
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (prompt, 8)
    assert found.usage.total_tokens == prompt + 8


def test_choices_are_in_the_order_of_the_prompts(running: Running) -> None:
    prompts = ["The lamp", "She counted", "Nobody came down to the", "A", "When the wind turned, the old man", "It"]
    found = running.complete(prompt=prompts)
    assert [choice.index for choice in found.choices] == list(range(6))
    assert [choice.text for choice in found.choices] == [expected(running, prompt) for prompt in prompts]


def test_token_ids_are_used_unchanged(running: Running) -> None:
    ids = running.generator.tokenizer("The lamp")["input_ids"]
    plain = running.complete(prompt="The lamp").choices[0].text
    assert running.complete(prompt=[running.generator.begin, *ids]).choices[0].text == plain
    lists = running.complete(prompt=[[running.generator.begin, *ids], ids])
    assert lists.choices[0].text == plain
    assert running.error(prompt=[10**6])["param"] == "prompt"


def test_a_seed_makes_samples_reproducible_and_samples_differ(running: Running) -> None:
    first, second = (running.complete(temperature=1, seed=5, n=3, max_tokens=12) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 3
    assert texts[0] == expected(running, "The lamp", 12, temperature=1.0, seed=5)
    unseeded = {running.complete(temperature=1, max_tokens=12).choices[0].text for _ in range(4)}
    assert len(unseeded) > 1


@pytest.mark.parametrize("settings", [{"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.2}, {"repetition_penalty": 1.5}])
def test_sampling_settings_reach_the_sampler(running: Running, settings: dict[str, float]) -> None:
    given = {"temperature": 0.9, "seed": 3}
    found = running.complete(**given, **settings, max_tokens=12).choices[0].text
    assert found == expected(running, "The lamp", 12, **given, **settings)


def test_penalties_and_bias(running: Running) -> None:
    plain = running.complete(max_tokens=20).choices[0].text
    assert running.complete(max_tokens=20, frequency_penalty=2).choices[0].text != plain
    ids = running.generator.tokenizer("lamp")["input_ids"]
    forced = running.complete(logit_bias={str(ids[0]): 100}, max_tokens=3).choices[0].text
    assert forced == running.generator.tokenizer.decode([ids[0]] * 3)
    assert running.error(logit_bias={"1000000": 1})["param"] == "logit_bias"
    assert running.error(logit_bias={"x": 1})["param"] == "logit_bias"


def test_the_default_max_tokens_is_16(running: Running) -> None:
    for values in ({}, {"max_tokens": None}):
        status, _, data = running.raw({"model": "tiny", "prompt": "The", "logit_bias": {"0": -100}} | values)
        assert status == 200
        assert json.loads(data)["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_string_ends_the_text(running: Running, length: int) -> None:
    whole = expected(running, "The lamp", 30)
    stop = whole[9 : 9 + length]
    at = whole.index(stop)
    found = running.complete(max_tokens=30, stop=stop)
    assert found.choices[0].text == whole[:at]
    assert found.choices[0].finish_reason == "stop"
    pieces = list(running.complete(max_tokens=30, stop=["never seen", stop], stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole[:at]
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_equal_those_of_the_model(running: Running) -> None:
    found = running.complete(logprobs=3, echo=True, max_tokens=4).choices[0]
    logprobs = found.logprobs
    ids = [running.generator.begin, *running.generator.tokenizer("The lamp")["input_ids"]]
    with torch.inference_mode():
        logits = running.generator.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    values = [float(logits[at, token]) for at, token in enumerate(ids[1:])]
    # A string begins with beginning-of-text, which is listed but is not part of the text.
    assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
    assert logprobs.tokens[0] == running.generator.tokenizer.decode(ids[:1])
    assert logprobs.text_offset[:2] == [0, 0]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        del getattr(logprobs, name)[0]
    assert logprobs.token_logprobs[: len(values)] == pytest.approx(values, abs=1e-4)
    assert logprobs.token_logprobs[len(values)] == pytest.approx(float(logits[-1].max()), abs=1e-4), "greedy"
    known = list(zip(logprobs.tokens, logprobs.text_offset, strict=True))[: len(values)]
    assert "".join(token for token, _ in known) == "The lamp"
    assert all(found.text[at : at + len(token)] == token for token, at in known)
    for at, top in enumerate(logprobs.top_logprobs[: len(values)]):
        assert top[logprobs.tokens[at]] == pytest.approx(values[at], abs=1e-4), (
            "the chosen token is always listed, even if it is unlikely"
        )
        assert len(top) <= 4
        assert max(top.values()) == pytest.approx(float(logits[at].max()), abs=1e-4)


def test_requests_of_evaluation_harnesses(running: Running) -> None:
    """Evaluation harnesses send token ids with `echo` and one new token. The first token has no log-probability."""
    ids = running.generator.tokenizer("The lamp stood on the sill")["input_ids"]
    logprobs = running.complete(prompt=ids, echo=True, logprobs=1, max_tokens=1).choices[0].logprobs
    assert logprobs.token_logprobs[0] is None
    with torch.inference_mode():
        logits = running.generator.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    values = [float(logits[at, token]) for at, token in enumerate(ids[1:])]
    assert logprobs.token_logprobs[1 : len(ids)] == pytest.approx(values, abs=1e-4)
    only = running.complete(prompt=ids, echo=True, logprobs=0, max_tokens=0).choices[0]
    assert only.text == running.generator.tokenizer.decode(ids)
    assert only.logprobs.token_logprobs[1:] == pytest.approx(values, abs=1e-4)
    assert only.finish_reason == "length"
    # End-of-text counts as a token, because harnesses index from the end of the list and expect one new token.
    ended = running.complete(
        prompt=ids, echo=True, logprobs=1, max_tokens=1, logit_bias={str(running.generator.ends[0]): 100}
    )
    assert ended.choices[0].finish_reason == "stop"
    assert ended.choices[0].text == only.text
    assert len(ended.choices[0].logprobs.tokens) == len(ids) + 1 == ended.usage.total_tokens


def test_best_of_returns_the_likeliest_choices(running: Running) -> None:
    given = {"temperature": 1, "seed": 8, "max_tokens": 6}
    every = running.complete(**given, n=6, logprobs=0).choices
    best = sorted(every, key=lambda choice: -sum(choice.logprobs.token_logprobs))
    found = running.complete(**given, n=2, best_of=6)
    assert [choice.text for choice in found.choices] == [choice.text for choice in best[:2]]
    assert found.usage.completion_tokens == 36


def test_a_stream_adds_up_to_the_completion(running: Running) -> None:
    prompts = ["The lamp", "She counted", "A heron"]
    chunks = list(running.complete(prompt=prompts, stream=True, echo=True, stream_options={"include_usage": True}))
    texts = ["", "", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
        assert chunk.usage is None
    assert texts == [prompt + expected(running, prompt) for prompt in prompts]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_format_of_a_stream(running: Running) -> None:
    body = {"model": "tiny", "prompt": "The lamp", "max_tokens": 3, "temperature": 0, "stream": True}
    status, headers, data = running.raw(body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = data.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    last = json.loads(events[-3].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    assert "usage" not in last


def test_characters_of_several_tokens_arrive_whole(running: Running) -> None:
    """A Chinese character or an emoji takes several tokens of one byte each."""
    text = "你好🙂é"
    ids = running.generator.tokenizer(text)["input_ids"]
    assert len(ids) > len(text)
    found = running.complete(prompt=ids, echo=True, logprobs=0, max_tokens=0)
    assert found.choices[0].text == text
    assert any(token.startswith("bytes:\\x") for token in found.choices[0].logprobs.tokens)
    status, _, data = running.raw({"model": "tiny", "prompt": text, "max_tokens": 1, "stream": True, "echo": True})
    assert status == 200
    assert text in data.decode()


@pytest.mark.parametrize(
    ("values", "parameter"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10_000}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"suffix": "the end"}, "suffix"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": "word " * 500}, "prompt"),
        ({"prompt": "word " * 15_000}, "prompt"),
        ({"stop": "x" * 1001}, "stop"),
        ({"extra": 1}, "extra"),
    ],
)
def test_unsupported_requests_are_refused(running: Running, values: dict[str, Any], parameter: str) -> None:
    status, _, data = running.raw({"model": "tiny", "prompt": "The lamp", "max_tokens": 2} | values)
    error = json.loads(data)["error"]
    assert status == 400, error
    assert error["param"] == parameter
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 10


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "tiny", "max_tokens": NaN}',
        b"\xff",
        b"[" * 50_000,
        b"{}",
        b'{"model": "tiny", "prompt": "a\\ud800"}',
        b'{"model": "tiny", "prompt": "a\xed\xa0\x80"}',
        '{"model": "tiny", "prompt": "a\\ud800"}'.encode("utf-16-le"),
        '{"model": "tiny", "prompt": "a"}'.encode("utf-32"),
    ],
)
def test_an_invalid_body_is_refused(running: Running, body: bytes) -> None:
    status, _, data = running.raw(body)
    assert status == 400
    assert json.loads(data)["error"]["type"] == "invalid_request_error"


def test_without_the_key_only_health_answers(running: Running) -> None:
    for path, method in (("/v1/models", "GET"), ("/v1/completions", "POST"), ("/nothing", "GET")):
        for given in ("", "Bearer wrong", f"Basic {KEY}"):
            assert running.raw({}, path, method, Authorization=given)[0] == 401
    assert running.raw({}, "/health", "GET", Authorization="")[0] == 200
    assert running.raw({}, "/ready", "GET", Authorization="")[0] == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="wrong").models.list()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "http://localhost", "Host": "localhost:80"}, 200),
        ({"Origin": "https://localhost:443", "Host": "localhost"}, 200),
        ({"Origin": "ftp://localhost", "Host": "localhost"}, 403),
    ],
)
def test_foreign_hosts_and_origins_are_refused(running: Running, headers: dict[str, str], status: int) -> None:
    assert running.raw({}, "/v1/models", "GET", **headers)[0] == status


def test_large_bodies_are_refused_before_they_are_read(running: Running) -> None:
    started = time.process_time()  # includes the service, which runs in this process
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Authorization", f"Bearer {KEY}")
    connection.putheader("Content-Length", str(50_000_000))
    connection.endheaders()
    connection.send(b"x" * 1000)
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["code"] == "body_too_large"
    assert time.process_time() - started < 1
    connection.close()

    def chunks() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 1000

    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.request("POST", "/v1/completions", chunks(), {"Authorization": f"Bearer {KEY}"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_unknown_paths_and_methods_get_a_json_error(running: Running) -> None:
    for path, method, status in (("/v1/nothing", "GET", 404), ("/v1/completions", "GET", 405)):
        found, _, data = running.raw({}, path, method)
        assert found == status
        assert set(json.loads(data)["error"]) == {"message", "type", "param", "code"}


def test_a_client_that_disconnects_frees_its_slots(running: Running) -> None:
    streams = [running.complete(prompt="The", max_tokens=50, temperature=1, n=4, stream=True) for _ in range(3)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    deadline = time.monotonic() + 5
    while (running.served.worker.busy or running.served.worker.waiting) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.served.worker.busy == running.served.worker.waiting == 0
    assert running.complete().choices[0].text == expected(running, "The lamp")


def test_concurrent_clients_get_the_same_answers_as_a_single_client(running: Running) -> None:
    prompts = [f"{word} number {i}" for i, word in enumerate(["The lamp", "A heron", "Nobody", "She"] * 5)]
    found: dict[str, str] = {}

    def ask(prompt: str) -> None:
        found[prompt] = running.complete(prompt=prompt).choices[0].text

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {prompt: expected(running, prompt) for prompt in prompts}


def test_metrics_count_requests_and_tokens(running: Running) -> None:
    def value(name: str) -> float:
        text = running.raw({}, "/metrics", "GET")[2].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    requests, tokens = value("finetale_requests_total"), value("finetale_completion_tokens_total")
    running.complete(max_tokens=7)
    running.error(temperature=-1)
    assert value("finetale_requests_total") >= requests + 3  # 2 above and the request for the metrics
    assert value("finetale_completion_tokens_total") == tokens + 7
    assert value("finetale_time_to_first_token_seconds_count") > 0
    assert value("finetale_queue_length") == value("finetale_busy_slots") == 0
    assert "The lamp" not in running.raw({}, "/metrics", "GET")[2].decode()


def test_metrics_have_the_speeds_of_the_engines_that_were_compared() -> None:
    meters = Meters()
    meters.compared("tiny", {"torch": 20.0, "openvino": 30.5})
    meters.compared("other", {})
    lines = [line for line in meters.text().decode().splitlines() if line.startswith("finetale_engine_tokens")]
    assert sorted(lines) == [
        'finetale_engine_tokens_per_second{engine="openvino",model="tiny"} 30.5',
        'finetale_engine_tokens_per_second{engine="torch",model="tiny"} 20.0',
    ]


def test_a_full_queue_refuses_at_once(running: Running) -> None:
    body = {"model": "tiny", "prompt": "The", "max_tokens": 55, "temperature": 1, "n": 4, "best_of": 4}
    answers: list[tuple[int, float, dict[str, str]]] = []

    def ask() -> None:
        started = time.monotonic()
        status, headers, _ = running.raw(body)
        answers.append((status, time.monotonic() - started, headers))

    threads = [threading.Thread(target=ask) for _ in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    statuses = [status for status, _, _ in answers]
    assert len(statuses) == 80, "every request gets a response"
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 33
    refused = [headers for status, _, headers in answers if status == 429]
    assert all(headers["retry-after"] == "1" for headers in refused)
    assert running.raw({}, "/health", "GET")[0] == 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("command")
    save_model(place / "tiny")
    return place


def test_sigterm_lets_started_requests_finish(folder: Path) -> None:
    with Serving(folder, "tiny", "--drain", "20") as serving:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="tiny", prompt="The", max_tokens=55, n=8, stream=True, temperature=0)
        pieces = [next(iter(stream))]
        serving.process.send_signal(signal.SIGTERM)
        pieces += list(stream)
        assert sum(piece.choices[0].finish_reason is not None for piece in pieces) == 8
        code, log = serving.end()
        assert code == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
        client.close()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    logged = [(line["method"], line["route"], line["status"]) for line in lines if "route" in line]
    assert logged == [("POST", "/v1/completions", 200)]
    assert all("The" not in json.dumps(line) for line in lines), "prompts are not logged"


def test_a_public_address_requires_a_key(folder: Path) -> None:
    command = [sys.executable, "-m", "finetale", "serve", "tiny", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "there is no API key" in done.stderr
    (folder / "key").write_text("secret\n")
    # A public service also accepts the names and addresses of the machine as Host, but no other site's name.
    key, mine = "Bearer secret", {"127.0.0.1": 200, "192.0.2.7:80": 403, "evil.example": 403}
    every = mine | {"192.0.2.7:80": 200, "[2001:db8::7]:80": 200, socket.gethostname(): 200}
    for words, hosts in (((), mine), (("--host", "0.0.0.0"), every)):
        with Serving(folder, "tiny", "--api-key-file", "key", *words) as serving:
            connection = http.client.HTTPConnection("127.0.0.1", serving.port)
            for given, host, status in (("", "127.0.0.1", 401), *((key, *pair) for pair in hosts.items())):
                connection.request("GET", "/v1/models", headers={"Authorization": given, "Host": host})
                answer = connection.getresponse()
                answer.read()
                assert answer.status == status, host
            connection.close()
            assert serving.end()[0] == 0


def test_missing_extras_are_reported_before_a_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finetale, "server", sys.modules["finetale.server"])  # restored afterwards, like sys.modules
    for name in [name for name in sys.modules if name.startswith("finetale.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run(["serve", str(folder / "nothing")]) == 1
    assert "pip install 'finetale[serve]'" in capsys.readouterr().err


def test_the_page_loads_nothing_from_elsewhere(running: Running) -> None:
    status, headers, data = running.raw({}, "/", "GET")
    page = data.decode()
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    nonce = headers["content-security-policy"].partition("script-src 'nonce-")[2].partition("'")[0]
    assert page.count(f'nonce="{nonce}"') == 2
    assert nonce not in running.raw({}, "/", "GET")[2].decode(), "each response has a new nonce"
    assert 'data-model="tiny"' in page
    assert "http" not in page.replace("http-equiv", ""), "the page has no address of another site"
    assert running.raw({}, "/", "GET", Authorization="")[0] == 401


def test_a_service_of_several_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(folder / "other", seed=1)
    with Serving(folder, "tiny", "--also", "second=other") as serving:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none") as client:
            assert [model.id for model in client.models.list()] == ["tiny", "second"]
            given = {"prompt": "The lamp", "temperature": 0, "max_tokens": 8}
            texts = [client.completions.create(model=name, **given).choices[0].text for name in ("tiny", "second")]  # type: ignore[call-overload]
        assert texts[0] != texts[1]
        assert serving.end()[0] == 0
    model = str(folder / "tiny")
    for words, says in (
        (("--also", "tiny=x"), "Two models have the name tiny"),
        (("--also", "x=tiny", "--also", "x=tiny"), "Two models have the name x"),
        (("--also", "x"), "not NAME=MODEL"),
        (("--with-base",), "is not a run, so it has no base"),
    ):
        assert run(["serve", model, *words]) == 1
        assert says in capsys.readouterr().err


def test_repeated_prompts_get_different_samples(running: Running) -> None:
    given = {"temperature": 1, "seed": 4, "max_tokens": 12}
    twice = [choice.text for choice in running.complete(prompt=["The lamp"] * 2, **given).choices]
    assert twice == [choice.text for choice in running.complete(n=2, **given).choices]
    assert twice[0] != twice[1]


def test_offsets_count_characters_not_tokens(running: Running) -> None:
    found = running.complete(prompt="你好 ab", echo=True, logprobs=0, max_tokens=0).choices[0]
    known = [
        (at, token)
        for at, token in list(zip(found.logprobs.text_offset, found.logprobs.tokens, strict=True))[1:]
        if not token.startswith("bytes:")
    ]
    assert known
    assert all(found.text[at : at + len(token)] == token for at, token in known)
    whole = running.complete(max_tokens=30, logprobs=0).choices[0].text
    for streamed in (False, True):
        answer = running.complete(max_tokens=30, logprobs=0, stop=whole[12:14], stream=streamed)
        choices = [chunk.choices[0] for chunk in answer] if streamed else answer.choices
        size = len("".join(choice.text for choice in choices))
        assert all(at < size for choice in choices for at in choice.logprobs.text_offset)


def test_extreme_parameters_do_not_affect_other_clients(running: Running) -> None:
    stream = running.complete(max_tokens=50, stream=True)
    for values in ({"temperature": 1e-300}, {"temperature": 1e-300, "repetition_penalty": 0.01}, {"top_p": 1e-300}):
        assert running.complete(**({"temperature": 1} | values), seed=1).choices[0].text
    assert running.complete(temperature=1e-300).choices[0].text == expected(running, "The lamp")
    assert len(list(stream)) > 10
    assert running.error(logit_bias={"9" * 5000: 1})["param"] == "logit_bias"
    started = time.process_time()  # includes the service, which runs in this process
    assert running.error(prompt=[""] * 20_000)["param"] == "prompt"
    assert time.process_time() - started < 1


def loaded_as(config: Any, *, eager: bool = False) -> LoadedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if eager else None)
    return LoadedModel(model, None, models.Provenance("tiny", "new", None, "", 0))  # type: ignore[arg-type]


def test_rows_share_a_batch_only_if_the_model_isolates_them() -> None:
    small = {"vocab_size": 100, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    facts = selection.Facts(100, (), 64)
    for eager in (False, True):
        assert selection.torch_engine(loaded_as(GPT2Config(**small), eager=eager), facts, 4).name == "torch"
    shape = {"vocab_size": 100, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
    neo = GPTNeoConfig(**shape, attention_types=[[["global", "local"], 1]], window_size=4, initializer_range=0.5)
    engine = selection.torch_engine(loaded_as(neo, eager=True), facts, 4)
    assert engine.name == "torch, one at a time"


def test_offsets_of_an_echo_count_special_tokens_too(running: Running) -> None:
    end = running.generator.tokenizer.eos_token
    prompt = f"The lamp{end}stood on"
    choice_ = running.complete(prompt=prompt, echo=True, logprobs=0, max_tokens=3).choices[0]
    tokens, offsets = choice_.logprobs.tokens[1:], choice_.logprobs.text_offset[1:]
    place = tokens.index(end)
    assert choice_.text[offsets[place] :].startswith(end)
    assert choice_.text[offsets[place + 1] :].startswith(tokens[place + 1])
    assert offsets[place + 1] == offsets[place] + len(end)


def test_tokens_after_a_stop_string_are_not_returned(running: Running) -> None:
    whole = running.complete(max_tokens=12).choices[0].text
    stop = next(whole[at : at + 4] for at in range(1, len(whole) - 4) if whole.find(whole[at : at + 4]) == at)
    for stream in (False, True):
        answer = running.complete(max_tokens=12, stop=stop, logprobs=0, stream=stream)
        choices = [piece.choices[0] for piece in answer] if stream else [answer.choices[0]]
        text = "".join(choice_.text for choice_ in choices)
        assert text == whole[: whole.index(stop)]
        offsets = [place for choice_ in choices if choice_.logprobs for place in choice_.logprobs.text_offset]
        assert offsets == sorted(offsets)
        assert all(place < len(text) for place in offsets)


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines", "a\tb"])
def test_a_key_that_is_not_a_valid_header_is_refused(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text(key, encoding="utf-8")
    assert run(["serve", "bundled", "--api-key-file", str(tmp_path / "key")]) == 1
    assert "can't be sent in a request" in capsys.readouterr().err


def test_a_key_file_with_a_bom_and_unusual_names_are_accepted(folder: Path) -> None:
    (folder / "bom").write_text("secret\n", encoding="utf-8-sig")
    words = ("--api-key-file", "bom", "--allow-host", "Writers.Example:8443", "--queue", "0", "--name", "[/x]")
    with Serving(folder, "tiny", "--engine", "torch", *words) as serving:
        connection = http.client.HTTPConnection("127.0.0.1", serving.port)
        headers = {"Authorization": "Bearer secret", "Host": "writers.example"}
        body = json.dumps({"model": "[/x]", "prompt": "The", "max_tokens": 2})
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        assert answer.status == 200, "an idle service accepts requests with --queue 0"
        answer.read()
        connection.close()
        assert serving.end()[0] == 0
    assert run(["serve", str(folder / "tiny"), "--allow-host", "http://x"]) == 1


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_each_listed_end_of_text_ends_a_completion(tmp_path: Path, engine: str) -> None:
    """Chat models list two end tokens: end of turn and end of document."""
    save_model(tmp_path / "tiny")
    other = int(tokenizer().convert_tokens_to_ids("Q"))
    path = tmp_path / "tiny/generation_config.json"
    config = json.loads(path.read_text())
    first = config["eos_token_id"]
    assert first != other
    path.write_text(json.dumps(config | {"eos_token_id": [first, other]}))
    with Serving(tmp_path, "tiny", "--engine", engine) as serving:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0)

        def complete(token: int, *, stream: bool = False) -> Any:
            """Return a completion that always chooses `token`."""
            settings: Any = {"max_tokens": 5, "temperature": 0, "logit_bias": {str(token): 100}, "stream": stream}
            return client.completions.create(model="tiny", prompt="The lamp", **settings)

        for end in (first, other):
            found = complete(end)
            assert (found.choices[0].text, found.choices[0].finish_reason) == ("", "stop")
            assert found.usage.completion_tokens == 1
            pieces = [piece.choices[0] for piece in complete(end, stream=True)]
            assert "".join(piece.text for piece in pieces) == ""
            assert pieces[-1].finish_reason == "stop"
        found = complete(int(tokenizer().convert_tokens_to_ids("R")))
        assert (found.choices[0].text, found.choices[0].finish_reason) == ("RRRRR", "length")
        assert serving.end()[0] == 0
