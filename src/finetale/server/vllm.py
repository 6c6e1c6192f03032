"""vLLM as an engine: its own server in its own environment, reachable only through this service and its limits."""

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from finetale.errors import ConfigError, ModelError, RequestError
from finetale.models import Provenance, adapters
from finetale.server import wire
from finetale.server.access import QUEUE_FULL
from finetale.server.answer import EventStream
from finetale.server.completion import Vocabulary

COMMAND = "FINETALE_VLLM"
"""Environment variable with vLLM's command, if it is not on the PATH."""
_STARTING_SECONDS, _ENDING_SECONDS = 1800.0, 5.0
_JSON = {"Content-Type": "application/json"}
_STRUCTURED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_whitespace_pattern": "whitespace_pattern",
}
"""Older names of vLLM's parameters → their names in `structured_outputs`."""
_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Values of `--max-lora-rank` that vLLM accepts, without the unusual ones."""
_running: set[VllmProcess] = set()


@dataclass(frozen=True)
class UpstreamAdapter:
    """An adapter to start vLLM with.

    Attributes:
        name: its name in requests.
        folder: its folder, in PEFT's layout.
        rank: rank of its matrices.
        sha256: SHA-256 of its base with it.
    """

    name: str
    folder: Path
    rank: int
    sha256: str


@dataclass(eq=False)
class VllmProcess:
    """A vLLM process.

    Attributes:
        process: the process.
        url: its address.
        key: its API key.
        most: maximum number of requests, waiting ones included.
        adapters: the adapters that it was started with.
        asked: number of current requests.
    """

    process: subprocess.Popen[bytes]
    url: str
    key: str
    most: int
    adapters: tuple[UpstreamAdapter, ...] = ()
    asked: int = 0
    _client: httpx2.AsyncClient | None = None

    @property
    def authorization(self) -> dict[str, str]:
        """The authorization header."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def works(self) -> bool:
        """Whether the process is alive."""
        return self.process.poll() is None

    @property
    def client(self) -> httpx2.AsyncClient:
        """The HTTP client for its requests."""
        if self._client is None:
            limits = httpx2.Limits(max_connections=self.most, max_keepalive_connections=self.most)
            self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(30, read=None), limits=limits, trust_env=False)
        return self._client

    def close(self, seconds: float | None) -> None:
        """End the process and its children; see Upstream."""
        while seconds is None and self.asked and self.works:
            time.sleep(0.05)
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_ENDING_SECONDS if seconds is None else seconds)
        # Its child processes hold the GPU's memory and may outlive it.
        self.signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self.process.wait()
        _running.discard(self)

    def signal(self, number: int) -> None:
        """Send a signal to the process and its children."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):  # it leads its own process group
                os.killpg(self.process.pid, number)
            else:
                self.process.terminate()


@dataclass(eq=False)
class Upstream:
    """A model served by a vLLM process. Adapters share the process of their base.

    Attributes:
        name: name of the model in requests.
        backend: the vLLM process.
        vocabulary: the model's vocabulary.
        created: when it was opened, in seconds since 1970.
        provenance: where the model came from.
        is_adapter: whether it is an adapter.
        asked: number of current requests for this model.
    """

    name: str
    backend: VllmProcess
    vocabulary: Vocabulary
    created: int
    provenance: Provenance
    is_adapter: bool = False
    asked: int = 0

    @property
    def described(self) -> str:
        """Name and engine, for people."""
        return f"{self.name} (vllm, adapter)" if self.is_adapter else f"{self.name} (vllm)"

    @property
    def works(self) -> bool:
        """Whether the process is alive."""
        return self.backend.works

    @property
    def waiting(self) -> int:
        """Always 0: only vLLM's own metrics know how many requests wait."""
        return 0

    @property
    def kv_bytes(self) -> int:
        """Always 0: only vLLM's own metrics know its memory."""
        return 0

    @property
    def busy(self) -> int:
        """Number of current requests."""
        return self.asked

    def is_full(self, client: str = "") -> bool:
        """Return whether no further request is accepted."""
        return self.backend.asked >= self.backend.most

    def expire(self) -> None:
        """End the process; waiting clients get an error."""
        self.backend.signal(signal.SIGTERM)

    def close(self, seconds: float | None) -> None:
        """End the process and its children.

        Args:
            seconds: how long to wait for the process to end before it is killed. None: first wait for all requests.
        """
        self.backend.close(seconds)

    async def answer(
        self, route: str, asked: wire.CompletionRequest | wire.ChatRequest, seconds: float = 600.0
    ) -> Response:
        """Forward a validated request to vLLM and return its response.

        Args:
            route: path of the route.
            asked: the request.
            seconds: time limit.

        Raises:
            RequestError: too many requests, or vLLM rejects the request or does not respond in time.
        """
        if self.is_full():
            raise RequestError(QUEUE_FULL[0], status=429, kind="rate_limit_error", code=QUEUE_FULL[1])
        backend = self.backend
        ends = time.monotonic() + seconds
        self._count(1)
        answer = None
        try:
            async with asyncio.timeout(seconds):
                body = await run_in_threadpool(self._body, asked)
                request = backend.client.build_request(
                    "POST", backend.url + route, content=body, headers=backend.authorization | _JSON
                )
                answer = await backend.client.send(request, stream=True)
                if answer.status_code != 200:
                    raise _refusal(answer.status_code, await answer.aread())
                if not asked.stream:
                    return JSONResponse(json.loads(await answer.aread()))
            held, answer = answer, None
            self._count(1)
            return EventStream(_relay(held, ends), partial(self._end, held))
        except TimeoutError:
            message = f"The response was not ready within {seconds:g} seconds."
            raise RequestError(message, status=504, kind="server_error", code="timeout") from None
        except httpx2.HTTPError as error:
            raise RequestError(f"vLLM does not respond: {error}.", status=503, kind="server_error") from None
        finally:
            self._count(-1)
            if answer is not None:
                await answer.aclose()

    async def _end(self, answer: httpx2.Response) -> None:
        self._count(-1)
        await answer.aclose()

    def _count(self, change: int) -> None:
        self.asked += change
        self.backend.asked += change

    def _body(self, asked: wire.CompletionRequest | wire.ChatRequest) -> bytes:
        body = asked.model_dump(exclude_unset=True, by_alias=True)
        for name in [
            name for name in body if name.startswith("guided_")
        ]:  # newer versions know only the other spelling
            value = body.pop(name)
            if value is not None and name in _STRUCTURED:
                body.setdefault("structured_outputs", {})[_STRUCTURED[name]] = value
        if isinstance(asked, wire.CompletionRequest):
            body["max_tokens"] = asked.wanted
        if isinstance(asked, wire.CompletionRequest) and not asked.echo and isinstance(asked.prompts[0], str):
            # vLLM would omit the beginning-of-text that the model was trained with.
            body["prompt"] = [self.vocabulary.with_lead(ids) for ids in self.vocabulary.encode(asked.prompts)]
        return json.dumps(body).encode()


