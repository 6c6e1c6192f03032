"""`finetale serve --host unix:PATH`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetale.errors import ConfigError
from finetale.server.listening import listening
from tiny import save_model

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short path, because that of a socket is limited to about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="ft") as name:
        yield Path(name)


class OverSocket(http.client.HTTPConnection):
    """A connection through a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def ask(path: Path, route: str, body: Any = None, host: str = "localhost") -> str:
    """Send a request through a Unix socket; return the body of the response."""
    with contextlib.closing(OverSocket(path)) as connection:
        headers = {"Host": host, "Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", route, body and json.dumps(body), headers)
        return connection.getresponse().read().decode()


def test_a_client_of_the_socket_gets_texts_and_the_file_is_removed_at_the_end(tmp_path: Path, folder: Path) -> None:
    save_model(tmp_path / "tiny")
    path = folder / "service"
    words = ["serve", "tiny", "--engine", "torch", "--host", f"unix:{path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "finetale", *words],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if "Serving" in line)
        assert f" at unix:{path} (press Ctrl-C to stop)" in line
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert json.loads(ask(path, "/v1/models"))["data"][0]["id"] == "tiny"
        body = {"model": "tiny", "prompt": "The", "max_tokens": 3, "temperature": 0}
        assert json.loads(ask(path, "/v1/completions", body))["usage"]["completion_tokens"] == 3
        assert ask(path, "/v1/completions", body | {"stream": True}).endswith("data: [DONE]\n\n")
        refused = json.loads(ask(path, "/v1/models", host="attacker.example"))
        assert refused["error"]["code"] == "host_not_allowed"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not path.exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_socket_that_a_killed_service_left_is_replaced_and_one_in_use_is_not(folder: Path) -> None:
    path = folder / "service"
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()
    assert path.exists()
    with listening(f"unix:{path}", 0) as (first, url):
        assert url == f"unix:{path}"
        assert first.family == socket.AF_UNIX
        with pytest.raises(ConfigError, match=r"can't listen on the Unix socket .*service: Address already in use"):
            listening(f"unix:{path}", 0).__enter__()
        assert path.exists()
    assert not path.exists()


def test_no_file_is_replaced_and_no_socket_of_another_service_is_removed(folder: Path) -> None:
    path = folder / "notes.txt"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="can't listen"):
        listening(f"unix:{path}", 0).__enter__()
    assert path.read_text(encoding="utf-8") == "mine"
    place = folder / "service"
    with listening(f"unix:{place}", 0):
        os.unlink(place)
        other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        other.bind(str(place))
    assert place.exists()
    other.close()


@pytest.mark.parametrize("path", ["x" * 200, "missing/service", ""])
def test_paths_that_cannot_be_sockets_are_refused_in_a_sentence(folder: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="can't listen on the Unix socket"):
        listening(f"unix:{folder / path}", 0).__enter__()
