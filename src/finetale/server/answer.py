"""The response to one request: pieces from a worker's thread become a body or a stream. Knows no routes."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from transformers import PreTrainedModel

from finetale.errors import FinetaleError, RequestError
from finetale.models import Provenance
from finetale.models.adapter_hooks import LoadedAdapter
from finetale.server import wire
from finetale.server.completion import Completion, Piece, Vocabulary
from finetale.server.engines import Token
from finetale.server.meters import Meters
from finetale.server.worker import Ticket, Worker

Pieces = asyncio.Queue["Piece | Exception | None"]


@dataclass
class Served:
    """A model with the worker that serves it. An adapter shares the worker of its base.

    Attributes:
        name: name of the model in requests.
        vocabulary: its vocabulary.
        worker: runs its engine.
        created: when it was opened, in seconds since 1970.
        provenance: where it came from.
        host: the model in memory, to load adapters for and for embeddings; None if the engine is not PyTorch.
        adapter: the adapter to generate with; None for the engine's model alone.
        is_merged: whether it is an adapter that was merged into a copy of its base.
    """

    name: str
    vocabulary: Vocabulary
    worker: Worker
    created: int
    provenance: Provenance | None = None
    host: PreTrainedModel | None = None
    adapter: LoadedAdapter | None = None
    is_merged: bool = False

    @property
    def described(self) -> str:
        """Name and engine, for people."""
        how = ", adapter" if self.adapter is not None else ", merged adapter" if self.is_merged else ""
        return f"{self.name} ({self.worker.engine.name}{how})"

    @property
    def backend(self) -> object:
        """What computes; models that share it have an equal one."""
        return self.worker

    @property
    def works(self) -> bool:
        """Whether the engine works."""
        return self.worker.works

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return self.worker.num_waiting(self.name)

    @property
    def busy(self) -> int:
        """Number of completions being generated."""
        return self.worker.num_busy(self.name)

    @property
    def kv_bytes(self) -> int:
        """Memory of the keys and values of attention, in bytes. That of adapters is counted at their base."""
        return 0 if self.adapter is not None else self.worker.engine.num_bytes

    def is_full(self, client: str) -> bool:
        """Return whether the queue is full for a client."""
        return self.worker.is_full(client)

    def expire(self) -> None:
        """End all unfinished requests; see Worker."""
        self.worker.expire()

    def close(self, seconds: float | None) -> None:
        """Finish the requests and end; see Worker."""
        self.worker.close(seconds)


class Answer:
    """One request and its response.

    Args:
        completion: the jobs of the request.
        shape: form of bodies and events.
        model: the model that generates.
        meters: metrics of the service.
        post: takes pieces from the worker's thread to the event loop.
        seconds: time limit, from now on.
    """

    def __init__(
        self, completion: Completion, shape: wire.Shape, model: Served, meters: Meters, post: Post, seconds: float
    ) -> None:
        self.completion = completion
        self._seconds = seconds
        self.model = model
        self.head = shape.head(uuid.uuid4().hex, int(time.time()), model.name)
        self._shape = shape
        self._meters = meters
        self._post = post
        self._pieces: Pieces = asyncio.Queue()
        self._whole: list[Piece] = []
        self._began = time.perf_counter()
        self._first: float | None = None
        self._ticket: Ticket | None = None

    def submit(self, client: str) -> None:
        """Put the request into the worker's queue.

        Raises:
            RequestError: the queue is full, or the worker is shutting down.
        """
        self._ticket = self.model.worker.submit(self.completion, client, self._receive)

    async def cancel(self) -> None:
        """Cancel the request."""
        if self._ticket is not None:
            self.model.worker.cancel(self._ticket)

    def _receive(self, piece: Piece | Exception | None) -> None:
        """Receive a piece, an error or the end. Runs in the worker's thread."""
        now = time.perf_counter()
        if isinstance(piece, Piece) and self._first is None:
            self._first = now
            self._meters.first_token.labels(self.model.name).observe(now - self._began)
        elif piece is None:
            self._count(now)
        if isinstance(piece, Piece) and not self.completion.request.stream:
            self._whole.append(piece)  # only the whole body is sent
        else:
            self._post.put(self._pieces, piece)

    async def _next(self) -> Piece | Exception | None:
        try:
            async with asyncio.timeout(self._began + self._seconds - time.perf_counter()):
                return await self._pieces.get()
        except TimeoutError:
            message = f"The response was not ready within {self._seconds:g} seconds."
            return RequestError(message, status=504, kind="server_error", code="timeout")

    def _count(self, now: float) -> None:
        made = self.completion.usage()
        self._meters.prompt_tokens.labels(self.model.name).inc(made["prompt_tokens"])
        self._meters.completion_tokens.labels(self.model.name).inc(made["completion_tokens"])
        longest = max(len(builder.job.tokens) for group in self.completion.groups for builder in group)
        if longest > 1 and self._first is not None:
            self._meters.each_token.labels(self.model.name).observe((now - self._first) / (longest - 1))

    async def whole(self) -> dict[str, Any]:
        """Return the response body. With `best_of`, keep the choices with the highest mean log-probability per token.

        Raises:
            Exception: the worker failed.
            RequestError: the time limit passed.
        """
        ended = await self._next()
        if isinstance(ended, Exception):
            raise ended
        asked = self.completion.request
        choices = []
        for number, group in enumerate(self.completion.groups):
            opening, read = self.completion.opening(group)
            builders = group
            if asked.count > (asked.n or 1):
                ranked = sorted(group, key=lambda builder: -builder.logprob / max(1, len(builder.job.tokens)))
                builders = ranked[: asked.n or 1]
            for place, builder in enumerate(builders):
                mine = [piece for piece in self._whole if piece.index == builder.index]
                text = opening + "".join(piece.text for piece in mine)
                written = [(token, at + len(opening)) for piece in mine for token, at in piece.tokens]
                reason = mine[-1].finish_reason if mine else None
                index = number * (asked.n or 1) + place
                choice = self._shape.choice(index, text, reason, self._logprobs([*read, *written]))
                choices.append(choice | self.completion.extras(builder))
        return self.head | {"choices": choices, "usage": self.completion.usage()}

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the events of a stream."""
        asked = self.completion.request
        wants_usage = asked.stream_options is not None and asked.stream_options.include_usage
        head = self._shape.stream_head(self.head) | ({"usage": None} if wants_usage else {})
        continuously = wants_usage and asked.stream_options is not None and asked.stream_options.continuous_usage_stats
        openings: dict[int, int] = {}
        while True:
            piece = await self._next()
            if piece is None:
                break
            if isinstance(piece, Exception):
                yield wire.event(error_of(piece)[1])
                break
            text = piece.text
            read: list[tuple[Token, int]] = []
            first = piece.index not in openings
            if first:
                opening, read = self.completion.opening(self.completion.groups[piece.index // asked.count])
                text, openings[piece.index] = opening + text, len(opening)
            written = [(token, at + openings[piece.index]) for token, at in piece.tokens]
            logprobs = self._logprobs([*read, *written])
            choice = self._shape.part(piece.index, text, piece.finish_reason, logprobs, first=first)
            if asked.return_token_ids:
                group = self.completion.groups[piece.index // asked.count]
                choice |= {"prompt_token_ids": list(group[0].job.ids)} if first else {}
                choice["token_ids"] = [token.id for token, _ in piece.tokens]
            usage = {"usage": self.completion.usage_so_far()} if continuously else {}
            yield wire.event(head | usage | {"choices": [choice]})
        if piece is None and wants_usage:
            yield wire.event(head | {"choices": [], "usage": self.completion.usage()})
        yield wire.DONE

    def _logprobs(self, tokens: list[tuple[Token, int]]) -> dict[str, Any] | None:
        if self.completion.request.logprobs is None:
            return None
        return self._shape.logprobs(self.completion.with_texts(tokens))


class EventStream(StreamingResponse):
    """A response of server-sent events.

    Args:
        events: the encoded events.
        end: callback for the end of the response, also after a disconnect. The iterator notices a disconnect too late.
        kind: media type.
    """

    def __init__(
        self, events: AsyncIterator[bytes], end: Callable[[], Awaitable[None]], kind: str = "text/event-stream"
    ) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type=kind, headers=headers)
        self.events = events
        self.end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.end()


class Post:
    """Takes pieces from workers' threads to the event loop. One wake-up delivers all pieces of a step."""

    def __init__(self) -> None:
        self._letters: deque[tuple[Pieces, Piece | Exception | None]] = deque()
        self._woken = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Deliver to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def put(self, pieces: Pieces, piece: Piece | Exception | None) -> None:
        """Send a piece. Any thread may call this."""
        self._letters.append((pieces, piece))
        if self._woken or self._loop is None:
            return
        self._woken = True
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # before delivering, so that later pieces wake the loop again
        while self._letters:
            pieces, piece = self._letters.popleft()
            pieces.put_nowait(piece)


def error_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error."""
    if isinstance(error, RequestError):
        return error.status, wire.error_body(error.message, error.kind, error.parameter, error.code)
    if isinstance(error, FinetaleError):
        return 500, wire.error_body(error.message, "server_error", None, None)
    return 500, wire.error_body(
        "The server had an internal error. Its log has the details.", "server_error", None, None
    )
