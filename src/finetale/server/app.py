"""The service over HTTP: OpenAI's completions API on Starlette. Knows nothing of how tokens are computed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, Template
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from finetale.errors import FinetaleError, RequestError
from finetale.server import openapi, wire
from finetale.server.completion import Completion, Piece, Vocabulary
from finetale.server.engines import Token
from finetale.server.guard import Answered, Guard, Limits
from finetale.server.meters import Meters
from finetale.server.worker import Ticket, Worker

Pieces = asyncio.Queue["Piece | Exception | None"]
_log = logging.getLogger("finetale.server")


@dataclass
class Served:
    """A model that is served under a name."""

    name: str
    vocabulary: Vocabulary
    worker: Worker
    created: int
    sha256: str = ""

    @property
    def described(self) -> str:
        """Its name and engine, for people."""
        return f"{self.name} ({self.worker.engine.name})"


class Service:
    """The routes, over some models."""

    def __init__(self, limits: Limits) -> None:
        self.models: dict[str, Served] = {}
        self.limits = limits
        self.loading = True
        self.draining = False
        self.meters = Meters()
        self._post = _Post()

    def add(self, model: Served) -> None:
        """Serve a model, in the place of one of that name."""
        worker = model.worker
        self.meters.watch(model.name, lambda: worker.waiting, lambda: worker.busy)
        self.models[model.name] = model

    def app(self) -> Guard:
        """The ASGI application, with everything that guards it around it."""
        routes = [
            Route("/", self.playground, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.describe, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.one_model, methods=["GET"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            RequestError: _refused,
            HTTPException: _no_route,
            ClientDisconnect: _gone,
            Exception: _failed,
        }
        return Guard(Starlette(routes=routes, exception_handlers=handlers), self.limits, self.tell)

    def tell(self, told: Answered) -> None:
        """Count and log one answer. Of the request it has the route alone: prompts are nobody's business."""
        self.meters.requests.labels(told.route, str(told.status)).inc()
        _log.info(
            "request",
            extra={
                "route": told.route,
                "status": told.status,
                "seconds": round(told.seconds, 4),
                "client": told.client,
            },
        )

    async def playground(self, request: Request) -> Response:
        """A page to try the models on. It loads nothing from elsewhere and can run nothing but its own script."""
        nonce = secrets.token_urlsafe(16)
        page = _page().render(models=list(self.models), nonce=nonce)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(page, headers=headers)

    async def health(self, request: Request) -> Response:
        """Whether the process answers at all."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether it takes requests."""
        if not all(model.worker.works for model in self.models.values()):
            return JSONResponse({"status": "failed"}, 503)
        if self.draining or self.loading:
            return JSONResponse({"status": "draining" if self.draining else "loading"}, 503)
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Everything that is counted, for Prometheus."""
        return Response(self.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def describe(self, request: Request) -> Response:
        """This service in OpenAPI."""
        return JSONResponse(openapi.document(list(self.models), needs_key=self.limits.key is not None))

    async def list_models(self, request: Request) -> Response:
        """Every model by its name."""
        return JSONResponse({"object": "list", "data": [_described(model) for model in self.models.values()]})

    async def one_model(self, request: Request) -> Response:
        """One model."""
        return JSONResponse(_described(self._model(request.path_params["name"])))

    async def completions(self, request: Request) -> Response:
        """Text that goes on from a prompt."""
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await request.body()
        except TimeoutError:
            raise RequestError("The body did not come in time.", status=408, code="timeout") from None
        asked = wire.read_completion(body)
        model = self._model(asked.model)
        wanted = len(asked.prompts) * asked.count
        if wanted > self.limits.most_samples:
            raise RequestError(
                f"{wanted:,} completions were asked for; a request may have {self.limits.most_samples}.",
                "n" if asked.count > 1 else "prompt",
            )
        completion = await run_in_threadpool(Completion, asked, model.vocabulary)
        name, created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        post = self._post
        post.open()
        pieces: Pieces = asyncio.Queue()
        whole: list[Piece] = []
        told_at: list[float] = [time.perf_counter()]
        meters = self.meters

        def tell(piece: Piece | Exception | None) -> None:
            now = time.perf_counter()
            if isinstance(piece, Piece) and len(told_at) == 1:
                meters.first_token.labels(model.name).observe(now - told_at[0])
                told_at.append(now)
            elif piece is None:
                made = completion.usage()
                meters.prompt_tokens.labels(model.name).inc(made["prompt_tokens"])
                meters.completion_tokens.labels(model.name).inc(made["completion_tokens"])
                if made["completion_tokens"] > asked.count and len(told_at) > 1:
                    longest = max(len(writer.job.tokens) for group in completion.groups for writer in group)
                    meters.each_token.labels(model.name).observe((now - told_at[1]) / max(1, longest - 1))
            if isinstance(piece, Piece) and not asked.stream:
                whole.append(piece)  # nobody waits for it alone
            else:
                post.put(pieces, piece)

        ticket = model.worker.submit(completion, _client(request), tell)
        if asked.stream:
            return StreamingResponse(
                _stream(model, ticket, pieces, name, created),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        try:
            ended = await _until_gone(request, pieces.get())
        finally:
            model.worker.cancel(ticket)
        if isinstance(ended, Exception):
            raise ended
        choices = _whole(completion, whole)
        return JSONResponse(wire.completion(name, created, asked.model, choices, completion.usage()))

    def _model(self, name: str) -> Served:
        if self.loading:
            raise RequestError("The models are being loaded.", status=503, kind="server_error", code="loading")
        if name not in self.models:
            raise RequestError(f"There is no model {name!r} here.", "model", status=404, code="model_not_found")
        return self.models[name]


class _Post:
    """Takes pieces from workers' threads to the loop, all that are there at each wake-up: one a step, not one a text."""

    def __init__(self) -> None:
        self._letters: deque[tuple[Pieces, Piece | Exception | None]] = deque()
        self._woken = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Deliver in the loop that runs now."""
        self._loop = asyncio.get_running_loop()

    def put(self, pieces: Pieces, piece: Piece | Exception | None) -> None:
        """From any thread."""
        self._letters.append((pieces, piece))
        if self._woken or self._loop is None:
            return
        self._woken = True
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: what is put from here on wakes the loop again
        while self._letters:
            pieces, piece = self._letters.popleft()
            pieces.put_nowait(piece)


@cache
def _page() -> Template:
    environment = Environment(loader=PackageLoader("finetale", "templates"), autoescape=True)
    return environment.get_template("playground.html.j2")


def _described(model: Served) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "finetale"}


def _client(request: Request) -> str:
    return request.scope.get("finetale.client") or (request.client.host if request.client else "")


async def _until_gone(request: Request, work: Any) -> Any:
    """Result of some work, unless the client leaves first.

    Raises:
        ClientDisconnect: nobody waits for the result any more.
    """

    async def gone() -> None:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                return

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def _whole(completion: Completion, found: Sequence[Piece]) -> list[dict[str, Any]]:
    """The choices of a request, from all their pieces; of best_of the likeliest a token."""
    asked = completion.request
    choices = []
    for number, group in enumerate(completion.groups):
        opening, told = completion.opening(group)
        writers = group
        if asked.count > (asked.n or 1):
            writers = sorted(group, key=lambda writer: -writer.logprob / max(1, len(writer.job.tokens)))[: asked.n or 1]
        for place, writer in enumerate(writers):
            mine = [piece for piece in found if piece.index == writer.index]
            text = opening + "".join(piece.text for piece in mine)
            logprobs = None
            if asked.logprobs is not None:
                written = [(token, at + len(opening)) for piece in mine for token, at in piece.tokens]
                logprobs = completion.logprobs([*told, *written])
            reason = mine[-1].finish_reason if mine else None
            choices.append(wire.choice(number * (asked.n or 1) + place, text, reason, logprobs))
    return choices


async def _stream(model: Served, ticket: Ticket, pieces: Pieces, name: str, created: int) -> AsyncIterator[bytes]:
    completion = ticket.completion
    asked = completion.request
    wants_usage = asked.stream_options is not None and asked.stream_options.include_usage
    openings: dict[int, int] = {}

    def chunk(choices: list[dict[str, Any]]) -> bytes:
        body = wire.completion(name, created, asked.model, choices, None)
        return wire.event(body | {"usage": None} if wants_usage else body)

    try:
        while True:
            piece = await pieces.get()
            if piece is None:
                break
            if isinstance(piece, Exception):
                yield wire.event(_error_of(piece)[1])
                break
            text = piece.text
            told: list[tuple[Token, int]] = []
            if piece.index not in openings:
                opening, told = completion.opening(completion.groups[piece.index // asked.count])
                text, openings[piece.index] = opening + text, len(opening)
            logprobs = None
            if asked.logprobs is not None:
                written = [(token, at + openings[piece.index]) for token, at in piece.tokens]
                logprobs = completion.logprobs([*told, *written])
            yield chunk([wire.choice(piece.index, text, piece.finish_reason, logprobs)])
        if piece is None and wants_usage:
            yield wire.event(wire.completion(name, created, asked.model, [], completion.usage()))
        yield wire.DONE
    finally:
        model.worker.cancel(ticket)


def _error_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    if isinstance(error, RequestError):
        return error.status, wire.error_body(error.message, error.kind, error.parameter, error.code)
    if isinstance(error, FinetaleError):
        return 500, wire.error_body(error.message, "server_error", None, None)
    return 500, wire.error_body("Something failed here; the service's log says what.", "server_error", None, None)


async def _refused(request: Request, error: Exception) -> Response:
    status, body = _error_of(error)
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(body, status, headers)


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody waits for this; the status is for the log."""
    return Response(status_code=499)


async def _failed(request: Request, error: Exception) -> Response:
    status, body = _error_of(error)
    return JSONResponse(body, status)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: f"There is nothing at {request.url.path}.", 405: f"{request.method} is not for {request.url.path}."}
    message = what.get(error.status_code, error.detail)
    body = wire.error_body(message, "invalid_request_error", None, None)
    return JSONResponse(body, error.status_code, error.headers)
