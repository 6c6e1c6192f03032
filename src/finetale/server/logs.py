"""The log on stderr: one JSON object per line, never a prompt."""

from __future__ import annotations

import datetime
import json
import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener

_MAX_QUEUED_LINES = 10_000
"""Further lines are dropped while stderr blocks, so that requests do not wait for it."""


@contextmanager
def logged_as_json() -> Iterator[None]:
    """Log JSON lines to stderr: time, level and message; for requests also method, route, status, seconds and client.

    A separate thread writes them, so that no request waits for a terminal or a disk.
    """
    writer = logging.StreamHandler()
    writer.setFormatter(_JsonLines())
    unwritten: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler, listener = _BoundedQueueHandler(unwritten), QueueListener(unwritten, writer)
    loggers = {name: logging.getLogger(name) for name in ("finetale.server", "uvicorn.error")}
    before = {name: (logger.handlers, logger.propagate, logger.level) for name, logger in loggers.items()}
    for name, logger in loggers.items():
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "finetale.server" else logging.WARNING)
    listener.start()
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.handlers, logger.propagate, logger.level = before[name]
        listener.stop()


class _BoundedQueueHandler(QueueHandler):
    def __init__(self, unwritten: queue.SimpleQueue[logging.LogRecord]) -> None:
        super().__init__(unwritten)
        self._unwritten = unwritten

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record unchanged; it stays in this process."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a record if there is room."""
        if self._unwritten.qsize() < _MAX_QUEUED_LINES:
            self._unwritten.put(record)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        line: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        fields = ("method", "route", "status", "seconds", "client")
        line |= {name: vars(record)[name] for name in fields if name in vars(record)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
