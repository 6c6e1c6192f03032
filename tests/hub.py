"""Serve models and datasets from folders to the real clients, like the Hub, on loopback.

The server answers the requests of huggingface_hub and datasets: repository info, file trees, and files with the headers
for commit and ETag. Errors are those of the real Hub for a user who is not logged in. A missing repository is 401
RepoNotFound. The files of a gated repository are 401 GatedRepo, but its info is public.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from commands import Result, Worker

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", COMMIT)
GATED_OWNER = "gated"

_VERBS = frozenset({"resolve", "revision", "tree", "paths-info"})
_MESSAGES = {
    "RepoNotFound": (401, "Repository not found"),
    "RevisionNotFound": (404, "Invalid rev id"),
    "EntryNotFound": (404, "Entry not found"),
    "GatedRepo": (401, "Access to this repository is restricted. You must be authenticated to access it."),
}


class _Handler(BaseHTTPRequestHandler):
    """Answers requests from the folders models/OWNER/NAME and datasets/OWNER/NAME below `root`."""

    root: Path
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, format: str, *args: Any) -> None:
        return None

    def _answer(self, asked: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.requests.append(f"{self.command} {path}")
        api = path.startswith("api/")
        words = path.removeprefix("api/").split("/")
        kind = words.pop(0) if words[0] in ("models", "datasets") else "models"
        end = next((index for index, word in enumerate(words) if word in _VERBS), len(words))
        repo, rest = "/".join(words[:end]), words[end:]
        folder = self.root / kind / repo
        if not repo or not folder.is_dir() or not any(item.is_file() for item in folder.iterdir()):
            self._error("RepoNotFound")
        elif rest[1:2] and rest[1] not in REVISIONS:
            self._error("RevisionNotFound")
        elif api:
            self._api(folder, repo, rest, asked)
        elif rest[:1] == ["resolve"] and repo.startswith(f"{GATED_OWNER}/"):
            self._error("GatedRepo")
        elif rest[:1] == ["resolve"] and (folder / "/".join(rest[2:])).is_file():
            self._file(folder / "/".join(rest[2:]))
        else:
            self._error("EntryNotFound")

    def _api(self, folder: Path, repo: str, rest: list[str], asked: bytes) -> None:
        verb = rest[0] if rest else "revision"
        if verb == "tree":
            below = folder / "/".join(rest[2:])
            if not below.is_dir():
                return self._error("EntryNotFound")
            recursive = "recursive=true" in self.path.lower()
            return self._json(_entries(folder, below.rglob("*") if recursive else below.glob("*")))
        if verb == "paths-info":
            form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
            paths = parse_qs(asked.decode())["paths"] if form else json.loads(asked)["paths"]
            return self._json(_entries(folder, (folder / path for path in paths if (folder / path).exists())))
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return self._json(
            {
                "id": repo,
                "sha": COMMIT,
                "private": False,
                "gated": "manual" if repo.startswith(f"{GATED_OWNER}/") else False,
                "tags": [],
                "siblings": [{"rfilename": file} for file in files],
            }
        )

    def _file(self, path: Path) -> None:
        data = path.read_bytes()
        size, first, status = len(data), 0, 200
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            start, _, last = wanted.removeprefix("bytes=").partition("-")
            first, status = int(start), 206
            data = data[first : int(last) + 1 if last else None]
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self._end(data)

    def _json(self, value: Any, status: int = 200, code: str = "", message: str = "") -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
        self._end(data)

    def _error(self, code: str) -> None:
        status, message = _MESSAGES[code]
        self._json({"error": message}, status, code, message)

    def _end(self, data: bytes) -> None:
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@dataclass
class Machine:
    """A hub, a machine that can reach it at `url`, and the working directory of its commands."""

    requests: list[str]
    worker: Worker
    work: Path
    home: Path
    url: str

    def run(self, *arguments: str | Path) -> Result:
        """Run a command; `requests` then holds what it asked the hub."""
        self.requests.clear()
        return self.worker.run(*arguments)

    def downloaded(self, repo: str) -> set[str]:
        """Return the files of a repository that the last command downloaded."""
        start = f"GET {repo}/resolve/"
        return {line.removeprefix(start).partition("/")[2] for line in self.requests if line.startswith(start)}


def refused(result: Result) -> tuple[str, str]:
    """Check that a command was refused; return its error and hint."""
    assert result.code == 1, result.stderr
    assert len(result.errors) == 1, result.stderr
    assert len(result.hints) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.errors[0], result.hints[0]


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the folders below `root` on a free port; yield the address and the growing list of requests."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True  # a client may keep its connection open after the test
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entries(folder: Path, paths: Iterator[Path]) -> list[dict[str, Any]]:
    found = []
    for path in sorted(paths):
        kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
        etag = "0" * 40 if path.is_dir() else _etag(path)
        found.append({"type": kind, "oid": etag, "size": size, "path": path.relative_to(folder).as_posix()})
    return found


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
