"""Test the limits per client (connections, headers, bodies, time) and the access of pages of other sites."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from finetale import models
from finetale.cli import run
from finetale.server import connections, model_spec
from finetale.server.access import MAX_HEADER_BYTES, Limits
from finetale.server.app import Service
from tiny import save_model

KEY = "a key of the tests"
SITE = "https://writers.example"


class LimitedService:
    """A service in a thread of this process."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        loaded = models.open_model(str(save_model(folder / "tiny")), lambda event: None)
        self.service = Service(Limits(**limits))
        self.served = model_spec.serve_model("tiny", loaded, slots=2, max_waiting=4)
        self.service.add(self.served)
        self.service.loading = False
        config = uvicorn.Config(
            self.service.app(),
            port=0,
            log_config=None,
            lifespan="off",
            http=connections.bounded(self.service.limits),
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert self.served.worker.close(10)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LimitedService]:
    found = LimitedService(
        tmp_path_factory.mktemp("limits"),
        key=KEY,
        origins=frozenset({SITE}),
        max_connections=20,
        header_seconds=0.5,
        body_seconds=0.5,
        stalled_seconds=0.5,
        max_body_bytes=100_000,
    )
    yield found
    found.close()


def read_all(client: socket.socket) -> bytes:
    """Read until the service closes the connection; return the data."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.recv(65536):
            data += more
    return data


def error_in(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_missing_headers_close_the_connection(limited: LimitedService, sent: bytes) -> None:
    with limited.socket() as client:
        started = time.monotonic()
        if sent:
            client.sendall(sent)
            for _ in range(3):  # sending single bytes does not extend the timeout
                time.sleep(0.1)
                client.sendall(b"X")
        assert read_all(client) == b""
        assert 0.4 < time.monotonic() - started < 5


def test_the_second_request_of_a_connection_has_a_timeout_too(limited: LimitedService) -> None:
    with limited.socket() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.7)  # longer than the timeout: an idle connection stays open between requests
        client.sendall(b"GET /health HTTP/1.1\r\n")
        started = time.monotonic()
        read_all(client)
        assert 0.4 < time.monotonic() - started < 5


def test_the_rest_of_an_unread_body_has_a_timeout(limited: LimitedService) -> None:
    with limited.socket() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(20):
                client.sendall(b"x")
                time.sleep(0.1)
        read_all(client)
        assert 0.2 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [-1] * 20_000},
        {"prompt": [[]] * 20_000},
        {"prompt": [1] * 20_000 + ["x"]},
        {"prompt": ["x"] * 10_000 + [1]},
        {"prompt": "x", "logit_bias": {str(number): 1000 for number in range(6_000)}},
        {"prompt": "x", "stop": [1] * 20_000},
        {str(number): 1 for number in range(6_000)},
    ],
)
def test_many_errors_in_a_body_cost_no_more_than_one(limited: LimitedService, body: dict[str, Any]) -> None:
    seconds = []
    for _ in range(3):  # other programs slow some of them down
        started = time.process_time()
        words = {"model": "tiny"} | body
        status, _, data = limited.ask("POST", "/v1/completions", words, Authorization=f"Bearer {KEY}")
        seconds.append(time.process_time() - started)
        assert status == 400
        assert len(data) < 1000
    assert min(seconds) < 0.25  # listing every error took 100 times as long


def test_a_missing_body_gets_an_error(limited: LimitedService) -> None:
    with limited.socket() as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
        client.sendall(f"{head}Content-Length: 50\r\n\r\n{{".encode())
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 408")
    assert error_in(answer)["code"] == "timeout"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01 this is TLS\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 20_000, 431),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", 400),
    ],
)
def test_an_invalid_request_gets_a_json_error(limited: LimitedService, sent: bytes, status: int) -> None:
    with limited.socket() as client:
        client.sendall(sent)
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert error_in(answer)["type"] == "invalid_request_error"


def test_connections_above_the_limit_get_status_503(limited: LimitedService) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(limited.socket()) for _ in range(20)]
        for client in clients:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n")
        time.sleep(0.1)
        answer = read_all(stack.enter_context(limited.socket()))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in answer
        assert error_in(answer)["code"] == "too_many_connections"
    deadline = time.monotonic() + 5
    while limited.ask("GET", "/health")[0] != 200:
        assert time.monotonic() < deadline


def test_an_idle_connection_makes_room_for_a_new_one(limited: LimitedService) -> None:
    def check(client: socket.socket) -> None:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        received = b""
        while not received.endswith(b'{"status":"ok"}'):
            more = client.recv(4000)
            assert more, "the connection is closed"
            received += more

    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(limited.socket()) for _ in range(20)]
        for client in idle:
            check(client)
        for _ in range(3):
            new = stack.enter_context(limited.socket())
            check(new)
        check(idle[-1])  # the newest stay open
        with pytest.raises((ConnectionError, AssertionError)):
            check(idle[0])


def test_a_client_that_does_not_read_is_disconnected(limited: LimitedService) -> None:
    head = f"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(30)
    client.connect(("127.0.0.1", limited.port))
    with client:
        asker = threading.Thread(target=pump, args=(client, head.encode()))
        asker.start()
        deadline = time.monotonic() + 20
        while asker.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def pump(client: socket.socket, request: bytes) -> None:
    """Send requests without reading the responses, until the service closes the connection."""
    with contextlib.suppress(OSError):
        while True:
            client.sendall(request)


def test_a_client_that_sends_a_large_body_whole_gets_an_error(limited: LimitedService) -> None:
    """Most clients read the response only after they have sent the body."""
    started = time.process_time()  # includes the service, which runs in this process
    status, headers, data = limited.ask("POST", "/v1/completions", "x" * 50_000_000, Authorization=f"Bearer {KEY}")
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(data)["error"]["code"] == "body_too_large"
    assert time.process_time() - started < 2  # a fifth of it builds the body


def test_only_listed_origins_may_send_requests(limited: LimitedService) -> None:
    asks = {"Origin": SITE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, headers, _ = limited.ask("OPTIONS", "/v1/completions", **asks)
    assert status == 200
    assert headers["access-control-allow-origin"] == SITE
    status, headers, _ = limited.ask("GET", "/v1/models", Origin=SITE, Authorization=f"Bearer {KEY}")
    assert (status, headers["access-control-allow-origin"]) == (200, SITE)
    assert limited.ask("GET", "/v1/models", Origin=SITE)[0] == 401, "a listed origin still needs the key"
    status, headers, _ = limited.ask("OPTIONS", "/v1/completions", **(asks | {"Origin": "https://evil.example"}))
    assert status == 400
    assert "access-control-allow-origin" not in headers
    status, headers, _ = limited.ask("GET", "/v1/models", Origin="https://evil.example", Authorization=f"Bearer {KEY}")
    assert status == 403
    assert "access-control-allow-origin" not in headers


def test_a_browser_prompts_for_the_key(limited: LimitedService) -> None:
    status, headers, _ = limited.ask("GET", "/")
    assert (status, headers["www-authenticate"]) == (401, 'Basic realm="Finetale"')
    status, headers, _ = limited.ask("GET", "/v1/models")
    assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="Finetale"')
    for shown, expected in ((f":{KEY}", 200), (f"me:{KEY}", 200), (KEY, 401), (f"{KEY}:", 401), ("me:wrong", 401)):
        given = "Basic " + base64.b64encode(shown.encode()).decode()
        for path in ("/", "/v1/models"):
            assert limited.ask("GET", path, Authorization=given)[0] == expected
    for broken in ("Basic", "Basic =", "Basic \xff", "Basic " + base64.b64encode(b"\xff:\xff").decode()):
        assert limited.ask("GET", "/", Authorization=broken)[0] == 401


def test_a_response_has_a_time_limit(tmp_path: Path) -> None:
    found = LimitedService(tmp_path, request_seconds=0.3)
    try:
        may = threading.Event()
        step = found.served.worker.engine.step
        found.served.worker.engine.step = lambda: (may.wait(), step())[1]  # type: ignore[method-assign]
        body = {"model": "tiny", "prompt": "The", "max_tokens": 30}
        started = time.monotonic()
        status, _, data = found.ask("POST", "/v1/completions", body)
        assert status == 504
        assert json.loads(data)["error"]["code"] == "timeout"
        status, _, data = found.ask("POST", "/v1/completions", body | {"stream": True})
        assert status == 200
        events = [event for event in data.decode().split("\n\n") if event]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert events[-1] == "data: [DONE]"
        assert time.monotonic() - started < 5
        may.set()
        deadline = time.monotonic() + 5
        while found.served.worker.busy or found.served.worker.waiting:
            assert time.monotonic() < deadline, "a request that timed out frees its slots"
            time.sleep(0.01)
        assert found.ask("POST", "/v1/completions", body)[0] == 200
    finally:
        found.close()


@pytest.mark.parametrize("word", ["writers.example", "https://", "https://*.example", "https://a.example/page", "null"])
def test_an_origin_must_be_a_full_address(tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(tmp_path), "--allow-origin", word]) == 1
    assert f"--allow-origin {word} is not a site" in capsys.readouterr().err


def test_connections_fit_into_the_limit_on_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        assert connections.max_connections(400) == 400
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 528
        assert connections.max_connections(100) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
