"""vLLM behind Finetale's limits: its own server, in its own environment, reached through this one alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from finetale.errors import ConfigError, ModelError, RequestError
from finetale.models import Provenance
from finetale.server import wire
from finetale.server.access import QUEUE_FULL
from finetale.server.answer import EventStream
from finetale.server.completion import Vocabulary

COMMAND = "FINETALE_VLLM"
"""Environment variable that names the command, where it is not on the PATH."""
_STARTING_SECONDS, _ENDING_SECONDS = 1800.0, 5.0
_JSON = {"Content-Type": "application/json"}
_running: set[Upstream] = set()


@dataclass(eq=False)
class Upstream:
    """A model that vLLM serves.

    Attributes:
        most: requests at a time, those that wait included.
    """

    name: str
    process: subprocess.Popen[bytes]
    url: str
    key: str
    vocabulary: Vocabulary
    most: int
    created: int
    provenance: Provenance
    asked: int = 0
    described: str = field(init=False)
    _client: httpx2.AsyncClient | None = None

    def __post_init__(self) -> None:
        self.described = f"{self.name} (vllm)"

    @property
    def authorization(self) -> dict[str, str]:
        """The header that lets in."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def works(self) -> bool:
        """Whether its process is alive."""
        return self.process.poll() is None

    @property
    def waiting(self) -> int:
        """Requests that wait; vLLM's own metrics know more."""
        return 0

    @property
    def busy(self) -> int:
        """Requests that it has."""
        return self.asked

    def is_full(self, client: str = "") -> bool:
        """Whether everybody has to come again later."""
        return self.asked >= self.most

    def expire(self) -> None:
        """There is no more time: whoever waits is told so by the end of the process."""
        self._signal(signal.SIGTERM)

    def close(self, seconds: float | None) -> None:
        """End its process and those it has started; without a number of seconds once nobody waits for it any more."""
        while seconds is None and self.asked and self.works:
            time.sleep(0.05)
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_ENDING_SECONDS if seconds is None else seconds)
        # Those that it has started hold the GPU's memory, and may outlast it.
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self.process.wait()
        _running.discard(self)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):  # it leads a session of its own
                os.killpg(self.process.pid, number)
            else:
                self.process.terminate()

    async def answer(
        self, route: str, asked: wire.CompletionRequest | wire.ChatRequest, seconds: float = 600.0
    ) -> Response:
        """Its answer to a request that has been checked, within some seconds.

        Raises:
            RequestError: there is no room, or vLLM refuses it or does not answer.
        """
        if self.is_full():
            raise RequestError(QUEUE_FULL[0], status=429, kind="rate_limit_error", code=QUEUE_FULL[1])
        if self._client is None:
            limits = httpx2.Limits(max_connections=self.most, max_keepalive_connections=self.most)
            self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(30, read=None), limits=limits, trust_env=False)
        ends = time.monotonic() + seconds
        self.asked += 1
        answer = None
        try:
            async with asyncio.timeout(seconds):
                body = await run_in_threadpool(self._body, asked)
                request = self._client.build_request(
                    "POST", self.url + route, content=body, headers=self.authorization | _JSON
                )
                answer = await self._client.send(request, stream=True)
                if answer.status_code != 200:
                    raise _refusal(answer.status_code, await answer.aread())
                if not asked.stream:
                    return JSONResponse(json.loads(await answer.aread()))
            held, answer = answer, None
            self.asked += 1
            return EventStream(_through(held, ends), partial(self._end, held))
        except TimeoutError:
            message = f"The answer was not done within {seconds:g} seconds."
            raise RequestError(message, status=504, kind="server_error", code="timeout") from None
        except httpx2.HTTPError as error:
            raise RequestError(f"vLLM does not answer: {error}.", status=503, kind="server_error") from None
        finally:
            self.asked -= 1
            if answer is not None:
                await answer.aclose()

    async def _end(self, answer: httpx2.Response) -> None:
        self.asked -= 1
        await answer.aclose()

    def _body(self, asked: wire.CompletionRequest | wire.ChatRequest) -> bytes:
        body = asked.model_dump(exclude_unset=True)
        if isinstance(asked, wire.CompletionRequest):
            body["max_tokens"] = asked.wanted
        if isinstance(asked, wire.CompletionRequest) and not asked.echo and isinstance(asked.prompts[0], str):
            # A text begins a document, as for every engine; vLLM would read it as the middle of one.
            body["prompt"] = [[self.vocabulary.begin, *ids] for ids in self.vocabulary.encode(asked.prompts)]
        return json.dumps(body).encode()


