"""The process of one tracker: read messages from standard input, and answer each on standard output.

A message is a line of JSON: first a `Start`, then calls as [name, arguments]. The answer is `ok`, or the error as a
JSON string, which ends the process. What a client prints is discarded.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Mapping

from finetale.tracking.clients import CLIENTS, Start

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_SHORTEST_SECRET = 6
_LONGEST_ERROR = 300


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """Return a text with the keys of the environment and the credentials of addresses replaced by `***`."""
    for name, value in environment.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return re.sub(r"(?<=://)[^/\s@]+@", "***@", text)


def _described(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return without_secrets(f"{type(error).__name__}: {lines[0]}", os.environ)[:_LONGEST_ERROR]


def main(name: str) -> int:
    """Serve one tracker until its `finish`, or until the run's process is gone."""
    messages = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # a client must neither read the messages nor write between the answers
        os.dup2(nothing, stream)

    def answer(line: str) -> None:
        with contextlib.suppress(OSError):  # the run's process is gone; the client still has to finish
            print(line, file=answers, flush=True)

    try:
        client = CLIENTS[name](Start(**json.loads(messages.readline())))
        answer("ok")
        for line in messages:
            call, arguments = json.loads(line)
            getattr(client, call)(*arguments)
            answer("ok")
            if call == "finish":
                break
        else:
            client.finish({}, "failed")
    except BaseException as error:
        answer(json.dumps(_described(error)))
        return 1
    return 0


if __name__ == "__main__":
    # All data is safe now. Functions that a client registered for the exit of Python could only delay it.
    os._exit(main(sys.argv[1]))
