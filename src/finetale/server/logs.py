"""What a service tells on stderr: a JSON object a line, never a prompt."""

from __future__ import annotations

import datetime
import json
import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener

_MOST_UNWRITTEN = 10_000
"""Lines; where nobody reads what is written, further ones are lost, and requests are answered all the same."""


@contextmanager
def logged_as_json() -> Iterator[None]:
    """One JSON object a line on stderr: when, what, and of requests method, route, status, seconds and client.

    They are written by a thread of their own, so that no request waits for a terminal or a disk.
    """
    writer = logging.StreamHandler()
    writer.setFormatter(_JsonLines())
    unwritten: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler, listener = _Putting(unwritten), QueueListener(unwritten, writer)
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


class _Putting(QueueHandler):
    def __init__(self, unwritten: queue.SimpleQueue[logging.LogRecord]) -> None:
        super().__init__(unwritten)
        self._unwritten = unwritten

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """A record as it is: it stays in this process."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put it there, if there is room."""
        if self._unwritten.qsize() < _MOST_UNWRITTEN:
            self._unwritten.put(record)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        line: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        told = ("method", "route", "status", "seconds", "client")
        line |= {name: vars(record)[name] for name in told if name in vars(record)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
