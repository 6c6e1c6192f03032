"""The routes of Ollama's API. Knows no engine; `ollama` converts the bodies."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import finetale
from finetale.errors import RequestError
from finetale.server import ollama, wire
from finetale.server.answer import EventStream
from finetale.server.embeddings import EmbeddingsRequest
from finetale.server.messages import ToolParameters
from finetale.server.tools import Calls, notation_of
from finetale.server.vllm import Upstream

if TYPE_CHECKING:
    from finetale.server.answer import Served
    from finetale.server.app import Service

PATHS = ("/api/version", "/api/tags", "/api/ps", "/api/show", "/api/chat", "/api/generate", "/api/embed")
_UPSTREAM_TOKENS = 128
"""Default `num_predict` for vLLM, which does not fill the context."""
_Handler = Callable[[Request], Awaitable[Response]]


def routes(service: Service) -> list[Route]:
    """Return the routes."""
    found = OllamaRoutes(service)
    handlers = (found.version, found.tags, found.running, found.show, found.chat, found.generate, found.embed)
    return [
        Route(path, _with_errors(handler), methods=["POST" if place > 2 else "GET"])
        for place, (path, handler) in enumerate(zip(PATHS, handlers, strict=True))
    ]


class OllamaRoutes:
    """The handlers.

    Args:
        service: the service with the models.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def version(self, request: Request) -> Response:
        """Return the version."""
        return JSONResponse({"version": finetale.__version__})

    async def tags(self, request: Request) -> Response:
        """List the models."""
        return JSONResponse({"models": [_entry(model) for model in self._service.models.values()]})

    async def running(self, request: Request) -> Response:
        """List the models in memory: all."""
        models = [
            _entry(model) | {"size_vram": 0, "context_length": model.vocabulary.context}
            for model in self._service.models.values()
        ]
        return JSONResponse({"models": models})

    async def show(self, request: Request) -> Response:
        """Describe a model."""
        asked = await self._service.read(ollama.ShowRequest, request)
        model = self._model(asked.model or asked.name or "")
        template = model.vocabulary.chat_template
        body = ollama.shown(
            template, model.vocabulary.context, _parameters(model), calls_tools=notation_of(template) is not None
        )
        return JSONResponse(body)

    async def chat(self, request: Request) -> Response:
        """Generate the next message of a conversation."""
        asked = await self._service.read(ollama.ChatRequest, request)
        model = self._model(asked.model)
        reply = ollama.Reply(asked.model, chats=True)
        if not asked.messages:  # how clients load a model
            return JSONResponse(reply.loaded())
        chat = wire.valid(wire.ChatRequest, asked.converted() | {"model": model.name})
        return _answered(reply, await self._service.converse(request, chat))

    async def generate(self, request: Request) -> Response:
        """Continue a text, or answer it if the model has a chat template."""
        asked = await self._service.read(ollama.GenerateRequest, request)
        model = self._model(asked.model)
        reply = ollama.Reply(asked.model, chats=False)
        if not asked.prompt:
            return JSONResponse(reply.loaded())
        chats = bool(model.vocabulary.chat_template) and not asked.raw
        body = asked.converted(chats=chats) | {"model": model.name}
        if chats:
            return _answered(reply, await self._service.converse(request, wire.valid(wire.ChatRequest, body)))
        default = _UPSTREAM_TOKENS if isinstance(model, Upstream) else None
        completion = wire.valid(wire.CompletionRequest, {"max_tokens": default} | body)
        fills = Calls(ToolParameters(), None)
        return _answered(reply, await self._service.complete(request, completion, wire.TEXT, fills))

    async def embed(self, request: Request) -> Response:
        """Return the embeddings of texts."""
        began = time.perf_counter_ns()
        asked = await self._service.read(ollama.EmbedRequest, request)
        body = asked.converted() | {"model": self._model(asked.model).name}
        if not asked.input:  # how clients load a model
            return JSONResponse(ollama.embedded(asked.model, began, {"data": [], "usage": {"prompt_tokens": 0}}))
        found = await self._service.embedded(request, wire.valid(EmbeddingsRequest, body))
        return JSONResponse(ollama.embedded(asked.model, began, found))

    def _model(self, name: str) -> Served | Upstream:
        short = name.removesuffix(":latest")
        return self._service.model(name if name in self._service.models else short)


def _entry(model: Served | Upstream) -> dict[str, object]:
    digest = model.provenance.sha256 if model.provenance else ""
    return ollama.described(model.name, model.created, digest, _parameters(model))


def _parameters(model: Served | Upstream) -> int:
    return model.provenance.parameters if model.provenance else 0


def _answered(reply: ollama.Reply, response: Response) -> Response:
    """Return Ollama's response for OpenAI's."""
    if isinstance(response, EventStream):
        return EventStream(reply.lines(response.events), response.end, "application/x-ndjson")
    assert not isinstance(response, StreamingResponse)
    return JSONResponse(reply.whole(json.loads(bytes(response.body))))


def _with_errors(handler: _Handler) -> _Handler:
    @wraps(handler)
    async def wrapped(request: Request) -> Response:
        try:
            return await handler(request)
        except RequestError as error:
            headers = {"Retry-After": "1"} if error.status in (429, 503) else None
            return JSONResponse({"error": error.message}, error.status, headers)

    return wrapped
