"""Run the checks of one client, in the client's own environment. The scripts of Python clients import it."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import version

ROOT = os.environ["FINETALE_URL"]
URL = f"{ROOT}/v1"
MODEL = "tiny"
ASKED = [{"role": "user", "content": "Who stood at the lamp?"}]
LONG = 3000
"""Tokens of a text that a client leaves. Without leaving it would take many seconds."""
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city.", "parameters": SCHEMA},
}


def run(package: str, checks: dict[str, Callable[[], None]]) -> None:
    """Run each check; print the client's version and the results as JSON."""
    found = {}
    for name, check in checks.items():
        try:
            check()
            found[name] = "ok"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"[:600]
    print(json.dumps({"version": version(package), "checks": found}))


def expect(condition: object, shown: object = "") -> None:
    """Raise an error unless the condition holds."""
    if not condition:
        raise AssertionError(f"unexpected: {shown!r}")


def expect_arguments(arguments: object) -> None:
    """Check the arguments of a call of the tool, as JSON or as an object."""
    found = json.loads(arguments) if isinstance(arguments, str) else arguments
    expect(isinstance(found, dict) and found["city"] in ("Paris", "Rome") and found["days"] >= 1, found)


def expect_pieces(stream: Iterator[object], count: int = 5) -> None:
    """Read some pieces of a stream."""
    for _ in range(count):
        next(iter(stream))


def expect_idle(seconds: float = 1.0) -> None:
    """Check that the service stops generating within some seconds."""
    ends = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(f"{ROOT}/metrics") as response:
            busy = re.search(r'^finetale_busy_slots\{model="tiny"\} (\S+)', response.read().decode(), re.MULTILINE)
        if busy is not None and float(busy[1]) == 0:
            return
        expect(time.monotonic() < ends, "the text is still being generated")
        time.sleep(0.02)
