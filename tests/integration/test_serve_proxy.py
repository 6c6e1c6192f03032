"""Test the service behind nginx with the example configuration: another host name, and streaming."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from serving import Serving
from tiny import save_model

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")
SITE = Path(__file__).parents[2] / "deploy/nginx.conf"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("proxy")
    save_model(folder / "tiny", positions=2048)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    with Serving(folder, "tiny", "--engine", "torch", "--allow-host", "writers.example") as serving:
        site = SITE.read_text(encoding="utf-8")
        lines = [line for line in site.splitlines() if "ssl_certificate" not in line]
        site = "\n".join(lines).replace("listen 443 ssl", f"listen 127.0.0.1:{found}")
        assert site.count("http://127.0.0.1:8000;") == 1
        site = site.replace("127.0.0.1:8000", f"127.0.0.1:{serving.port}")
        temporary = "".join(
            f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = folder / "nginx.conf"
        config.write_text(f"pid nginx.pid; events {{}} http {{ access_log off; {temporary} {site} }}")
        command = [
            str(NGINX),
            "-p",
            str(folder),
            "-c",
            str(config),
            "-e",
            "errors",
            "-g",
            "daemon off; master_process off;",
        ]
        proxy = subprocess.Popen(command)
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", found)).close()
                    break
                except OSError:
                    assert proxy.poll() is None, (folder / "errors").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield found
        finally:
            proxy.terminate()
            proxy.wait(10)


@contextmanager
def ask(port: int, method: str, path: str, body: object = None, **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"Host": "writers.example"} | headers)
    with closing(connection), connection.getresponse() as answer:
        yield answer


def test_the_service_answers_under_the_name_of_the_proxy(port: int) -> None:
    with ask(port, "GET", "/v1/models") as answer:
        assert json.load(answer)["data"][0]["id"] == "tiny"
    with ask(port, "GET", "/") as answer:
        assert b"data-model" in answer.read()
    body = {"model": "tiny", "prompt": "The", "max_tokens": 2}
    for origin, status in (("http://writers.example", 200), ("http://evil.example", 403)):
        with ask(port, "POST", "/v1/completions", body, Origin=origin) as answer:
            assert answer.status == status
            answer.read()


def test_the_proxy_does_not_buffer_tokens(port: int) -> None:
    body = {"model": "tiny", "prompt": "The", "max_tokens": 1500, "stream": True, "logit_bias": {"0": -100}}
    started = time.monotonic()
    with ask(port, "POST", "/v1/completions", body) as answer:
        times = [time.monotonic() - started for line in answer if line.startswith(b"data: ")]
    assert len(times) > 100
    assert times[0] < times[-1] / 4, "the first token arrives long before the last"
