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

from finetale import pipeline
from finetale.generate import Generator
from finetale.models import LoadedModel
from finetale.server.app import Served, Service
from finetale.server.completion import Vocabulary
from finetale.server.engines import choice
from finetale.server.guard import Limits
from finetale.server.worker import Worker

_MOST_HEADER_BYTES = 16 * 1024
_UNLIMITED_CONTEXT = 8192
_MEASURED = 8192
"""Tokens of held-out text on which a converted model is held against PyTorch."""
_WINDOW = 512


def serve_model(
    name: str,
    loaded: LoadedModel,
    *,
    slots: int,
    most_waiting: int,
    engine: str = "torch",
    notify: pipeline.Notify = lambda event: None,
) -> Served:
    """A model with an engine and its worker, which runs at once.

    Args:
        engine: one of `choice.ENGINES`.

    Raises:
        FinetaleError: the engine is not there or can't serve this model.
    """
    generator = Generator(loaded.model, loaded.tokenizer)
    window = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
    context = min(generator.context, window or _UNLIMITED_CONTEXT, _UNLIMITED_CONTEXT)
    holes = tuple(token for token in generator.forbidden if token < generator.vocab_size)
    facts = choice.Facts(generator.vocab_size, holes, context, generator.begin)
    chosen = choice.choose(
        loaded,
        facts,
        slots=slots,
        wanted=engine,
        held_out=lambda: pipeline.held_out_ids(loaded, notify, most=_MEASURED, window=min(context, _WINDOW)),
        notify=notify,
    )
    vocabulary = Vocabulary(loaded.tokenizer, facts.vocab_size, context)
    return Served(name, vocabulary, Worker(chosen, most_waiting=most_waiting), int(time.time()))


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
