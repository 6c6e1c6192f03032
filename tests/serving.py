"""Run `finetale serve` in a new process, and send requests with a cheap client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from children import Forked


class Serving:
    """`finetale serve WORDS` in a process forked from a server that has loaded the libraries.

    Args:
        folder: the process's working directory; its standard error goes to folder/log.
        python: arguments of a fresh Python interpreter to run in place of the command.
    """

    def __init__(self, folder: Path, *words: str, python: Sequence[str] | None = None) -> None:
        self._log = folder / "log"
        self.process: Forked | subprocess.Popen[str]
        if python is None:
            self.process = Forked(folder, ("serve", *words, "--port", "0"), self._log)
        else:
            with self._log.open("wb") as log:  # an unread pipe would fill up and block the process
                self.process = subprocess.Popen(
                    [sys.executable, *python], cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
                )
        assert self.process.stdout is not None
        self.line = line = self.process.stdout.readline()
        found = re.search(r" at https?://(?:127\.0\.0\.1|0\.0\.0\.0):(\d+)/", line)
        assert found, line + self.log()
        self.port = int(found[1])

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def log(self) -> str:
        """Return what the process has written to its standard error."""
        return self._log.read_text(encoding="utf-8")

    def end(self) -> tuple[int, str]:
        """Send SIGTERM; return the exit code and the log."""
        self.process.terminate()
        self.process.communicate(timeout=30)
        assert self.process.returncode is not None
        return self.process.returncode, self.log()


class Client:
    """One connection that sends raw HTTP, because a client library would use more time than the service."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, serving: Serving) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", serving.port))

    def send(self, method: str, path: str, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:] if line)

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes, float]:
        """Return status, headers, body, and the seconds until the headers had arrived."""
        started = time.perf_counter()
        self.send(method, path, body)
        status, headers = await self.head()
        seconds = time.perf_counter() - started
        return status, headers, await self.reader.readexactly(int(headers["content-length"])), seconds

    async def events(self) -> list[str]:
        """Read a stream to its end; return the data of its events."""
        found = []
        while size := int(await self.reader.readline(), 16):
            data = (await self.reader.readexactly(size + 2)).decode()
            found += [event.removeprefix("data: ") for event in data.strip().split("\n\n")]
        await self.reader.readline()
        return found

    async def close(self) -> None:
        """Abort the connection, and wait until it is closed."""
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
