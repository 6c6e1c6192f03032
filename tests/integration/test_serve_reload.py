"""Test that the service listens while it loads, and reloads a changed model without losing a request."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch

from finetale.cli import run
from finetale.server import service
from finetale.server.access import Limits
from finetale.server.app import Service
from serving import Serving
from tiny import save_model

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, path: str, body: Any = None) -> tuple[int, dict[str, Any], dict[str, str]]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=30) as answer:
            return answer.status, json.load(answer), {}
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), {name.lower(): value for name, value in error.headers.items()}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_sighup_before_the_model_is_loaded_does_not_end_the_service(tmp_path: Path) -> None:
    save_model(tmp_path / "tiny")
    command = [sys.executable, "-m", "finetale", "serve", "tiny", "--port", "0", "--engine", "torch", "--quiet"]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
        )
    try:
        while not handled_signals(process.pid) >> (signal.SIGHUP - 1) & 1:
            assert process.poll() is None
            time.sleep(0.001)
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
        process.send_signal(signal.SIGHUP)
        while "has not changed" not in log.read_text(encoding="utf-8"):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def handled_signals(pid: int) -> int:
    """Return the signals that a process has handlers for, as bits."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))


def test_a_loading_service_answers_503(tmp_path: Path) -> None:
    save_model(tmp_path / "tiny")
    port = free_port()
    # Importing torch and transformers takes 1 to 2 s, and so does the conversion.
    command = [
        sys.executable,
        "-m",
        "finetale",
        "serve",
        "tiny",
        "--port",
        str(port),
        "--engine",
        "openvino",
        "--quiet",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen = []
    try:
        while not seen or seen[-1][0] != 200:
            assert process.poll() is None
            try:
                seen.append(ask(port, "/ready"))
            except urllib.error.URLError:
                time.sleep(0.005)
                continue
            if len(seen) == 1:
                status, body, headers = ask(port, "/v1/completions", {"model": "tiny", "prompt": "The"})
                assert (status, body["error"]["code"]) == (503, "loading")
                assert headers["retry-after"] == "1"
                assert ask(port, "/health")[0] == 200
                assert ask(port, "/v1/models")[1]["data"] == []
    finally:
        process.kill()
        process.wait()
    assert (seen[0][0], seen[0][1]) == (503, {"status": "loading"})
    assert seen[-1][1] == {"status": "ready"}


def test_sighup_replaces_a_changed_model(tmp_path: Path) -> None:
    save_model(tmp_path / "tiny")
    with Serving(tmp_path, "tiny", "--engine", "torch") as serving:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0)

        def text() -> str:
            made = client.completions.create(model="tiny", prompt="The lamp", max_tokens=20, temperature=0)
            return made.choices[0].text

        old = text()
        before = client.completions.create(
            model="tiny", prompt="The lamp", max_tokens=50, n=8, temperature=1, seed=0, stream=True
        )
        next(iter(before))
        shutil.rmtree(tmp_path / "tiny")
        save_model(tmp_path / "tiny", seed=5)
        found: set[str] = set()
        stop = threading.Event()

        def ask_on() -> None:
            while not stop.is_set():
                found.add(text())

        askers = [threading.Thread(target=ask_on) for _ in range(3)]
        for asker in askers:
            asker.start()
        serving.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while text() == old:
            assert time.monotonic() < deadline
        stop.set()
        for asker in askers:
            asker.join(30)
        new = text()
        assert new != old
        assert found <= {old, new}, "the old or the new model answers each request"
        assert sum(piece.choices[0].finish_reason is not None for piece in before) == 8

        (tmp_path / "tiny" / "model.safetensors").write_bytes(b"no weights")
        serving.process.send_signal(signal.SIGHUP)
        while "could not be reloaded" not in serving.log():
            assert time.monotonic() < deadline + 60
            time.sleep(0.05)
        assert text() == new
        (tmp_path / "tiny").rename(tmp_path / "gone")
        serving.process.send_signal(signal.SIGHUP)
        while "tiny does not exist any more" not in serving.log():  # without a request to the Hub
            assert time.monotonic() < deadline + 60
            time.sleep(0.05)
        assert text() == new
        client.close()


def test_one_failing_model_does_not_block_the_others(caplog: pytest.LogCaptureFixture) -> None:
    closed = threading.Event()

    def model(name: str) -> Any:
        return SimpleNamespace(
            name=name,
            described=name,
            waiting=0,
            busy=0,
            works=True,
            backend=object(),
            close=lambda seconds: closed.set(),
        )

    def fail(*words: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    serving = Service(Limits())
    old = {name: model(name) for name in ("one", "two")}
    for each in old.values():
        serving.add(each)
    newer = model("two")
    sources: Any = [
        SimpleNamespace(name="one", open=fail),
        SimpleNamespace(name="two", open=lambda notify, before: newer),
    ]
    with caplog.at_level("ERROR", "finetale.server"):
        thread = threading.Thread(target=service.reload, args=(serving, sources))
        thread.start()
        thread.join()
    assert serving.models == {"one": old["one"], "two": newer}
    assert "one could not be reloaded" in caplog.text
    assert closed.wait(10)


def test_an_address_that_cannot_be_used_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert run(["serve", "bundled", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"error: Finetale can't listen on 127.0.0.1:{port}: Address already in use" in error
    assert "--port" in error
    assert run(["serve", "bundled", "--host", "203.0.113.7", "--api-key-file", str(key_file(tmp_path))]) == 1
    assert "error: Finetale can't listen on 203.0.113.7:8000: " in capsys.readouterr().err


def key_file(folder: Path) -> Path:
    (folder / "key").write_text("secret\n")
    return folder / "key"


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("port", "99999", "<= 65535"),
        ("slots", "0", ">= 1"),
        ("queue", "-1", ">= 0"),
        ("timeout", "0", "> 0"),
        ("timeout", "nan", "> 0"),
        ("drain", "-1", ">= 0"),
    ],
)
def test_numbers_out_of_range_are_refused(flag: str, value: str, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "bundled", f"--{flag}", value]) == 2
    error = capsys.readouterr().err
    assert f"for --{flag}. Must be {rule}" in error


def test_a_model_that_cannot_be_loaded_ends_the_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(tmp_path / "nowhere"), "--port", "0"]) == 1
    assert "nowhere" in capsys.readouterr().err
