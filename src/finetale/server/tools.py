"""Tool calls: how a chat template has them, the form of a required call, and responses with calls.

A template shows the notation that its model was trained on. For a template without one, a required call is JSON.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from finetale.errors import RequestError
from finetale.server.call_reader import HERMES, LLAMA, MISTRAL, PLAIN, CallReader, Notation, joined
from finetale.server.forms import JSON_SPACE, MAX_SCHEMA_CHARACTERS, Form, closed
from finetale.server.messages import NamedTool, Tool, ToolParameters
from finetale.server.wire import CHAT, Shape, TokenText

_MAX_CALLS = 16


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
        schema = closed(tool.schema_of_arguments) | {"x-guidance": {"whitespace_pattern": JSON_SPACE}}
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


class CallShape(Shape):
    """Bodies of /v1/chat/completions with tool calls. Made for one request."""

    def __init__(self, notation: Notation, names: frozenset[str]) -> None:
        self._notation = notation
        self._names = names
        self._readers: dict[int, CallReader] = {}
        self._calling: set[int] = set()  # choices with a call

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
        (content, parts), (rest, more) = reader.add(text), reader.end()
        calls = [{key: call[key] for key in call if key != "index"} for call in joined([*parts, *more])]
        choice = CHAT.choice(index, content + rest, "tool_calls" if calls and reason == "stop" else reason, logprobs)
        if calls:
            choice["message"] |= {"content": (content + rest) or None, "tool_calls": calls}
        return choice

    def part(self, index: int, text: str, reason: str | None, logprobs: Any, *, first: bool) -> dict[str, Any]:
        """See Shape. Calls come as the model writes them: the name of each, then parts of its arguments."""
        reader = self._readers.setdefault(index, CallReader(self._notation, self._names))
        content, calls = reader.add(text)
        if reason is not None:
            rest, more = reader.end()
            content, calls = content + rest, [*calls, *more]
        if calls:
            self._calling.add(index)
        called = reason == "stop" and index in self._calling
        part = CHAT.part(index, content, "tool_calls" if called else reason, logprobs, first=first)
        if not content and not first:
            del part["delta"]["content"]
        if calls:
            part["delta"]["tool_calls"] = joined(calls)
        return part