def start(
    name: str,
    folder: Path,
    vocabulary: Vocabulary,
    *,
    slots: int,
    most_waiting: int,
    provenance: Provenance,
) -> Upstream:
    """Start an installed vLLM on a model's folder, and wait until it answers.

    Raises:
        ConfigError: it is not installed.
        ModelError: it ends before it answers.
    """
    command = os.environ.get(COMMAND) or shutil.which("vllm")
    if command is None or shutil.which(command) is None:
        raise ConfigError(
            "vLLM is not installed." if command is None else f"{COMMAND} names {command}, which is no command.",
            "It needs an environment of its own: python -m venv vllm; vllm/bin/pip install vllm; "
            f"then {COMMAND}=vllm/bin/vllm finetale serve MODEL --engine vllm.",
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = secrets.token_urlsafe(24)
    # Its own packages, not ours.
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = ["serve", str(folder), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [command, *words, "--max-num-seqs", str(slots)],
        env=inherited | {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        start_new_session=True,  # Ctrl-C is for us, who let it finish what it has begun
    )
    upstream = Upstream(
        name,
        process,
        f"http://127.0.0.1:{port}",
        key,
        vocabulary,
        slots + most_waiting,
        int(time.time()),
        provenance,
    )
    _running.add(upstream)
    began = time.monotonic()
    try:
        while True:
            if time.monotonic() - began > _STARTING_SECONDS:
                raise ModelError(
                    f"vLLM did not answer within {_STARTING_SECONDS / 60:.0f} minutes.", "What it wrote stands above."
                )
            if not upstream.works:
                raise ModelError(
                    f"vLLM ended with status {process.returncode} before it answered.", "What it wrote stands above."
                )
            with contextlib.suppress(httpx2.HTTPError, ValueError, KeyError, TypeError):
                listed = httpx2.get(
                    f"{upstream.url}/v1/models", headers=upstream.authorization, timeout=5, trust_env=False
                ).json()
                if any(model["id"] == name for model in listed["data"]):
                    return upstream
            time.sleep(0.2)
    except BaseException:
        upstream.close(5)
        raise


async def _through(answer: httpx2.Response, ends: float) -> AsyncIterator[bytes]:
    """The events of a stream as they come; one that breaks off says so."""
    pieces, end = answer.aiter_bytes(), b""
    try:
        while True:
            data = await asyncio.wait_for(anext(pieces), max(0.0, ends - time.monotonic()))
            end = (end + data)[-len(wire.DONE) :]
            yield data
    except StopAsyncIteration:
        broken = "vLLM has broken off." if end != wire.DONE else ""
    except TimeoutError:
        broken = "The answer was not done in time."
    except httpx2.HTTPError as error:
        broken = f"vLLM does not answer: {error}."
    if broken:
        yield b"\n\n" + wire.event(wire.error_body(broken, "server_error", None, None)) + wire.DONE


def close_all() -> None:
    """End what was started and is not served, as while a newer model is being opened."""
    for upstream in list(_running):
        upstream.close(_ENDING_SECONDS)


def _refusal(status: int, body: bytes) -> RequestError:
    """vLLM's error in our shape."""
    try:
        found = json.loads(body)
        found = found.get("error", found)
        message, parameter, code = str(found["message"]), found.get("param"), found.get("code")
    except (ValueError, KeyError, AttributeError):
        message, parameter, code = f"vLLM answers with status {status}.", None, None
    return RequestError(
        message,
        parameter if isinstance(parameter, str) else None,
        status=status,
        code=code if isinstance(code, str) else None,
    )
