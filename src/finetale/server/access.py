"""Access control in front of all routes: API key, hosts, origins and sizes. An ASGI application around another."""

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

MAX_HEADER_BYTES = 16 * 1024
_OPEN = ("/health", "/ready")
"""Routes that need no key, because monitoring has none."""
QUEUE_FULL = "Too many requests are waiting; try again soon.", "queue_full"
_REST_SECONDS, _REST_BYTES = 2.0, 256 * 2**20
_ROUTES = (
    *(*_OPEN, "/", "/metrics", "/openapi.json", "/v1/models", "/v1/completions", "/v1/chat/completions"),
    *("/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"),
    *("/api/version", "/api/tags", "/api/ps", "/api/show", "/api/chat", "/api/generate", "/api/embed"),
)


@dataclass(frozen=True)
class Limits:
    """Limits of a service.

    Attributes:
        key: the API key. None for a service that only this machine can reach.
        hosts: allowed values of the Host header, without port. Empty: any.
        any_address: also allow any IP address as Host. DNS rebinding needs a name, so addresses are safe.
        origins: other sites whose pages may send requests, as https://example.org.
        max_body_bytes: maximum size of a body in bytes.
        max_samples: maximum number of completions per request, over all its prompts.
        max_connections: maximum number of open connections.
        header_seconds: time limit for receiving the headers of a request.
        body_seconds: time limit for receiving a body.
        request_seconds: time limit for a response, waiting in the queue included.
        stalled_seconds: how long a client may read nothing of a response.
    """

    key: str | None = None
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    any_address: bool = False
    origins: frozenset[str] = frozenset()
    max_body_bytes: int = 2 * 2**20
    max_samples: int = 128
    max_connections: int = 1000
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    request_seconds: float = 600.0
    stalled_seconds: float = 60.0


@dataclass(frozen=True)
class Answered:
    """A request and the status of its response, for the log and the metrics."""

    method: str
    route: str
    status: int
    seconds: float
    client: str


class Guard:
    """Reject forbidden requests before their body is read, and report every response.

    Args:
        app: the application behind it.
        limits: the limits of the service.
        on_answered: callback; receives every response.
        is_full: callback; returns whether a client, given by its address, must retry later whatever it requests.
    """

    def __init__(
        self, app: App, limits: Limits, on_answered: Callable[[Answered], None], is_full: Callable[[str], bool]
    ) -> None:
        self.app = app
        self.limits = limits
        self.on_answered = on_answered
        self.is_full = is_full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):  # a redirect would lose the body in some clients
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        status = 0
        started = time.perf_counter()

        async def recording(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status in (408, 413):  # the client may still be sending the body
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif status == 413 and not message.get("more_body"):
                await send({**message, "more_body": True})
                await _discard_rest(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            await self._serve(scope, receive, recording)
        finally:
            # Unknown paths share one label: each label costs memory in the metrics.
            route = scope["path"] if scope["path"] in _ROUTES else "other"
            self.on_answered(Answered(scope["method"], route, status, time.perf_counter() - started, _address(scope)))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(scope, headers):
            await _answer(send, *refusal, path=scope["path"])
            return
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.limits.max_body_bytes:
            await _answer(send, *self._too_large())
            return
        if scope["method"] == "POST" and self.is_full(_address(scope)):
            await _answer(send, 429, *QUEUE_FULL)
            return
        await self._with_body_limit(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str | None] | None:
        """Return (status, message, code) for a forbidden request, else None."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return 431, f"The request headers are larger than {MAX_HEADER_BYTES:,} bytes.", None
        host = name_of(headers.get("host", ""))
        if self.limits.hosts and host not in self.limits.hosts and not (self.limits.any_address and _is_address(host)):
            # DNS rebinding: a web page can point its own name at this address, but cannot change the Host header.
            return 403, f"The host {host!r} is not allowed. Add it with --allow-host.", "host_not_allowed"
        origin = headers.get("origin")
        if origin is not None and origin not in self.limits.origins and not _is_same(origin, headers["host"]):
            return (
                403,
                "Requests from pages of other sites are not allowed. Add a site with --allow-origin.",
                "origin_not_allowed",
            )
        if self.limits.key is not None and scope["path"] not in _OPEN:
            given = _key_of(headers.get("authorization", ""))
            if not hmac.compare_digest(given.encode(), self.limits.key.encode()):
                return (
                    401,
                    "The API key is missing or incorrect. Send it as Authorization: Bearer KEY.",
                    "invalid_api_key",
                )
        return None

    def _too_large(self) -> tuple[int, str, str | None]:
        return 413, f"The body is larger than {self.limits.max_body_bytes:,} bytes.", "body_too_large"

    async def _with_body_limit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application; reject the body once it exceeds the limit."""
        size = 0

        async def counting() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limits.max_body_bytes:
                status, text, code = self._too_large()
                raise RequestError(text, status=status, code=code)
            return message

        await self.app(scope, counting, send)


def name_of(host: str) -> str:
    """Return a host in lower case, without its port and without the brackets of IPv6 addresses."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _is_same(origin: str, host: str) -> bool:
    """Return whether a page's origin equals the requested host, port included."""
    scheme, _, place = origin.lower().partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    return default is not None and place.removesuffix(default) == host.lower().removesuffix(default)


def _key_of(authorization: str) -> str:
    """Return the key of a request: from Bearer KEY, or the password of Basic authentication, which browsers use."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(given.strip(), validate=True).decode().partition(":")[2]
    return ""


async def _discard_rest(receive: Receive) -> None:
    """Discard the rest of a body, within limits. A client that is cut off while sending does not read the response."""
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
        # Browsers show a password prompt for Basic; programs expect Bearer.
        scheme = "Basic" if path == "/" else "Bearer"
        headers.append((b"www-authenticate", f'{scheme} realm="Finetale"'.encode()))
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
