"""What a service tells on stderr: a JSON object a line, never a prompt."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logged_as_json() -> Iterator[None]:
    """One JSON object a line on stderr: when, what, and of requests route, status, seconds and client."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    loggers = {name: logging.getLogger(name) for name in ("finetale.server", "uvicorn.error")}
    before = {name: (logger.handlers, logger.propagate, logger.level) for name, logger in loggers.items()}
    for name, logger in loggers.items():
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "finetale.server" else logging.WARNING)
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.handlers, logger.propagate, logger.level = before[name]


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
