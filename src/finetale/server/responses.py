"""OpenAI's responses API, in terms of chats: requests are converted to chat requests, and responses back.

Nothing is stored, so a request holds the whole conversation. Knows no engine.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from finetale.errors import RequestError
from finetale.server import wire
from finetale.server.call_reader import joined
from finetale.server.extensions import TemplateVariables
from finetale.server.forms import Text
from finetale.server.messages import MAX_TOOLS, Name

_NO_EFFECT = "Accepted, without effect."
_Switch = Annotated[bool, Field(strict=True)]
_LOGPROBS = "message.output_text.logprobs"
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_NAMES = {
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
}
"""Parameters of chat requests → those of this API, for messages."""


class _Part(BaseModel):
    """A part of a message. Only text is supported."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: Text | None = None
    refusal: Text | None = None

    @model_validator(mode="after")
    def _has_text(self) -> _Part:
        if self.plain() is None:
            raise ValueError(f"{'refusal' if self.type == 'refusal' else 'text'}: is required")
        return self

    def plain(self) -> str | None:
        return self.refusal if self.type == "refusal" else self.text


# With a discriminator, errors name the part that is wrong.
_TEXT_OR_LIST = Discriminator(lambda value: "list" if isinstance(value, list) else "text")
_Parts = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[_Part], Field(fail_fast=True), Tag("list")], _TEXT_OR_LIST
]


def _text(content: str | list[_Part] | None) -> str:
    return content if isinstance(content, str) else "".join(part.plain() or "" for part in content or ())


class _Item(BaseModel):
    """An item of a conversation: a message, a call of a tool, or its result.

    Clients send the items of a response back with all their fields. Unknown fields are ignored, as in OpenAI's API.
    """

    model_config = ConfigDict(extra="ignore")

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = Field(
        "message", description="reasoning: accepted, and left out."
    )
    role: Literal["system", "developer", "user", "assistant"] | None = Field(None, description="Of a message.")
    content: _Parts | None = Field(None, description="Of a message.")
    call_id: Text | None = Field(None, description="Of a call and its result.")
    name: Name | None = Field(None, description="Of a call.")
    arguments: Text | None = Field(None, description="Of a call: JSON.")
    output: _Parts | None = Field(None, description="Of the result of a call.")

    @model_validator(mode="after")
    def _is_whole(self) -> _Item:
        needed = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }
        for name in needed.get(self.type, ()):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: is required")
        return self


def _known_item(value: Any) -> Any:
    """Report a type of item that is not supported."""
    kind = value.get("type", "message") if isinstance(value, dict) else "message"
    if isinstance(kind, str) and kind not in _ITEMS:
        stored = " Nothing is stored, so send the item itself." if kind == "item_reference" else ""
        raise ValueError(f"type: {kind} is not supported; supported are {', '.join(_ITEMS)}.{stored}".rstrip("."))
    if kind == "reasoning":
        return {"type": "reasoning"}
    return value


_Items = Annotated[list[Annotated[_Item, BeforeValidator(_known_item)]], Field(min_length=1, fail_fast=True)]


class _Format(BaseModel):
    """The form of the text."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    content: dict[str, Any] | None = Field(None, alias="schema", description="Required for json_schema.")
    description: Text | None = None
    strict: _Switch | None = Field(None, description="Accepted, without effect: a schema is always enforced.")

    @model_validator(mode="after")
    def _has_schema(self) -> _Format:
        if self.type == "json_schema" and self.content is None:
            raise ValueError("schema: is required for json_schema")
        return self


class _TextOptions(BaseModel):
    """Options of the text."""

    model_config = ConfigDict(extra="forbid")

    format: _Format | None = None
    verbosity: Text | None = Field(None, description=_NO_EFFECT)


class _Tool(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"]
    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: _Switch | None = Field(None, description="Accepted, without effect: a schema is always enforced.")

    def converted(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


class _NamedTool(BaseModel):
    """The function that the model must call."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"]
    name: Name


class _StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid")

    include_obfuscation: bool | None = Field(None, strict=True, description=_NO_EFFECT)


