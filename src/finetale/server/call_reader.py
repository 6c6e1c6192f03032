"""Notations of tool calls, and the calls in a text that arrives in pieces. Knows no requests."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

_MAX_HEAD = 1000
"""Maximum number of characters of a call before its arguments. A longer one is read when the text has ended."""


@dataclass(frozen=True, slots=True)
class Notation:
    """How a model writes tool calls.

    Attributes:
        start: text before the calls; empty if there is none.
        arguments: key of the arguments.
        kind: one object after `start` per call, with `end` behind it; a list of objects after one `start`; or an object
            that is the whole text.
        end: text after a call.
    """

    start: str
    arguments: str
    kind: Literal["tagged", "list", "whole"]
    end: str = ""

    @property
    def head(self) -> re.Pattern[str]:
        """What is before the arguments of a call. Its group is the name as a JSON string."""
        before = rf"\s*+(?:{re.escape(self.start)})?\s*+" + (r"\[?\s*+" if self.kind == "list" else "")
        name = r'"name"\s*+:\s*+("(?:[^"\\]|\\.)*+")'
        arguments = rf'"(?:arguments|{self.arguments})"\s*+:\s*+(?=\{{)'
        return re.compile(rf"{before}\{{\s*+{name}\s*+,\s*+{arguments}")


HERMES = Notation("<tool_call>", "arguments", "tagged", "</tool_call>")
MISTRAL = Notation("[TOOL_CALLS]", "arguments", "list")
LLAMA = Notation("<|python_tag|>", "parameters", "whole")
PLAIN = Notation("", "arguments", "whole")
_NEXT_IN_LIST = re.compile(r"\s*+\}\s*+,")


class CallReader:
    """Finds the calls in a text that arrives in pieces.

    Text before the first call is passed on at once. A call is passed on in parts: first its name, then its arguments as
    the model writes them. Text after the first call is left out. What begins like a call and is none is text.

    A part has the form of OpenAI's streams: an object with the `index` of the call.
    """

    def __init__(self, notation: Notation, names: frozenset[str]) -> None:
        self._notation = notation
        self._head = notation.head
        self._names = names
        self._held = ""
        self._state: Literal["text", "head", "arguments", "between", "unusual"] = "text"
        self._is_first = True
        self._num_calls = 0
        self._depth = 0
        self._is_string = False
        self._is_escaped = False

    def add(self, piece: str) -> tuple[str, list[dict[str, Any]]]:
        """Add text; return the text that is certain to be no part of a call, and new parts of calls."""
        self._held += piece
        text = ""
        parts: list[dict[str, Any]] = []
        state = None
        while state != self._state:
            state = self._state
            if state == "text":
                text += self._text()
            elif state == "head":
                parts += self._begin()
            elif state == "arguments":
                parts += self._arguments()
            elif state == "between":
                self._find_next()
        return text, parts

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the rest of the text, and the rest of the calls."""
        if self._state in ("arguments", "between"):
            return "", []
        calls = list(self._whole_calls()) if self._state != "text" else []
        if all(call["function"]["name"] in self._names for call in calls) and calls:
            first, self._num_calls = self._num_calls, self._num_calls + len(calls)
            return "", [{"index": first + place} | call for place, call in enumerate(calls)]
        return ("" if self._num_calls else self._held), []

    def _text(self) -> str:
        """Return the text before a call, without the space before it."""
        held, notation = self._held, self._notation
        if notation.kind == "whole":
            begin = held.lstrip()
            if not begin:
                return ""
            starts = begin[0] == "{" or notation.start.startswith(begin) or begin.startswith(notation.start)
            if self._is_first and starts and (notation.start or begin[0] == "{"):
                is_open = begin[0] != "{" and len(begin) < len(notation.start)  # a beginning of `start` so far
                self._state = "text" if is_open else "head"
                return ""
            return self._pass(len(held))
        place = held.find(notation.start)
        if place >= 0:
            self._state = "head"
        else:
            place = len(held) - _overlap(held, notation.start)
        return self._pass(len(held[:place].rstrip()))

    def _pass(self, length: int) -> str:
        passed, self._held = self._held[:length], self._held[length:]
        self._is_first = self._is_first and not passed
        return passed

    def _begin(self) -> Iterator[dict[str, Any]]:
        """Return the part with the name of a call, once the arguments begin."""
        found = self._head.match(self._held)
        if found is None:
            self._state = "unusual" if len(self._held) > _MAX_HEAD else "head"
            return
        try:
            name = json.loads(found[1])
        except ValueError:
            name = None
        if name not in self._names:
            self._state = "unusual"
            return
        self._held = self._held[found.end() :]
        self._state = "arguments"
        yield {"index": self._num_calls} | self._call(name, "")
        self._num_calls += 1

    def _arguments(self) -> Iterator[dict[str, Any]]:
        """Return the part with what is new of the arguments: an object up to its last bracket."""
        size = len(self._held)
        for place, character in enumerate(self._held):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_escaped = character == "\\"
                self._is_string = character != '"'
            elif character == '"':
                self._is_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._state, size = "between", place + 1
                    break
        new, self._held = self._held[:size], self._held[size:]
        if new:
            yield {"index": self._num_calls - 1, "function": {"arguments": new}}

    def _find_next(self) -> None:
        """Drop what is between two calls."""
        start = self._notation.start
        if self._notation.kind == "tagged":
            place = self._held.find(start)
            self._state = "between" if place < 0 else "head"
            self._held = self._held[len(self._held) - _overlap(self._held, start) if place < 0 else place :]
        elif self._notation.kind == "list" and (found := _NEXT_IN_LIST.match(self._held)):
            self._state = "head"
            self._held = self._held[found.end() :]

    def _whole_calls(self) -> Iterator[dict[str, Any]]:
        """Return the calls of a text that has ended, whatever the order of their keys."""
        text, notation = self._held, self._notation
        if notation.kind == "tagged":
            bodies = [part.split(notation.end)[0] for part in text.split(notation.start)[1:]]
        else:
            bodies = [text.strip().removeprefix(notation.start)] if notation.start else [text]
        found: list[Any] = []
        for body in bodies:
            try:
                value = json.loads(body)
            except (ValueError, RecursionError):
                return
            found += value if notation.kind == "list" and isinstance(value, list) else [value]
        for value in found:
            name = value.get("name") if isinstance(value, dict) else None
            arguments = value.get(notation.arguments, value.get("arguments")) if isinstance(value, dict) else None
            if not isinstance(name, str) or not isinstance(arguments, dict):
                yield {"function": {"name": ""}}  # invalid: the text stays text
                continue
            yield self._call(name, json.dumps(arguments, ensure_ascii=False))

    def _call(self, name: str, arguments: str) -> dict[str, Any]:
        # Mistral's templates take ids of nine letters and digits only.
        number = secrets.token_hex(5)[:9] if self._notation is MISTRAL else f"call_{secrets.token_hex(12)}"
        return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def _overlap(text: str, start: str) -> int:
    """Return the length of the longest beginning of `start` that `text` ends with."""
    return next((size for size in range(min(len(start), len(text)), 0, -1) if text.endswith(start[:size])), 0)


def joined(parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return calls with one part each, from their parts in the order of a stream."""
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        known = calls.get(part["index"])
        if known is None:
            calls[part["index"]] = part | {"function": dict(part["function"])}
        else:
            function = known["function"]
            function["arguments"] = (function.get("arguments") or "") + (part["function"].get("arguments") or "")
    return list(calls.values())
