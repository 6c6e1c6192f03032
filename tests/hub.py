"""A small hub on loopback, for the real client: models and datasets out of folders.

Serves what huggingface_hub and datasets ask for: repository info, file trees, and files with the headers that carry
commit and ETag.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "gated/model"


class _Handler(BaseHTTPRequestHandler):
    """Folders below `root`: models/OWNER/NAME and datasets/OWNER/NAME."""

    root: Path
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"POST {path}")
        kind, repo, rest = self._split(path.removeprefix("/api/"))
        if "paths-info" in rest:
            wanted = self._paths(asked)
            entries = [entry for entry in self._tree(kind, repo, "", True) if entry["path"] in wanted]
            return self._json(entries, True)
        return self._json([], True)

    def log_message(self, format: str, *args: Any) -> None:
        return None

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        if path.startswith("/api/"):
            kind, repo, rest = self._split(path.removeprefix("/api/"))
            return self._api(kind, repo, rest, body)
        kind = "datasets" if path.startswith("/datasets/") else "models"
        _, repo, rest = self._split(f"{kind}/{path.removeprefix('/datasets/').lstrip('/')}")
        if len(rest) >= 3 and rest[0] == "resolve":
            return self._file(kind, repo, rest[1], "/".join(rest[2:]), body)
        return self._error(404, "EntryNotFound", body)

    def _api(self, kind: str, repo: str, rest: list[str], body: bool) -> None:
        folder = self.root / kind / repo
        if repo == GATED:
            return self._error(403, "GatedRepo", body)
        if not folder.is_dir():
            return self._error(404, "RepoNotFound", body)
        if len(rest) >= 2 and rest[0] in ("revision", "tree") and rest[1] not in ("main", COMMIT):
            return self._error(404, "RevisionNotFound", body)
        if rest[:1] == ["tree"]:
            recursive = "recursive=true" in self.path.lower()
            return self._json(self._tree(kind, repo, "/".join(rest[2:]), recursive), body)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        info = {"id": repo, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": [{"rfilename": f} for f in files]}
        return self._json(info, body)

    def _tree(self, kind: str, repo: str, below: str, recursive: bool) -> list[dict[str, Any]]:
        folder = self.root / kind / repo
        found = (folder / below).rglob("*") if recursive else (folder / below).glob("*")
        entries = []
        for path in sorted(found):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": name})
            else:
                entries.append({"type": "file", "oid": _etag(path), "size": path.stat().st_size, "path": name})
        return entries

    def _file(self, kind: str, repo: str, revision: str, name: str, body: bool) -> None:
        path = self.root / kind / repo / name
        if repo == GATED:
            return self._error(403, "GatedRepo", body)
        if not path.is_file() or revision not in ("main", COMMIT):
            return self._error(404, "EntryNotFound", body)
        data = path.read_bytes()
        start, status = 0, 200
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            data = data[start : int(last) + 1 if last else None]
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 206:
            size = path.stat().st_size
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{size}")
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _json(self, value: Any, body: bool, status: int = 200, code: str | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _error(self, status: int, code: str, body: bool) -> None:
        self._json({"error": code}, body, status, code)

    def _split(self, path: str) -> tuple[str, str, list[str]]:
        """Kind, OWNER/NAME (or NAME alone), and what follows."""
        kind, *words = [word for word in path.split("/") if word]
        verbs = {"resolve", "revision", "tree", "paths-info", "preupload"}
        end = next((index for index, word in enumerate(words) if word in verbs), min(2, len(words)))
        return kind, "/".join(words[:end]), words[end:]

    @staticmethod
    def _paths(asked: bytes) -> set[str]:
        from urllib.parse import parse_qs

        try:
            return set(json.loads(asked)["paths"])
        except ValueError:
            return set(parse_qs(asked.decode())["paths"])


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the folders below `root` on a free port; gives the address and the list of requests."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