class ResponsesRequest(wire.SamplingParameters, TemplateVariables):
    """Body of POST /v1/responses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Annotated[Annotated[Text, Tag("text")] | Annotated[_Items, Tag("list")], _TEXT_OR_LIST] = Field(
        description="A message of the user, or the conversation."
    )
    instructions: Text | None = Field(None, description="Message of the system before the conversation.")
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        strict=True,
        description="Maximum number of tokens to generate. Default: what the context has room for.",
    )
    top_logprobs: int | None = Field(None, ge=0, le=wire.MAX_CHAT_LOGPROBS, strict=True)
    include: list[Text] | None = Field(None, description=f"{_LOGPROBS}: return log-probabilities. Others: no effect.")
    text: _TextOptions | None = None
    tools: Annotated[list[_Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | _NamedTool | None = None
    parallel_tool_calls: _Switch | None = None
    stream: _Switch | None = False
    stream_options: _StreamOptions | None = None
    previous_response_id: Text | None = Field(None, description="Not supported: nothing is stored.")
    conversation: Any = Field(None, description="Not supported: nothing is stored.")
    prompt: Any = Field(None, description="Not supported: nothing is stored.")
    background: _Switch | None = Field(None, description="true is not supported.")
    store: _Switch | None = Field(None, description="Accepted; nothing is stored.")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="Accepted, without effect: a conversation that is too long is rejected."
    )
    reasoning: dict[str, Any] | None = Field(None, description=_NO_EFFECT)
    max_tool_calls: int | None = Field(None, description=_NO_EFFECT)
    prompt_cache_retention: Text | None = Field(None, description=_NO_EFFECT)
    prompt_cache_options: dict[str, Any] | None = Field(None, description=_NO_EFFECT)

    @model_validator(mode="after")
    def _is_possible(self) -> ResponsesRequest:
        for name in ("previous_response_id", "conversation"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: is not supported, because nothing is stored; send the whole conversation")
        if self.prompt is not None:
            raise ValueError("prompt: is not supported, because nothing is stored; send the text as instructions")
        if self.background:
            raise ValueError("background: is not supported, because nothing is stored; leave it out")
        return self

    def chat(self) -> wire.ChatRequest:
        """Return the chat request with the same meaning.

        Raises:
            RequestError: the parameters contradict each other.
        """
        given = self.model_fields_set & set(wire.SamplingParameters.model_fields)
        body: dict[str, Any] = {name: getattr(self, name) for name in given}
        for name in ("parallel_tool_calls", "chat_template_kwargs"):
            body[name] = getattr(self, name)
        body |= {"messages": self._messages(), "max_completion_tokens": self.max_output_tokens}
        if self.top_logprobs or _LOGPROBS in (self.include or ()):
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.tools:
            body["tools"] = [tool.converted() for tool in self.tools]
        choice = self.tool_choice
        body["tool_choice"] = (
            {"type": "function", "function": {"name": choice.name}} if isinstance(choice, _NamedTool) else choice
        )
        if self.text is not None and self.text.format is not None:
            wanted = self.text.format
            schema = {"name": wanted.name, "schema": wanted.content} if wanted.type == "json_schema" else None
            body["response_format"] = {"type": wanted.type, "json_schema": schema}
        return wire.valid(wire.ChatRequest, {name: value for name, value in body.items() if value is not None})

    def _messages(self) -> list[dict[str, Any]]:
        """Return the messages of the chat: calls belong to the message before them."""
        items = [_Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        for item in items:
            if item.type == "message":
                assert item.role is not None
                role, text = item.role.replace("developer", "system"), _text(item.content)
                if len(messages) == 1 and self.instructions and role == "system":
                    # Many chat templates take one message of the system.
                    messages[0]["content"] += f"\n\n{text}"
                else:
                    messages.append({"role": role, "content": text})
            elif item.type == "function_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                function = {"name": item.name, "arguments": item.arguments}
                messages[-1].setdefault("tool_calls", []).append({"id": item.call_id, "function": function})
            elif item.type == "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        if not messages:
            raise RequestError("input: has no message.", "input")
        return messages


def renamed(error: RequestError) -> RequestError:
    """Return an error of a chat request with the names of this API."""
    parameter, message = error.parameter, error.message.replace("max_tokens is", "max_output_tokens is")
    for theirs, ours in _NAMES.items():
        if parameter is not None and parameter.startswith(theirs):
            if message.startswith(parameter):
                message = ours + message.removeprefix(theirs)
            parameter = ours + parameter.removeprefix(theirs)
            break
    return RequestError(message, parameter, status=error.status, kind=error.kind, code=error.code)


class Reply:
    """Converts a chat response to one of this API.

    Args:
        asked: the request.
    """

    def __init__(self, asked: ResponsesRequest) -> None:
        choice: Any = asked.tool_choice or "auto"
        wanted = asked.text.format if asked.text is not None else None
        self._number = 0
        self._head: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "metadata": asked.metadata or {},
            "model": asked.model,
            "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {
                "format": {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)
            },
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [{"strict": None} | tool.model_dump() for tool in asked.tools or ()],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
        }

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body of a response that is not a stream."""
        choice = body["choices"][0]
        message, reason = choice["message"], choice["finish_reason"]
        calls = message.get("tool_calls") or []
        output = [] if calls and not message["content"] else [_message(message["content"] or "", _tokens(choice))]
        output += [_call(call) for call in calls]
        return self._ended(reason, output, body.get("usage"))

    async def events(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Yield the events of a stream, from those of a chat."""
        writing = _Writing()
        reason, usage = None, None
        for kind in ("created", "in_progress"):
            yield self._event({"type": f"response.{kind}", "response": self._head})
        async for body in wire.bodies(chunks):
            if "error" in body:
                error = {"code": "server_error", "message": body["error"]["message"]}
                failed = self._head | {"status": "failed", "error": error, "output": writing.output}
                yield self._event({"type": "response.failed", "response": failed})
                return
            usage = body.get("usage") or usage
            for choice in body["choices"]:
                reason = choice["finish_reason"] or reason
                for event in writing.add(choice):
                    yield self._event(event)
        status = _status(reason)
        for event in writing.end(status):
            yield self._event(event)
        ended = self._ended(reason, writing.output, usage)
        yield self._event({"type": f"response.{status}", "response": ended})

    def _ended(self, reason: str | None, output: list[Any], usage: dict[str, int] | None) -> dict[str, Any]:
        status = _status(reason)
        if status == "incomplete" and output:  # the last item was cut
            output[-1] = output[-1] | {"status": status}
        counts = usage or {}
        return self._head | {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": output,
            "usage": {
                "input_tokens": counts.get("prompt_tokens", 0),
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": counts.get("completion_tokens", 0),
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts.get("total_tokens", 0),
            },
        }

    def _event(self, body: dict[str, Any]) -> bytes:
        body = {"type": body["type"], "sequence_number": self._number} | body
        self._number += 1
        return b"event: " + str(body["type"]).encode() + b"\n" + wire.event(body)


class _Writing:
    """The output items of a stream.

    Attributes:
        output: the items that are complete.
    """

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None  # the item that is being written
        self._tokens: list[dict[str, Any]] = []
        self._call: int | None = None  # index of the call that is being written

    def add(self, choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Return the events for a piece of a choice."""
        delta = choice["delta"]
        self._tokens += _tokens(choice)
        if text := delta.get("content"):
            if self._item is None or self._item["type"] != "message":
                yield from self._begin(_message("", []))
            yield from self._text(text)
        for part in delta.get("tool_calls") or ():
            if self._call != part["index"]:
                self._call = part["index"]
                yield from self._begin(_call(joined([part])[0], arguments=""))
            assert self._item is not None
            if new := part["function"].get("arguments"):
                self._item["arguments"] += new
                yield self._placed("function_call_arguments.delta", delta=new)

    def end(self, status: str) -> Iterator[dict[str, Any]]:
        """Return the events for the end of the stream."""
        if self._item is None:  # the text is empty
            yield from self._begin(_message("", []))
        yield from self._finish(status)

    def _begin(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._finish("completed")
        self._item = item
        shown = item | {"status": "in_progress"}
        if item["type"] == "message":
            yield self._placed("output_item.added", item=shown | {"content": []})
            yield self._placed("content_part.added", content_index=0, part=item["content"][0])
        else:
            yield self._placed("output_item.added", item=shown)

    def _text(self, text: str) -> Iterator[dict[str, Any]]:
        assert self._item is not None
        part = self._item["content"][0]
        part["text"] += text
        tokens, self._tokens = self._tokens, []
        part["logprobs"] = [*part["logprobs"], *tokens]
        yield self._placed("output_text.delta", content_index=0, delta=text, logprobs=tokens)

    def _finish(self, status: str) -> Iterator[dict[str, Any]]:
        if self._item is None:
            return
        item = self._item | {"status": status}
        if item["type"] == "message":
            part = item["content"][0]
            yield self._placed("output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"])
            yield self._placed("content_part.done", content_index=0, part=part)
        else:
            yield self._placed("function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        yield self._placed("output_item.done", item=item)
        self.output.append(item)
        self._item = None

    def _placed(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Return an event of the item that is being written."""
        assert self._item is not None
        place: dict[str, Any] = {"output_index": len(self.output)}
        if not kind.startswith("output_item"):
            place["item_id"] = self._item["id"]
        return {"type": f"response.{kind}"} | place | fields


def _status(reason: str | None) -> str:
    return "incomplete" if reason == "length" else "completed"


def _tokens(choice: dict[str, Any]) -> list[dict[str, Any]]:
    return (choice.get("logprobs") or {}).get("content") or []


def _message(text: str, tokens: list[dict[str, Any]]) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "status": "completed"}
    return head | {"content": [part]}


def _call(call: dict[str, Any], **values: str) -> dict[str, Any]:
    function = call["function"]
    head = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "status": "completed"}
    return head | {"call_id": call["id"], "name": function["name"], "arguments": function["arguments"]} | values
