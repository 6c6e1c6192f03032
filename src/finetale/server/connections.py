"""Connections, and what one may cost before and after its request: bounded in number and in time. Knows no routes."""

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
from finetale.server.access import MOST_HEADER_BYTES, Limits

_SPARE_FILES = 128
"""Open files that are not connections."""


def most_connections(wanted: int = 1000) -> int:
    """How many connections a process can hold; the system's limit on open files is raised for them as far as it lets."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _SPARE_FILES))


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """The protocol with some limits."""
    return type("Bounded", (BoundedProtocol,), {"limits": limits})


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with a number of connections, and a time for headers to come and for answers to be taken.

    A body has a limit of its own, which is the application's.
    """

    limits: Limits
    _waiting: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more client, if there is room."""
        if len(self.connections) >= self.limits.most_connections:
            message = "Too many connections are open; try again soon."
            transport.write(_bare(503, message, "rate_limit_error", "too_many_connections", "Retry-After: 1\r\n"))
            transport.close()
            return
        # asyncio does so for sockets whose protocol it is told, which those of a listener of our own are not. Without it
        # what is written second, as a body or the next token, waits 40 ms for the client's word that it has the first.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        self._waiting = self.loop.call_later(self.limits.header_seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; the time for its head begins with the first of them."""
        if self.transport is None:  # it was refused
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer is out; the next request may have come with the one before."""
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE:  # between two requests its time is uvicorn's affair
            self._watch()
        if self.transport.is_closing():  # what is not taken by then is not wanted
            self.loop.call_later(self.limits.stalled_seconds, self.transport.abort)

    def _watch(self) -> None:
        """Whoever is to send a head, or the rest of a body that was answered unread, has so much time for it."""
        answered = self.cycle is not None and self.cycle.response_complete
        if self.conn.their_state is not h11.IDLE and not (answered and self.conn.their_state is h11.SEND_BODY):
            self._waiting = _cancel(self._waiting)
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or its head is too large."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        if status == 431:
            msg = f"The request's head is larger than {MOST_HEADER_BYTES:,} bytes."
        self.transport.write(_bare(status, msg, "invalid_request_error", None))
        self.transport.close()

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(self.limits.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken enough."""
        super().resume_writing()
        self._stalled = _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._waiting, self._stalled = _cancel(self._waiting), _cancel(self._stalled)
        if self.transport is not None:
            super().connection_lost(exc)

    def eof_received(self) -> Any:
        """The client sends no more; it may still listen."""
        return None if self.transport is None else super().eof_received()


def _bare(status: int, message: str, kind: str, code: str | None, headers: str = "") -> bytes:
    """An answer where there is no request to answer."""
    body = json.dumps(wire.error_body(message, kind, None, code)).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{headers}Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """What stands in a timer's place once it is cancelled."""
    if timer is not None:
        timer.cancel()
    return None
