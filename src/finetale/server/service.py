"""A model → a service that runs until it is told to stop, and then finishes what it has begun."""

from __future__ import annotations

import datetime
import json
import logging
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from finetale.generate import Generator
from finetale.models import LoadedModel
from finetale.server.app import Served, Service
from finetale.server.completion import Vocabulary
from finetale.server.guard import Limits
from finetale.server.torch_engine import TorchEngine
from finetale.server.worker import Worker

_MOST_HEADER_BYTES = 16 * 1024
_UNLIMITED_CONTEXT = 8192


def serve_model(name: str, loaded: LoadedModel, *, slots: int, most_waiting: int) -> Served:
    """A model with an engine and its worker, which runs at once."""
    facts = Generator(loaded.model, loaded.tokenizer)
    context = min(facts.context, _UNLIMITED_CONTEXT)
    holes = [token for token in facts.forbidden if token < facts.vocab_size]
    window = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
    context = min(context, window) if window else context
    engine = TorchEngine(loaded.model, vocab_size=facts.vocab_size, holes=holes, context=context, slots=slots)
    engine.check()
    vocabulary = Vocabulary(loaded.tokenizer, facts.vocab_size, context)
    return Served(name, vocabulary, Worker(engine, most_waiting=most_waiting), int(time.time()))


def run(
    models: list[Served],
    limits: Limits,
    *,
    host: str,
    port: int,
    drain_seconds: float,
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; then take nothing new, finish what was begun, at most for `drain_seconds`.

    Args:
        ready: told the address once it is listened at.
    """
    service = Service(models, limits)
    _log_as_json()
    config = uvicorn.Config(
        service.app(),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        http="h11",
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    server = _Server(config, service, ready)
    server.run()
    for model in models:
        model.worker.close(0.5)


def _log_as_json() -> None:
    """One JSON object a line on stderr: when, what, and of requests route, status, seconds and client."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    for name in ("finetale.server", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "finetale.server" else logging.WARNING)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        line: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in ("route", "status", "seconds", "client") if name in vars(record)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Server(uvicorn.Server):
    """uvicorn, which tells when it is ready, and that it drains."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started and self.servers:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        self._service.draining = True
        self.should_exit, again = True, self.should_exit
        if again and sig == signal.SIGINT:
            self.force_exit = True
