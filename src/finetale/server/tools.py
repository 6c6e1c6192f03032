"""Tool calls: how a chat template has them, the form of a required call, and calls in a model's text.

A template shows the notation that its model was trained on. For a template without one, a required call is JSON.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetale.errors import RequestError
from finetale.server.forms import JSON_SPACE, MAX_SCHEMA_CHARACTERS, Form
from finetale.server.messages import NamedTool, Tool, ToolParameters
from finetale.server.wire import CHAT, Shape, TokenText

_MAX_CALLS = 16


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


HERMES = Notation("<tool_call>", "arguments", "tagged", "</tool_call>")
MISTRAL = Notation("[TOOL_CALLS]", "arguments", "list")
LLAMA = Notation("<|python_tag|>", "parameters", "whole")
PLAIN = Notation("", "arguments", "whole")


def notation_of(template: str | None) -> Notation | None:
    """Return the notation of a chat template; None if the template does not show one that we know."""
    if not template or not re.search(r"\btools\b", template):
        return None
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return MISTRAL
    if "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template:
        return HERMES
    if re.search(r"""["']parameters["']\s*:""", template):
        return LLAMA
    return None


class Calls:
    """What the tools of one request mean for its prompt, its form and its response.

    Args:
        asked: the request's parameters.
        template: the model's chat template.
        has_form: whether the request asks for a form of the text.
        is_special: returns whether a text is a special token of the model.

    Attributes:
        tools: the tools for the chat template; None without any.
        form: the form of a required call, or of a text that may have calls; None if the text is free.
        shape: the form of the response.
        keeps_special: whether a special token is a part of calls, and must not be left out of the text.

    Raises:
        RequestError: the model does not support the request.
    """

    def __init__(
        self,
        asked: ToolParameters,
        template: str | None,
        *,
        has_form: bool = False,
        is_special: Callable[[str], bool] = lambda text: False,
    ) -> None:
        self.tools: list[dict[str, Any]] | None = None
        self.form: Form | None = None
        self.shape: Shape = CHAT
        self.keeps_special = False
        choice = asked.tool_choice or "auto"
        if not asked.tools or choice == "none":
            return
        if has_form:
            raise RequestError(
                "tools: can't be combined with response_format or another form of the text; leave out one of them, or "
                "set tool_choice to none.",
                "tools",
            )
        notation = notation_of(template)
        tools = list(asked.tools)
        self.tools = [tool.plain() for tool in tools]
        if choice == "auto":
            if notation is None:
                raise RequestError(
                    "tool_choice: the model's chat template has no tools, so it can't choose. Set tool_choice to "
                    "required, to a tool, or to none.",
                    "tool_choice",
                    code="no_tools",
                )
            self.keeps_special = is_special(notation.start)
            # A special token has no text for a grammar. A whole text is a call or not from its first character.
            if not self.keeps_special and notation.kind != "whole":
                with contextlib.suppress(RequestError):  # too large; the text is free then
                    self.form = _form(tools, notation, several=True, required=False)
        else:
            if isinstance(choice, NamedTool):
                tools = [tool for tool in tools if tool.function.name == choice.function.name]
            several = asked.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
            self.form = _form(tools, notation or PLAIN, several=several)
        self.shape = CallShape(notation or PLAIN, frozenset(tool.function.name for tool in tools))


def _form(tools: Sequence[Tool], notation: Notation, *, several: bool, required: bool = True) -> Form:
    """Return the form of calls, as a grammar of llguidance. Each schema is on its own, so that its references work.

    Args:
        tools: the tools that may be called.
        notation: how the model writes calls.
        several: whether several calls are allowed.
        required: whether the text is calls only. If not, it is any text, and what begins like a call is one.
    """
    rules = []
    for number, tool in enumerate(tools):
        head = f'{{"name": "{tool.function.name}", "{notation.arguments}": '
        schema = tool.schema_of_arguments | {"x-guidance": {"whitespace_pattern": JSON_SPACE}}
        rules.append(f"c{number}: {json.dumps(head)} a{number} {json.dumps('}')}")
        rules.append(f"a{number}: %json {json.dumps(schema, ensure_ascii=False)}")
    call = " | ".join(f"c{number}" for number in range(len(tools)))
    more = f"{{0,{_MAX_CALLS - 1}}}"
    if notation.kind == "whole":
        text, before, inner, after = "one", "", "call", ""
    elif notation.kind == "tagged":
        before, inner, after = "\n", "call", f"\n{notation.end}"
        text = f'one ("\\n" one){more}' if several else "one"
    else:
        text, before, after = "one", " [", "]"
        inner = f'call (", " call){more}' if several else "call"
    if required:
        begin = json.dumps(notation.start + before) if notation.kind != "whole" else '""'
    else:  # any text, until one that begins a call
        text, begin = "one* rest", f"begin {json.dumps(before)}"
        rules += ["rest: TEXT", f"begin[lazy]: TEXT {json.dumps(notation.start)}", r"TEXT: /(.|\n)*/"]
    rules.append(f"one: {begin} {inner} {json.dumps(after)}")
    source = "\n".join([f"start: {text}", f"call: {call}", *rules])
    if len(source) > MAX_SCHEMA_CHARACTERS:
        raise RequestError(
            f"tools: have {len(source):,} characters; the maximum is {MAX_SCHEMA_CHARACTERS:,}.", "tools"
        )
    return Form("calls" if required else "possible calls", source, "tools")


class CallReader:
    """Finds the calls in a text that arrives in pieces. Text before the first call is passed on at once."""

    def __init__(self, notation: Notation, names: frozenset[str]) -> None:
        self._notation = notation
        self._names = names
        self._held = ""
        self._is_call = False
        self._is_first = True

    def add(self, piece: str) -> str:
        """Add text; return the text that is certain to be no part of a call."""
        self._held += piece
        if self._is_call:
            return ""
        held = self._held.lstrip() if self._is_first else self._held
        if self._notation.kind == "whole":
            if not held:
                return ""
            starts = held[0] == "{" or self._notation.start.startswith(held) or held.startswith(self._notation.start)
            self._is_call = self._is_first and starts and bool(self._notation.start or held[0] == "{")
        elif (place := self._held.find(self._notation.start)) >= 0:
            self._is_call = True
            return self._pass(place)
        if self._is_call:
            return ""
        return self._pass(len(self._held) - _overlap(self._held, self._notation.start))

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the rest of the text, and the calls. What is no valid call is text."""
        calls = list(self._calls()) if self._is_call else []
        if not calls or not all(call["function"]["name"] in self._names for call in calls):
            return self._held, []
        return "", calls

    def _pass(self, length: int) -> str:
        passed, self._held = self._held[:length], self._held[length:]
        self._is_first = self._is_first and not passed
        return passed

    def _calls(self) -> Iterator[dict[str, Any]]:
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
            # Mistral's templates take ids of nine letters and digits only.
            number = secrets.token_hex(5)[:9] if notation is MISTRAL else f"call_{secrets.token_hex(12)}"
            function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            yield {"id": number, "type": "function", "function": function}


def _overlap(text: str, start: str) -> int:
    """Return the length of the longest beginning of `start` that `text` ends with."""
    return next((size for size in range(min(len(start), len(text)), 0, -1) if text.endswith(start[:size])), 0)


class CallShape(Shape):
    """Bodies of /v1/chat/completions with tool calls. Made for one request."""

    def __init__(self, notation: Notation, names: frozenset[str]) -> None:
        self._notation = notation
        self._names = names
        self._readers: dict[int, CallReader] = {}

    def head(self, name: str, created: int, model: str) -> dict[str, Any]:
        """See Shape."""
        return CHAT.head(name, created, model)

    def stream_head(self, head: dict[str, Any]) -> dict[str, Any]:
        """See Shape."""
        return CHAT.stream_head(head)

    def logprobs(self, tokens: Sequence[TokenText]) -> dict[str, Any]:
        """See Shape."""
        return CHAT.logprobs(tokens)

    def choice(self, index: int, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
        """See Shape."""
        reader = CallReader(self._notation, self._names)
        content = reader.add(text)
        rest, calls = reader.end()
        choice = CHAT.choice(index, (content + rest), "tool_calls" if calls and reason == "stop" else reason, logprobs)
        if calls:
            choice["message"] |= {"content": content.strip() or None, "tool_calls": calls}
        return choice

    def part(self, index: int, text: str, reason: str | None, logprobs: Any, *, first: bool) -> dict[str, Any]:
        """See Shape. The calls of a choice are in its last part."""
        reader = self._readers.setdefault(index, CallReader(self._notation, self._names))
        content = reader.add(text)
        calls: list[dict[str, Any]] = []
        if reason is not None:
            rest, calls = reader.end()
            content += rest
        part = CHAT.part(index, content, "tool_calls" if calls and reason == "stop" else reason, logprobs, first=first)
        if not content and not first:
            del part["delta"]["content"]
        if calls:
            part["delta"]["tool_calls"] = [{"index": place} | call for place, call in enumerate(calls)]
        return part
