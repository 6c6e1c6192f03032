"""Serve models and datasets from folders to the real clients, like the Hub, on loopback.

The server answers the requests of huggingface_hub and datasets: repository info, file trees, and files with the headers
for commit and ETag. Errors are those of the real Hub for a user who is not logged in. A missing repository is 401
RepoNotFound. The files of a gated repository are 401 GatedRepo, but its info is public.

Users with a token of `USERS` can upload: create a repository, send large files (LFS), and commit. A private repository
exists for its owner only. `Fault`s make the server refuse, break off or lie.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from commands import Result, Worker

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", COMMIT)
GATED_OWNER = "gated"

TOKEN, READ_TOKEN = "hf_" + "Writer" * 5, "hf_" + "Reader" * 5
USERS = {TOKEN: ("author", "write"), READ_TOKEN: ("author", "read")}
"""Name and role by token."""
LARGE = (".safetensors", ".gguf")
"""Files that are uploaded as large files."""

_VERBS = frozenset({"resolve", "revision", "tree", "paths-info"})
_UPLOADS = re.compile(
    r"^api/(whoami-v2|repos/create|models/[^/]+/[^/]+/(preupload|commit)/\w+)$|\.git/info/lfs/objects/batch$"
)
"""Paths of the requests that need a token."""
_MESSAGES = {
    "RepoNotFound": (401, "Repository not found"),
    "RevisionNotFound": (404, "Invalid rev id"),
    "EntryNotFound": (404, "Entry not found"),
    "GatedRepo": (401, "Access to this repository is restricted. You must be authenticated to access it."),
}


@dataclass
class Fault:
    """What goes wrong in answers to requests.

    Args:
        to: text in the requests that it is for, such as `PUT lfs/`.
        status: status of the answer; 0: the usual answer.
        headers: further headers of the answer.
        cut: break off after so many bytes: of the body sent, or for PUT, of the body received.
        body: what a file or an answer holds in place of its content.
        size: size that a file is said to have.
        delay: seconds before the answer.
        times: number of answers that it is in.
    """

    to: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    body: bytes | None = None
    size: int | None = None
    delay: float = 0.0
    times: int = 10**9


@dataclass
class Hub:
    """A running server: its address, the requests it got, and its state."""

    root: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    private: dict[str, bool] = field(default_factory=dict)
    """Whether a repository that was created by its users is private."""
    commits: dict[str, str] = field(default_factory=dict)
    """The newest commit of the repositories that were changed."""
    titles: dict[str, dict[str, str]] = field(default_factory=dict)
    """Title of the last commit of each file, by repository."""
    received: int = 0
    """Bytes of large files that arrived."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Handler(BaseHTTPRequestHandler):
    """Answers requests from the folders models/OWNER/NAME and datasets/OWNER/NAME below `root`."""

    hub: Hub
    fault: Fault
    protocol_version = "HTTP/1.1"

    @property
    def root(self) -> Path:
        return self.hub.root

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        return None

    def _answer(self, asked: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        self.fault = self._next_fault(request)
        time.sleep(self.fault.delay)
        words = path.split("/")
        if self.fault.status:
            self._refuse(self.fault.status)
        elif self.command == "PUT":
            self._receive(words[-1])
        elif path == "api/validate-yaml":
            self._json({"warnings": [], "errors": []})
        elif _UPLOADS.search(path):
            self._upload(path, asked)
        else:
            self._read(path, asked)

    def _next_fault(self, request: str) -> Fault:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and fault.to in request:
                    fault.times -= 1
                    return fault
        return Fault("")

    def _user(self) -> tuple[str, str]:
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "), ("", ""))

    def _refuse(self, status: int) -> None:
        self.close_connection = True
        self._json({"error": f"Fault {status}"}, status)

    def _upload(self, path: str, asked: bytes) -> None:
        """Answer the requests that need a token."""
        name, role = self._user()
        words = path.split("/")
        if not name:
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "api/whoami-v2":
            return self._json({"name": name, "type": "user", "orgs": [], "auth": {"accessToken": {"role": role}}})
        form = json.loads(asked) if words[4:5] != ["commit"] else {}
        if path == "api/repos/create":
            return self._create(form, name, role)
        repo = "/".join(words[2:4]) if words[0] == "api" else path.removesuffix(".git/info/lfs/objects/batch")
        if repo not in self.hub.private:
            return self._error("RepoNotFound")
        if role != "write" or repo.split("/")[0] != name:
            return self._json({"error": "You don't have the rights to write to this repository."}, 403)
        if words[4:5] == ["preupload"]:
            return self._json({"files": [self._mode(repo, each["path"]) for each in form["files"]]})
        if words[4:5] == ["commit"]:
            return self._commit(repo, [json.loads(line) for line in asked.splitlines()])
        return self._json({"transfer": "basic", "objects": [self._wanted(each) for each in form["objects"]]})

    def _create(self, form: dict[str, Any], name: str, role: str) -> None:
        owner = form.get("organization") or name
        repo = f"{owner}/{form['name']}"
        if role != "write" or owner != name:
            return self._json({"error": f"You don't have the rights to create a model under {owner}."}, 403)
        known = repo in self.hub.private or (self.root / "models" / repo).is_dir()
        if not known:
            # Newer clients send `visibility`, older ones `private`.
            self.hub.private[repo] = form.get("visibility") == "private" or form.get("private") is True
            (self.root / "models" / repo).mkdir(parents=True)
        error = {"error": "You already created this model repo"} if known else {}
        return self._json({"url": f"{self.hub.url}/{repo}", **error}, 409 if known else 200)

    def _mode(self, repo: str, path: str) -> dict[str, Any]:
        file = self.root / "models" / repo / path
        large = path.endswith(LARGE)
        oid = None if not file.is_file() else sha256(file.read_bytes()) if large else _git_hash(file.read_bytes())
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _wanted(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return where a large file goes; nowhere if the server has it."""
        if (self.root / "lfs" / item["oid"]).is_file():
            return item
        return item | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}}}

    def _receive(self, oid: str) -> None:
        """Store a large file, if it is whole."""
        size = int(self.headers.get("Content-Length", 0))
        data = self.rfile.read(size if self.fault.cut is None else min(size, self.fault.cut))
        self.hub.received += len(data)
        if self.fault.cut is not None:
            self.close_connection = True
            self.connection.close()
        elif sha256(data) != oid:
            self._refuse(400)
        else:
            (self.root / "lfs").mkdir(exist_ok=True)
            (self.root / "lfs" / oid).write_bytes(data)
            self._json({})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        """Write all files of a commit, or none."""
        files: dict[str, bytes] = {}
        removed, title = [], ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "deletedFile":
                removed.append(self.root / "models" / repo / value["path"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                large = self.root / "lfs" / value["oid"]
                if not large.is_file():
                    return self._refuse(400)
                files[value["path"]] = large.read_bytes()
        for path, data in files.items():
            file = self.root / "models" / repo / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            self.hub.titles.setdefault(repo, {})[path] = title
        for file in removed:
            file.unlink()
        self.hub.commits[repo] = oid = hashlib.sha1(json.dumps(lines).encode()).hexdigest()
        return self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def _read(self, path: str, asked: bytes) -> None:
        api = path.startswith("api/")
        words = path.removeprefix("api/").split("/")
        kind = words.pop(0) if words[0] in ("models", "datasets") else "models"
        end = next((index for index, word in enumerate(words) if word in _VERBS), len(words))
        repo, rest = "/".join(words[:end]), words[end:]
        folder = self.root / kind / repo
        hidden = self.hub.private.get(repo) is True and self._user()[0] != repo.split("/")[0]
        exists = repo in self.hub.private or (folder.is_dir() and any(item.is_file() for item in folder.iterdir()))
        if not repo or not exists or hidden:
            self._error("RepoNotFound")
        elif rest[1:2] and rest[1] not in (*REVISIONS, self._sha(repo)):
            self._error("RevisionNotFound")
        elif api:
            self._api(folder, repo, rest, asked)
        elif rest[:1] == ["resolve"] and repo.startswith(f"{GATED_OWNER}/"):
            self._error("GatedRepo")
        elif rest[:1] == ["resolve"] and (folder / "/".join(rest[2:])).is_file():
            self._file(folder / "/".join(rest[2:]), self._sha(repo))
        else:
            self._error("EntryNotFound")

    def _sha(self, repo: str) -> str:
        return self.hub.commits.get(repo, COMMIT)

    def _api(self, folder: Path, repo: str, rest: list[str], asked: bytes) -> None:
        verb = rest[0] if rest else "revision"
        if verb == "tree":
            below = folder / "/".join(rest[2:])
            if not below.is_dir():
                return self._error("EntryNotFound")
            recursive = "recursive=true" in self.path.lower()
            entries = _entries(folder, below.rglob("*") if recursive else below.glob("*"))
            if "expand=true" in self.path.lower():
                titles = self.hub.titles.get(repo, {})
                for entry in entries:
                    title = titles.get(entry["path"], "initial commit")
                    entry["lastCommit"] = {"id": COMMIT, "title": title, "date": "2026-01-01T00:00:00.000Z"}
            return self._json(entries)
        if verb == "paths-info":
            form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
            paths = parse_qs(asked.decode())["paths"] if form else json.loads(asked)["paths"]
            return self._json(_entries(folder, (folder / path for path in paths if (folder / path).exists())))
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return self._json(
            {
                "id": repo,
                "sha": self._sha(repo),
                "private": self.hub.private.get(repo, False),
                "gated": "manual" if repo.startswith(f"{GATED_OWNER}/") else False,
                "tags": [],
                "cardData": _front_matter(folder / "README.md"),
                "siblings": [{"rfilename": file} for file in files],
            }
        )

    def _file(self, path: Path, commit: str) -> None:
        data = path.read_bytes() if self.fault.body is None else self.fault.body
        size, first, status = len(data), 0, 200
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            start, _, last = wanted.removeprefix("bytes=").partition("-")
            first, status = int(start), 206
            data = data[first : int(last) + 1 if last else None]
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if self.fault.size is None else self.fault.size))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self._end(data)

    def _json(self, value: Any, status: int = 200, code: str = "", message: str = "") -> None:
        data = json.dumps(value).encode() if self.fault.body is None else self.fault.body
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
        for name, value in self.fault.headers.items():
            self.send_header(name, value)
        if self.close_connection or self.fault.cut is not None or self.fault.size is not None:
            self.send_header("Connection", "close")  # sets close_connection too
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: self.fault.cut])


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
    with running(root) as hub:
        yield hub.url, hub.requests


@contextmanager
def running(root: Path) -> Iterator[Hub]:
    """Serve the folders below `root` on a free port; yield the server."""
    hub = Hub(root)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True  # a client may keep its connection open after the test
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
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
    data = path.read_bytes()
    return sha256(data) if path.name.endswith(LARGE) else hashlib.sha1(data).hexdigest()


def sha256(data: bytes) -> str:
    """Return the name of a large file with this content."""
    return hashlib.sha256(data).hexdigest()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


def _front_matter(card: Path) -> Any:
    parts = card.read_text(encoding="utf-8").split("---\n") if card.is_file() else []
    return yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
