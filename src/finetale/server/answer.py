"""The answer to one request: pieces come from a worker's thread, and become a body or a stream. Knows no routes."""

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

from finetale.errors import FinetaleError, RequestError
from finetale.models import Provenance
from finetale.server import wire
from finetale.server.completion import Completion, Piece, Vocabulary
from finetale.server.engines import Token
from finetale.server.meters import Meters
from finetale.server.worker import Ticket, Worker

Pieces = asyncio.Queue["Piece | Exception | None"]


@dataclass
class Served:
    """A model that is served under a name."""

    name: str
    vocabulary: Vocabulary
    worker: Worker
    created: int
    provenance: Provenance | None = None

    @property
    def described(self) -> str:
        """Its name and engine, for people."""
        return f"{self.name} ({self.worker.engine.name})"

    @property
    def works(self) -> bool:
        """Whether its engine does."""
        return self.worker.works

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self.worker.waiting

    @property
    def busy(self) -> int:
        """Samples that are being worked on."""
        return self.worker.busy

    def is_full(self, client: str) -> bool:
        """Whether a client has to come again later."""
        return self.worker.is_full(client)

    def expire(self) -> None:
        """There is no more time; see Worker."""
        self.worker.expire()

    def close(self, seconds: float | None) -> None:
        """Finish what was begun, and end; see Worker."""
        self.worker.close(seconds)


class Answer:
    """One request.

    Args:
        completion: what is to be computed.
        shape: of bodies and events.
        seconds: in which it must be done.
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
        """Put it into the worker's queue.

        Raises:
            RequestError: there is no room, or the worker is about to end.
        """
        self._ticket = self.model.worker.submit(self.completion, client, self._tell)

    async def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self._ticket is not None:
            self.model.worker.cancel(self._ticket)

    def _tell(self, piece: Piece | Exception | None) -> None:
        """Called from the worker's thread."""
        now = time.perf_counter()
        if isinstance(piece, Piece) and self._first is None:
            self._first = now
            self._meters.first_token.labels(self.model.name).observe(now - self._began)
        elif piece is None:
            self._count(now)
        if isinstance(piece, Piece) and not self.completion.request.stream:
            self._whole.append(piece)  # nobody waits for it alone
        else:
            self._post.put(self._pieces, piece)

    async def _next(self) -> Piece | Exception | None:
        try:
            async with asyncio.timeout(self._began + self._seconds - time.perf_counter()):
                return await self._pieces.get()
        except TimeoutError:
            message = f"The answer was not done within {self._seconds:g} seconds."
            return RequestError(message, status=504, kind="server_error", code="timeout")

    def _count(self, now: float) -> None:
        made = self.completion.usage()
        self._meters.prompt_tokens.labels(self.model.name).inc(made["prompt_tokens"])
        self._meters.completion_tokens.labels(self.model.name).inc(made["completion_tokens"])
        longest = max(len(writer.job.tokens) for group in self.completion.groups for writer in group)
        if longest > 1 and self._first is not None:
            self._meters.each_token.labels(self.model.name).observe((now - self._first) / (longest - 1))

    async def whole(self) -> dict[str, Any]:
        """The body, once all is computed; of best_of the likeliest a token.

        Raises:
            Exception: what went wrong in the worker.
            RequestError: it was not done in time.
        """
        ended = await self._next()
        if isinstance(ended, Exception):
            raise ended
        asked = self.completion.request
        choices = []
        for number, group in enumerate(self.completion.groups):
            opening, told = self.completion.opening(group)
            writers = group
            if asked.count > (asked.n or 1):
                likeliest = sorted(group, key=lambda writer: -writer.logprob / max(1, len(writer.job.tokens)))
                writers = likeliest[: asked.n or 1]
            for place, writer in enumerate(writers):
                mine = [piece for piece in self._whole if piece.index == writer.index]
                text = opening + "".join(piece.text for piece in mine)
                written = [(token, at + len(opening)) for piece in mine for token, at in piece.tokens]
                reason = mine[-1].finish_reason if mine else None
                index = number * (asked.n or 1) + place
                choices.append(self._shape.choice(index, text, reason, self._logprobs([*told, *written])))
        return self.head | {"choices": choices, "usage": self.completion.usage()}

    async def stream(self) -> AsyncIterator[bytes]:
        """The events of a stream."""
        asked = self.completion.request
        wants_usage = asked.stream_options is not None and asked.stream_options.include_usage
        head = self._shape.stream_head(self.head) | ({"usage": None} if wants_usage else {})
        openings: dict[int, int] = {}
        while True:
            piece = await self._next()
            if piece is None:
                break
            if isinstance(piece, Exception):
                yield wire.event(error_of(piece)[1])
                break
            text = piece.text
            told: list[tuple[Token, int]] = []
            first = piece.index not in openings
            if first:
                opening, told = self.completion.opening(self.completion.groups[piece.index // asked.count])
                text, openings[piece.index] = opening + text, len(opening)
            written = [(token, at + openings[piece.index]) for token, at in piece.tokens]
            logprobs = self._logprobs([*told, *written])
            choice = self._shape.part(piece.index, text, piece.finish_reason, logprobs, first=first)
            yield wire.event(head | {"choices": [choice]})
        if piece is None and wants_usage:
            yield wire.event(head | {"choices": [], "usage": self.completion.usage()})
        yield wire.DONE

    def _logprobs(self, tokens: list[tuple[Token, int]]) -> dict[str, Any] | None:
        if self.completion.request.logprobs is None:
            return None
        return self._shape.logprobs(self.completion.told(tokens))


class EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        events: the bytes of each.
        end: called at the end, also where the client leaves: events that nobody asks for any more are not told so at once.
    """

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], Awaitable[None]]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._end()


class Post:
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


def error_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    if isinstance(error, RequestError):
        return error.status, wire.error_body(error.message, error.kind, error.parameter, error.code)
    if isinstance(error, FinetaleError):
        return 500, wire.error_body(error.message, "server_error", None, None)
    return 500, wire.error_body("Something failed here; the service's log says what.", "server_error", None, None)