def start(
    name: str,
    folder: Path,
    vocabulary: Vocabulary,
    *,
    slots: int,
    max_waiting: int,
    provenance: Provenance,
    chat_template: Path | None = None,
    beside: tuple[UpstreamAdapter, ...] = (),
) -> Upstream:
    """Start vLLM on a model's folder, with its adapters, and wait until it responds.

    Args:
        name: name of the model in requests.
        folder: its folder.
        vocabulary: its vocabulary.
        slots: maximum number of completions at a time.
        max_waiting: maximum number of waiting requests.
        provenance: where the model came from.
        chat_template: file with a chat template; None for the model's own.
        beside: adapters to serve with it.

    Raises:
        ConfigError: vLLM is not installed.
        ModelError: vLLM exits or the time limit passes before it responds.
    """
    command = os.environ.get(COMMAND) or shutil.which("vllm")
    if command is None or shutil.which(command) is None:
        raise ConfigError(
            "vLLM is not installed." if command is None else f"{COMMAND} names {command}, which is not a command.",
            "Install it in its own environment: python -m venv vllm; vllm/bin/pip install vllm; "
            f"then {COMMAND}=vllm/bin/vllm finetale serve MODEL --engine vllm.",
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = secrets.token_urlsafe(24)
    # vLLM must find its own packages, not ours.
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = ["serve", str(folder), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    template = [] if chat_template is None else ["--chat-template", str(chat_template.expanduser().resolve())]
    process = subprocess.Popen(
        [command, *words, "--max-num-seqs", str(slots), *template, *_words_of(beside)],
        env=inherited | {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        start_new_session=True,  # Ctrl-C must reach only this process, which shuts vLLM down
    )
    backend = VllmProcess(process, f"http://127.0.0.1:{port}", key, slots + max_waiting, beside)
    upstream = Upstream(name, backend, vocabulary, int(time.time()), provenance)
    _running.add(backend)
    began = time.monotonic()
    try:
        while True:
            if time.monotonic() - began > _STARTING_SECONDS:
                raise ModelError(
                    f"vLLM did not respond within {_STARTING_SECONDS / 60:.0f} minutes.", "See its output above."
                )
            if not upstream.works:
                raise ModelError(
                    f"vLLM exited with status {process.returncode} before it was ready.", "See its output above."
                )
            with contextlib.suppress(httpx2.HTTPError, ValueError, KeyError, TypeError):
                listed = httpx2.get(
                    f"{backend.url}/v1/models", headers=backend.authorization, timeout=5, trust_env=False
                ).json()
                if any(model["id"] == name for model in listed["data"]):
                    return upstream
            time.sleep(0.2)
    except BaseException:
        upstream.close(5)
        raise


def upstream_adapter(name: str, folder: Path, fit: adapters.Fit, sha256: str) -> UpstreamAdapter:
    """Return an adapter for vLLM.

    Raises:
        ModelError: vLLM does not run adapters of this kind or rank.
    """
    if fit.is_dora:
        raise ModelError(
            f"The engine vllm can't serve the adapter {name}: it is a DoRA adapter, and vLLM supports LoRA only.",
            "Choose --engine torch, or serve the merged model with --also.",
        )
    if fit.rank > _RANKS[-1]:
        raise ModelError(
            f"The engine vllm can't serve the adapter {name}: its rank is {fit.rank:,}, more than {_RANKS[-1]}.",
            "Choose --engine torch, or serve the merged model with --also.",
        )
    return UpstreamAdapter(name, folder, fit.rank, sha256)


def _words_of(chosen: tuple[UpstreamAdapter, ...]) -> list[str]:
    """Return vLLM's arguments for adapters."""
    if not chosen:
        return []
    largest = max(adapter.rank for adapter in chosen)
    rank = next(rank for rank in _RANKS if rank >= largest)
    modules = [f"{adapter.name}={adapter.folder.resolve()}" for adapter in chosen]
    options = ["--enable-lora", "--max-loras", str(len(chosen)), "--max-lora-rank", str(rank)]
    return [*options, "--lora-modules", *modules]


async def _relay(answer: httpx2.Response, ends: float) -> AsyncIterator[bytes]:
    """Yield the events of a stream; end an incomplete one with an error event."""
    pieces, end = answer.aiter_bytes(), b""
    try:
        while True:
            data = await asyncio.wait_for(anext(pieces), max(0.0, ends - time.monotonic()))
            end = (end + data)[-len(wire.DONE) :]
            yield data
    except StopAsyncIteration:
        broken = "vLLM ended the stream early." if end != wire.DONE else ""
    except TimeoutError:
        broken = "The response was not ready in time."
    except httpx2.HTTPError as error:
        broken = f"vLLM does not respond: {error}."
    if broken:
        yield b"\n\n" + wire.event(wire.error_body(broken, "server_error", None, None)) + wire.DONE


def close_all() -> None:
    """End all vLLM processes, including those that are still loading."""
    for process in list(_running):
        process.close(_ENDING_SECONDS)


def _refusal(status: int, body: bytes) -> RequestError:
    """Convert an error of vLLM."""
    try:
        found = json.loads(body)
        found = found.get("error", found)
        message, parameter, code = str(found["message"]), found.get("param"), found.get("code")
    except (ValueError, KeyError, AttributeError):
        message, parameter, code = f"vLLM responded with status {status}.", None, None
    return RequestError(
        message,
        parameter if isinstance(parameter, str) else None,
        status=status,
        code=code if isinstance(code, str) else None,
    )
