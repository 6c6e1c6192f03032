"""What stands before every route: who may ask, from where, and how much. An ASGI application around another."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from finetale.errors import RequestError
from finetale.server import wire

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_HEADER_BYTES = 16 * 1024
_OPEN = ("/health", "/ready")
"""Routes that need no key: who watches a service has none."""
QUEUE_FULL = "Too many requests are waiting; try again soon.", "queue_full"
_REST_SECONDS, _REST_BYTES = 2.0, 256 * 2**20
_ROUTES = (*_OPEN, "/", "/metrics", "/openapi.json", "/v1/models", "/v1/completions", "/v1/chat/completions")


@dataclass(frozen=True)
class Limits:
    """What a service takes.

    Attributes:
        key: without it nothing but its health is told; None for a service that only this machine reaches.
        hosts: names that the Host header may have, without port; empty for any.
        any_address: whether it may have any address as well. Those are numbers, which no site's name can lead here with.
        origins: sites besides this one whose pages may ask, as https://example.org.
        most_body: bytes of a body.
        most_samples: completions of a request, over all its prompts.
        most_connections: at a time.
        header_seconds: in which the head of a request must have come.
        body_seconds: in which a body must have come.
        request_seconds: in which an answer must be done, its waiting included.
        stalled_seconds: that a client may take nothing of an answer.
    """

    key: str | None = None
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    any_address: bool = False
    origins: frozenset[str] = frozenset()
    most_body: int = 2 * 2**20
    most_samples: int = 128
    most_connections: int = 1000
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    request_seconds: float = 600.0
    stalled_seconds: float = 60.0


@dataclass(frozen=True)
class Answered:
    """One request that was answered."""

    method: str
    route: str
    status: int
    seconds: float
    client: str


class Guard:
    """Refuses what must not come in, before anything of it is read, and tells of every answer.

    Args:
        is_full: whether a client, by its address, has to come again later, whatever it asks to be computed.
    """

    def __init__(
        self, app: App, limits: Limits, tell: Callable[[Answered], None], is_full: Callable[[str], bool]
    ) -> None:
        self.app = app
        self.limits = limits
        self.tell = tell
        self.is_full = is_full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        started = time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status in (408, 413):  # more of the body may come
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif status == 413 and not message.get("more_body"):
                await send({**message, "more_body": True})
                await _take_rest(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            await self._serve(scope, receive, noting)
        finally:
            # Routes of our own only, or whoever asks for many paths fills the memory of who counts them.
            route = scope["path"] if scope["path"] in _ROUTES else "other"
            self.tell(Answered(scope["method"], route, status, time.perf_counter() - started, _address(scope)))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(scope, headers):
            await _answer(send, *refusal, path=scope["path"])
            return
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.limits.most_body:
            await _answer(send, *self._too_large())
            return
        if scope["method"] == "POST" and self.is_full(_address(scope)):
            await _answer(send, 429, *QUEUE_FULL)
            return
        await self._counted(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str | None] | None:
        """(status, message, code) of what must not come in."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            return 431, f"The request's head is larger than {MOST_HEADER_BYTES:,} bytes.", None
        host = name_of(headers.get("host", ""))
        if self.limits.hosts and host not in self.limits.hosts and not (self.limits.any_address and _is_address(host)):
            # A page on the web can have its own name lead here (DNS rebinding), but can't change the Host it sends.
            return 403, f"The host {host!r} is not served here: --allow-host adds a name.", "host_not_allowed"
        origin = headers.get("origin")
        if origin is not None and origin not in self.limits.origins and not _is_same(origin, headers["host"]):
            return 403, "Pages of other sites may not ask here.", "origin_not_allowed"
        if self.limits.key is not None and scope["path"] not in _OPEN:
            given = _key_of(headers.get("authorization", ""))
            if not hmac.compare_digest(given.encode(), self.limits.key.encode()):
                return 401, "The API key is missing or wrong: Authorization: Bearer KEY.", "invalid_api_key"
        return None

    def _too_large(self) -> tuple[int, str, str | None]:
        return 413, f"The body is larger than {self.limits.most_body:,} bytes.", "body_too_large"

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with a body that is counted while it comes in."""
        size = 0

        async def counting() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limits.most_body:
                status, text, code = self._too_large()
                raise RequestError(text, status=status, code=code)
            return message

        await self.app(scope, counting, send)


def name_of(host: str) -> str:
    """A host without its port, in lower case; brackets of IPv6 addresses are left out."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _is_same(origin: str, host: str) -> bool:
    """Whether a page's origin is the host that it asks, ports included."""
    scheme, _, place = origin.lower().partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    return default is not None and place.removesuffix(default) == host.lower().removesuffix(default)


def _key_of(authorization: str) -> str:
    """The key that a request shows: Bearer KEY, or what a browser makes of a password."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(given.strip(), validate=True).decode().partition(":")[2]
    return ""


async def _take_rest(receive: Receive) -> None:
    """Let a client send on what it has begun, for a while: one that is cut off while it sends does not read the answer."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REST_SECONDS):
            while size < _REST_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""


_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


async def _answer(send: Send, status: int, message: str, code: str | None, *, path: str = "") -> None:
    body = json.dumps(wire.error_body(message, _KINDS.get(status, "invalid_request_error"), None, code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        # A browser asks for the key where it is told of a name and a password; programs want the other way.
        scheme = "Basic" if path == "/" else "Bearer"
        headers.append((b"www-authenticate", f'{scheme} realm="Finetale"'.encode()))
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
