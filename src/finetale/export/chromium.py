"""Open a page in Chromium and call its functions. Needs no package: Chromium's debugging protocol runs over a pipe.

Chromium, Chrome and Edge of the system are used, without a window and with an empty profile.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetale.errors import ConfigError, ModelError
from finetale.export.runtimes import Scores

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_MAC = tuple(
    f"/Applications/{name}.app/Contents/MacOS/{name}" for name in ("Google Chrome", "Chromium", "Microsoft Edge")
)
_SECONDS = 300
"""Longest time for one answer."""
_OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--no-default-browser-check",
)


def find_browser() -> str:
    """Return the path of a browser.

    Raises:
        ConfigError: there is none, or this system is not supported.
    """
    if sys.platform == "win32":
        raise ConfigError(
            "The format html is proven in Chromium, which Finetale can run on Linux and macOS only.",
            "Export it in the Windows Subsystem for Linux, or choose another format.",
        )
    named = os.environ.get("CHROMIUM")
    found = [shutil.which(named)] if named else map(shutil.which, (*_NAMES, *_MAC))
    browser = next(filter(None, found), None)
    if browser is None:
        where = f"CHROMIUM names {named}, which is not a program" if named else "no Chromium, Chrome or Edge was found"
        raise ConfigError(
            f"The format html is proven in a browser, and {where}.",
            "Install Chromium, or set the variable CHROMIUM to the path of one.",
        )
    return browser


class PageRuntime:
    """A page of the format html in Chromium. Implements Runtime.

    Raises:
        ConfigError: there is no browser.
        ModelError: the browser or the page fails, here or later.
    """

    def __init__(self, file: Path) -> None:
        self._browser = _Browser(find_browser())
        self.name = self._browser.name
        self._browser.visit(file.resolve().as_uri())
        self._call("ready")

    def encode(self, text: str) -> list[int]:
        """See Runtime."""
        found: list[int] = self._call(f"encode({json.dumps(text)})")
        return found

    def reset(self) -> None:
        """See Runtime."""
        self._call("reset()")

    def read(self, ids: Sequence[int]) -> Scores:
        """See Runtime."""
        parts = self._call(f"read({json.dumps([int(token) for token in ids])})")
        scores = np.frombuffer(b"".join(map(base64.b64decode, parts)), np.float32)
        return scores.reshape(len(ids), -1)

    def close(self) -> None:
        """See Runtime."""
        self._browser.close()

    def _call(self, what: str) -> Any:
        return self._browser.evaluate(f"finetale.{what}")


class _Browser:
    """A browser without a window, with one page."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="finetale-", ignore_cleanup_errors=True)
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()  # Chromium has no sandbox for root
        # Chromium reads requests from 3 and writes answers to 4.
        swap = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'
        words = [program, *_OPTIONS, *root, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", swap, "sh", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout.fileno()
        self._number, self._session, self._unread = 0, "", bytearray()
        self.name = str(self._call("Browser.getVersion")["product"]).replace("/", " ")

    def visit(self, address: str) -> None:
        """Open a page and wait until it is loaded."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")
        if reason := self._call("Page.navigate", url=address).get("errorText"):
            self._fail(reason)
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, or of its promise."""
        found = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            self._fail(details.get("exception", {}).get("description") or details["text"])
        return found["result"].get("value")

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._profile.cleanup()

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        request: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        try:
            self._requests.write(json.dumps(request).encode() + b"\0")
            self._requests.flush()
        except BrokenPipeError:
            self._fail("it ended.")
        while (answer := self._message()).get("id") != self._number:
            pass
        if "error" in answer:
            self._fail(answer["error"]["message"])
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        """Return the next message: an answer or an event."""
        last = time.monotonic() + _SECONDS
        seen = 0
        while (end := self._unread.find(b"\0", seen)) < 0:
            seen = len(self._unread)
            if not select.select([self._answers], [], [], max(0, last - time.monotonic()))[0]:
                self._fail(f"it gave no answer in {_SECONDS} s.")
            data = os.read(self._answers, 1 << 20)
            if not data:
                self._fail("it ended.")
            self._unread += data
        message: dict[str, Any] = json.loads(self._unread[:end])
        del self._unread[: end + 1]
        return message

    def _fail(self, why: str) -> None:
        self.close()
        raise ModelError(f"The page failed in the browser: {why}", "Choose another format.")
