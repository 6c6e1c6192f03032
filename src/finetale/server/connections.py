"""Limits on connections: their number, and the time for sending headers and reading responses. Knows no routes."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from finetale.server import wire
from finetale.server.access import MAX_HEADER_BYTES, Limits

_SPARE_FILES = 128
"""Open files reserved for other uses than connections."""


def max_connections(wanted: int = 1000) -> int:
    """Return how many connections the process can hold, at most `wanted`. Raises the limit on open files if allowed."""
    try:
        import resource
    except ImportError:  # Windows
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _SPARE_FILES))


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """Return the protocol class with the given limits."""
    return type("Bounded", (BoundedProtocol,), {"limits": limits})


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with limits on connections, on the time for headers and on clients that do not read.

    The application limits the time for a body.
    """

    limits: Limits
    _waiting: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection. If too many are open, close the one that has been idle longest, or reject this one."""
        if len(self.connections) >= self.limits.max_connections and not self._close_idle():
            message = "Too many connections are open; try again soon."
            transport.write(
                _raw_response(503, message, "rate_limit_error", "too_many_connections", "Retry-After: 1\r\n")
            )
            transport.close()
            return
        # asyncio does not set it on sockets of our own listener. Without it a body or the next token waits 40 ms for
        # the client's acknowledgement of the bytes before (Nagle's algorithm with delayed ACK).
        accepted = transport.get_extra_info("socket")
        if accepted.family in (socket.AF_INET, socket.AF_INET6):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._waiting = self.loop.call_later(self.limits.header_seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Process bytes of a request; the first ones start the time limit for its headers."""
        if self.transport is None:  # the connection was rejected
            return
        super().data_received(data)
        self._watch()

    def _close_idle(self) -> bool:
        """Close the connection that has been without a request longest; return whether there was one."""
        idle = [each for each in self.connections if isinstance(each, BoundedProtocol) and each.is_idle]
        if not idle:
            return False
        oldest = min(idle, key=lambda each: each._idle_since)
        self.connections.discard(oldest)  # it is removed only when the event loop has closed it
        oldest.transport.abort()
        return True

    @property
    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)

    def on_response_complete(self) -> None:
        """Start the next request's time limit; its bytes may already be here."""
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self.conn.their_state is not h11.IDLE:  # uvicorn limits the time between two requests
            self._watch()
        if self.transport.is_closing():  # end it even if the client does not read the rest
            self.loop.call_later(self.limits.stalled_seconds, self.transport.abort)

    def _watch(self) -> None:
        """Run a time limit while the client must send headers, or the rest of a body whose response is complete."""
        answered = self.cycle is not None and self.cycle.response_complete
        if self.conn.their_state is not h11.IDLE and not (answered and self.conn.their_state is h11.SEND_BODY):
            self._waiting = _cancel(self._waiting)
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Reject invalid HTTP and headers that are too large."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        if status == 431:
            msg = f"The request headers are larger than {MAX_HEADER_BYTES:,} bytes."
        self.transport.write(_raw_response(status, msg, "invalid_request_error", None))
        self.transport.close()

    def pause_writing(self) -> None:
        """Start the time limit for a client that does not read."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(self.limits.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that time limit."""
        super().resume_writing()
        self._stalled = _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all time limits."""
        self._waiting, self._stalled = _cancel(self._waiting), _cancel(self._stalled)
        if self.transport is not None:
            super().connection_lost(exc)

    def eof_received(self) -> Any:
        """Keep the connection: the client sends no more but may still read."""
        return None if self.transport is None else super().eof_received()


def _raw_response(status: int, message: str, kind: str, code: str | None, headers: str = "") -> bytes:
    """Return a raw HTTP response, for when no request was parsed."""
    body = json.dumps(wire.error_body(message, kind, None, code)).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{headers}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer; return None to store in its place."""
    if timer is not None:
        timer.cancel()
    return None
