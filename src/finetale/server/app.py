"""The HTTP routes: OpenAI's completions APIs on Starlette. Knows nothing of how tokens are computed."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import torch
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from finetale.errors import RequestError
from finetale.server import ollama_routes, openapi, playground, responses_routes, wire
from finetale.server.access import Answered, App, Guard, Limits
from finetale.server.answer import Answer, EventStream, Post, Served, error_of
from finetale.server.completion import Completion
from finetale.server.embeddings import EmbeddingsRequest, embed, width_of
from finetale.server.meters import Meters
from finetale.server.token_routes import DetokenizeRequest, TokenizeRequest
from finetale.server.tools import Calls
from finetale.server.vllm import Upstream
from finetale.server.wire import ChatRequest, CompletionRequest

T = TypeVar("T")
_log = logging.getLogger("finetale.server")
_SHORT = 4096
"""Bodies of at most this many bytes, and prompts of as many characters or ids, are parsed in the event loop; longer
ones go to a thread, because they would delay other requests."""
_PROBES = ("/health", "/ready", "/metrics")
_MAX_TOKENIZING = 2
"""Number of long prompts to tokenize at the same time; each takes memory."""


class Service:
    """The routes and the models that they serve."""

    def __init__(self, limits: Limits) -> None:
        self.models: dict[str, Served | Upstream] = {}
        self.parents: dict[str, str] = {}  # name of a model → name of its base
        self.limits = limits
        self.loading = True
        self.draining = False
        self.meters = Meters()
        self._post = Post()
        self._tokenizers = CapacityLimiter(_MAX_TOKENIZING)
        self._embedding = CapacityLimiter(1)

    def add(self, model: Served | Upstream) -> None:
        """Serve a model. It replaces a model of the same name."""
        self.meters.watch(model.name, lambda: model.waiting, lambda: model.busy, lambda: model.kv_bytes)
        if isinstance(model, Served):
            self.meters.compared(model.name, model.worker.engine.rates)
        self.models[model.name] = model

    def app(self) -> App:
        """Return the ASGI application with its access control."""
        routes = [
            Route("/", self.playground, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.describe, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.one_model, methods=["GET"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            responses_routes.route(self),
            *ollama_routes.routes(self),
        ]
        handlers: dict[Any, Any] = {
            RequestError: _rejected,
            HTTPException: _no_route,
            ClientDisconnect: _disconnected,
            Exception: _failed,
        }
        guarded = Guard(
            Starlette(routes=routes, exception_handlers=handlers), self.limits, self.on_answered, self.is_full
        )
        if not self.limits.origins:
            return guarded
        # Outside the guard, because browsers send preflight requests without a key.
        return CORSMiddleware(
            guarded, allow_origins=list(self.limits.origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )

    def is_full(self, client: str) -> bool:
        """Return whether the queues of all models are full for a client."""
        return bool(self.models) and all(model.is_full(client) for model in self.models.values())

    def expire(self) -> None:
        """End all unfinished requests with an error."""
        for model in self.models.values():
            model.expire()

    def on_answered(self, answered: Answered) -> None:
        """Count and log a response. The log has the route only, never a prompt."""
        self.meters.requests.labels(answered.route, str(answered.status)).inc()
        if answered.route in _PROBES and answered.status < 400:
            return  # probes come every few seconds
        _log.info(
            "request",
            extra={
                "method": answered.method,
                "route": answered.route,
                "status": answered.status,
                "seconds": round(answered.seconds, 4),
                "client": answered.client,
            },
        )

    async def playground(self, request: Request) -> Response:
        """Return the page for trying the models."""
        page, policy = playground.page(list(self.models), secrets.token_urlsafe(16))
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(page, headers=headers)

    async def health(self, request: Request) -> Response:
        """Report that the process is alive."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Report whether the service takes requests."""
        if not all(model.works for model in self.models.values()):
            return JSONResponse({"status": "failed"}, 503)
        if self.draining or self.loading:
            return JSONResponse({"status": "draining" if self.draining else "loading"}, 503)
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Return the metrics for Prometheus."""
        return Response(self.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def describe(self, request: Request) -> Response:
        """Return the OpenAPI document."""
        return JSONResponse(openapi.document(list(self.models), needs_key=self.limits.key is not None))

    async def list_models(self, request: Request) -> Response:
        """List the models."""
        return JSONResponse({"object": "list", "data": [self._described(model) for model in self.models.values()]})

    async def one_model(self, request: Request) -> Response:
        """Describe one model."""
        return JSONResponse(self._described(self.model(request.path_params["name"])))

    def _described(self, model: Served | Upstream) -> dict[str, Any]:
        """Return a model as /v1/models lists it. The names beyond OpenAI's are vLLM's, but for the last two."""
        host = model.host if isinstance(model, Served) else None
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "finetale",
            "max_model_len": model.vocabulary.context,
            "parent": self.parents.get(model.name),
            "chat": bool(model.vocabulary.chat_template),
            "embeddings": None if host is None else {"pooling": "mean", "dimensions": width_of(host)},
        }

    async def completions(self, request: Request) -> Response:
        """Complete prompts."""
        asked = await self.read(CompletionRequest, request)
        return await self.complete(request, asked, wire.TEXT)

    async def chat(self, request: Request) -> Response:
        """Generate the next message of a conversation with the model's chat template."""
        return await self.converse(request, await self.read(ChatRequest, request))

    async def converse(self, request: Request, chat: ChatRequest) -> Response:
        """Return the response to a chat request."""
        model = self.model(chat.model)
        if isinstance(model, Upstream):
            self._limit(chat.n or 1, "n")
            return await _until_disconnect(
                request, model.answer("/v1/chat/completions", chat, self.limits.request_seconds)
            )
        messages = [message.plain() for message in chat.messages]
        vocabulary = model.vocabulary
        calls = Calls(
            chat, vocabulary.chat_template, has_form=chat.form() is not None, is_special=vocabulary.is_special
        )
        ids = await self._tokenized(
            partial(vocabulary.encode_chat, messages, calls.tools, chat.template_options()), model
        )
        return await self.complete(request, chat.completion(ids), calls.shape, calls)

    async def tokenize(self, request: Request) -> Response:
        """Return the token ids of a prompt or a conversation."""
        asked = await self.read(TokenizeRequest, request)
        return JSONResponse(await self._in_thread(partial(asked.answer, self.model(asked.model).vocabulary)))

    async def detokenize(self, request: Request) -> Response:
        """Return the text of token ids."""
        asked = await self.read(DetokenizeRequest, request)
        return JSONResponse(await self._in_thread(partial(asked.answer, self.model(asked.model).vocabulary)))

    async def embeddings(self, request: Request) -> Response:
        """Return the embeddings of texts."""
        return JSONResponse(await self.embedded(request, await self.read(EmbeddingsRequest, request)))

    async def embedded(self, request: Request, asked: EmbeddingsRequest) -> dict[str, Any]:
        """Return the body of embeddings. Requests take turns text by text, beside running completions."""
        model = self.model(asked.model)
        if isinstance(model, Upstream) or model.host is None:
            raise RequestError(
                f"The engine of {model.name} gives no embeddings. Serve it with --engine torch.",
                "model",
                code="no_embeddings",
            )
        host, adapter, width = model.host, model.adapter, width_of(model.host)
        if asked.dimensions not in (None, width):
            raise RequestError(
                f"dimensions: can't be changed; embeddings of {model.name} have {width:,} numbers.", "dimensions"
            )
        model.worker.check(_client(request))
        cancelled = threading.Event()

        async def texts() -> list[Tensor]:
            each = [partial(embed, host, text, adapter, cancelled) for text in ids]
            return [await to_thread.run_sync(work, limiter=self._embedding) for work in each]

        try:
            async with asyncio.timeout(self.limits.request_seconds):
                ids = await self._tokenized(partial(asked.encoded, model.vocabulary), model)
                with model.worker.preparing():
                    found = await _until_disconnect(request, texts())
        except TimeoutError:
            message = f"The response was not ready within {self.limits.request_seconds:g} seconds."
            raise RequestError(message, status=504, kind="server_error", code="timeout") from None
        finally:
            cancelled.set()
        num_tokens = sum(map(len, ids))
        self.meters.prompt_tokens.labels(model.name).inc(num_tokens)
        return await self._in_thread(partial(asked.body, torch.stack(found), num_tokens))

    async def _in_thread(self, make: Callable[[], T]) -> T:
        """Return the result of a function that tokenizes. Few run at a time."""
        return await to_thread.run_sync(make, limiter=self._tokenizers)

    async def read(self, kind: type[wire.Body], request: Request) -> wire.Body:
        """Return the body of a request, validated."""
        body = await self._body(request)
        return wire.read(kind, body) if len(body) <= _SHORT else await run_in_threadpool(wire.read, kind, body)

    async def _body(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                return await request.body()
        except TimeoutError:
            raise RequestError("The body was not received in time.", status=408, code="timeout") from None

    def _limit(self, wanted: int, parameter: str) -> None:
        if wanted > self.limits.max_samples:
            raise RequestError(
                f"The request asks for {wanted:,} completions; the maximum is {self.limits.max_samples}.", parameter
            )

    async def complete(
        self, request: Request, asked: CompletionRequest, shape: wire.Shape, calls: Calls | None = None
    ) -> Response:
        """Return the response to a completion request.

        Args:
            request: the request, whose client may disconnect.
            asked: its body.
            shape: the form of the response.
            calls: what the tools of a chat request mean; None for a request that is not a chat.
        """
        model = self.model(asked.model)
        self._limit(len(asked.prompts) * asked.count, "n" if asked.count > 1 else "prompt")
        if isinstance(model, Upstream):
            return await _until_disconnect(request, model.answer("/v1/completions", asked, self.limits.request_seconds))
        self._post.open()
        answer = await self._submitted(asked, shape, model, _client(request), calls)
        if asked.stream:
            return EventStream(answer.stream(), answer.cancel)
        try:
            return JSONResponse(await _until_disconnect(request, answer.whole()))
        finally:
            await answer.cancel()

    async def _submitted(
        self, asked: CompletionRequest, shape: wire.Shape, model: Served, client: str, calls: Calls | None
    ) -> Answer:
        """Queue a request at a model, or at its successor if the model was just replaced."""
        try:
            model.worker.check(client)  # before any work is done for the request
            form = asked.form() if calls is None or calls.form is None else calls.form
            make = partial(
                Completion,
                asked,
                model.vocabulary,
                fills=calls is not None,
                form=form,
                adapter=model.adapter,
                keeps_special=calls is not None and calls.keeps_special,
            )
            is_quick = asked.size <= _SHORT and form is None
            completion = make() if is_quick else await self._tokenized(make, model)
            answer = Answer(completion, shape, model, self.meters, self._post, self.limits.request_seconds)
            answer.submit(client)
        except RequestError as error:
            newer = self.models.get(model.name)
            if error.code != "draining" or self.draining or newer is model or not isinstance(newer, Served):
                raise
            return await self._submitted(asked, shape, newer, client, calls)
        return answer

    async def _tokenized(self, make: Callable[[], T], model: Served) -> T:
        """Return the result of a function that tokenizes. Few run at a time, and those that wait are in the queue."""
        with model.worker.preparing():
            return await self._in_thread(make)

    def model(self, name: str) -> Served | Upstream:
        """Return the model of a name.

        Raises:
            RequestError: there is none, or the models are still loading.
        """
        if self.loading:
            raise RequestError("The models are still loading.", status=503, kind="server_error", code="loading")
        if name not in self.models:
            names = ", ".join(self.models)
            message = f"The model {name!r} does not exist. Available models: {names}."
            raise RequestError(message, "model", status=404, code="model_not_found")
        return self.models[name]


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


async def _until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`, or cancel it if the client disconnects first.

    Raises:
        ClientDisconnect: the client disconnected.
    """

    async def disconnect() -> None:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                return

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _rejected(request: Request, error: Exception) -> Response:
    status, body = error_of(error)
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(body, status, headers)


async def _disconnected(request: Request, error: Exception) -> Response:
    """Return a status for the log; the client has disconnected."""
    return Response(status_code=499)


async def _failed(request: Request, error: Exception) -> Response:
    status, body = error_of(error)
    return JSONResponse(body, status)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {
        404: f"There is no route {request.url.path}.",
        405: f"{request.method} is not allowed for {request.url.path}.",
    }
    message = what.get(error.status_code, error.detail)
    body = wire.error_body(message, "invalid_request_error", None, None)
    return JSONResponse(body, error.status_code, error.headers)
