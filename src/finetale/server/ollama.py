"""Ollama's API, in terms of OpenAI's: requests are converted to OpenAI's, and responses back. Knows no engine."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterable, AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from finetale.errors import RequestError
from finetale.server import wire
from finetale.server.call_reader import joined
from finetale.server.forms import Text
from finetale.server.messages import Tool

_Switch = Annotated[bool, Field(strict=True)]
_DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}
"""Ollama's own defaults."""
_OPTIONS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Ollama's options → OpenAI's parameters, or ours. Others (`num_ctx`, `num_thread` …) concern Ollama's own engine."""


class _Request(BaseModel):
    """Parameters of both kinds of requests. Unknown ones are ignored, as Ollama does."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: Text
    stream: _Switch | None = True
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: dict[str, Any] | None = None

    def parameters(self) -> dict[str, Any]:
        """Return what both kinds of requests of OpenAI's API have."""
        options = self.options or {}
        given = {ours: options[theirs] for theirs, ours in _OPTIONS.items() if options.get(theirs) is not None}
        found = {"model": self.model} | _DEFAULTS | given
        most = options.get("num_predict")
        if isinstance(most, int) and most > 0:  # -1 and -2: as many as there is room for
            found["max_tokens"] = most
        if self.format == "json":
            found["response_format"] = {"type": "json_object"}
        elif self.format:
            found["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": self.format}}
        return found | ({"stream": True, "stream_options": {"include_usage": True}} if self.stream is not False else {})


class _CalledFunction(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: Text
    arguments: dict[str, Any] = Field(default_factory=dict)


class _Call(BaseModel):
    model_config = ConfigDict(extra="ignore")

    function: _CalledFunction


class _Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Text
    content: Text | None = ""
    images: list[Any] | None = None
    tool_calls: list[_Call] | None = None
    tool_name: Text | None = None

    def converted(self) -> dict[str, Any]:
        """Return the message as OpenAI's API has it."""
        _check_no_images(self.images)
        found: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.tool_calls:
            found["tool_calls"] = [
                {
                    "id": f"call_{number}",
                    "function": {
                        "name": call.function.name,
                        "arguments": json.dumps(call.function.arguments, ensure_ascii=False),
                    },
                }
                for number, call in enumerate(self.tool_calls)
            ]
        return found | ({"name": self.tool_name} if self.tool_name else {})


class ChatRequest(_Request):
    """Body of POST /api/chat."""

    messages: list[_Message] = Field(default_factory=list)
    tools: list[Tool] | None = None

    def converted(self) -> dict[str, Any]:
        """Return the body of a chat request of OpenAI's API."""
        tools = {"tools": [tool.model_dump() for tool in self.tools]} if self.tools else {}
        return self.parameters() | {"messages": [message.converted() for message in self.messages]} | tools


class GenerateRequest(_Request):
    """Body of POST /api/generate."""

    prompt: Text = ""
    system: Text | None = None
    suffix: Text | None = None
    raw: _Switch | None = None
    images: list[Any] | None = None

    def converted(self, *, chats: bool) -> dict[str, Any]:
        """Return the body of a request of OpenAI's API.

        Args:
            chats: whether it is a chat request. Its prompt is then a message, as in Ollama.
        """
        _check_no_images(self.images)
        if self.suffix:
            raise RequestError("suffix: is not supported.", "suffix")
        if not chats:
            return self.parameters() | {"prompt": self.prompt}
        first = [{"role": "system", "content": self.system}] if self.system else []
        return self.parameters() | {"messages": [*first, {"role": "user", "content": self.prompt}]}


class EmbedRequest(BaseModel):
    """Body of POST /api/embed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: Text
    input: Annotated[list[Text], Field(fail_fast=True)] | Text
    dimensions: int | None = None

    def converted(self) -> dict[str, Any]:
        """Return the body of a request of OpenAI's API."""
        return {"input": self.input, "dimensions": self.dimensions}


class ShowRequest(BaseModel):
    """Body of POST /api/show. Old clients call the model `name`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: Text | None = None
    name: Text | None = None


class Reply:
    """Converts a response of OpenAI's API to Ollama's.

    Args:
        model: name of the model, as the client wrote it.
        chats: whether the response is a message, as from /api/chat.
    """

    def __init__(self, model: str, *, chats: bool) -> None:
        self._model = model
        self._chats = chats
        self._began = time.perf_counter_ns()
        self._first: int | None = None

    def loaded(self) -> dict[str, Any]:
        """Return the response to a request without a prompt: the model is loaded."""
        return self._part({}) | {"done": True, "done_reason": "load"}

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body of a response that is not a stream."""
        choice = body["choices"][0]
        message = choice.get("message") or {"content": choice.get("text")}
        return self._part(message) | self._end(choice["finish_reason"], body.get("usage"))

    async def lines(self, events: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Yield the lines of a stream, from the server-sent events of OpenAI's API."""
        reason, usage = None, None
        calls: list[dict[str, Any]] = []
        async for body in wire.bodies(events):
            if "error" in body:
                yield _line({"error": body["error"]["message"]})
                return
            usage = body.get("usage") or usage
            for choice in body["choices"]:
                self._first = self._first or time.perf_counter_ns()
                reason = choice["finish_reason"] or reason
                message = choice.get("delta") or {"content": choice.get("text")}
                calls += message.get("tool_calls") or []
                if message.get("content"):
                    yield _line(self._part({"content": message["content"]}) | {"done": False})
        if calls:  # Ollama's clients expect whole calls
            yield _line(self._part({"tool_calls": joined(calls)}) | {"done": False})
        yield _line(self._part({}) | self._end(reason, usage))

    def _part(self, message: dict[str, Any]) -> dict[str, Any]:
        head = {"model": self._model, "created_at": datetime.now(UTC).isoformat()}
        text = message.get("content") or ""
        if not self._chats:
            return head | {"response": text}
        shown: dict[str, Any] = {"role": "assistant", "content": text}
        if calls := message.get("tool_calls"):
            shown["tool_calls"] = [found for call in calls if (found := _call(call["function"]))]
        return head | {"message": shown}

    def _end(self, reason: str | None, usage: dict[str, int] | None) -> dict[str, Any]:
        now = time.perf_counter_ns()
        first = self._first or self._began
        counts = usage or {}
        return {
            "done": True,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": now - self._began,
            "load_duration": 0,
            "prompt_eval_count": counts.get("prompt_tokens", 0),
            "prompt_eval_duration": first - self._began,
            "eval_count": counts.get("completion_tokens", 0),
            "eval_duration": now - first,
        }


def embedded(model: str, began: int, body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of /api/embed.

    Args:
        model: name of the model, as the client wrote it.
        began: `time.perf_counter_ns()` at the begin.
        body: the body of OpenAI's API.
    """
    return {
        "model": model,
        "embeddings": [item["embedding"] for item in body["data"]],
        "total_duration": time.perf_counter_ns() - began,
        "load_duration": 0,
        "prompt_eval_count": body["usage"]["prompt_tokens"],
    }


def described(name: str, created: int, digest: str, num_parameters: int) -> dict[str, Any]:
    """Return an entry of /api/tags."""
    return {
        "name": name,
        "model": name,
        "modified_at": datetime.fromtimestamp(created, UTC).isoformat(),
        "size": 0,
        "digest": digest,
        "details": details(num_parameters),
    }


def details(num_parameters: int) -> dict[str, Any]:
    """Return the `details` of a model."""
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": "",
        "families": [],
        "parameter_size": f"{num_parameters / 1e6:.1f}M" if num_parameters else "",
        "quantization_level": "",
    }


def shown(template: str | None, context: int, num_parameters: int, *, calls_tools: bool) -> dict[str, Any]:
    """Return the body of /api/show."""
    return {
        "modelfile": "",
        "parameters": "",
        "template": template or "",
        "details": details(num_parameters),
        "model_info": {
            "general.architecture": "finetale",
            "general.parameter_count": num_parameters,
            "finetale.context_length": context,
        },
        "capabilities": ["completion", *(["tools"] if calls_tools else [])],
    }


def _check_no_images(images: list[Any] | None) -> None:
    if images:
        raise RequestError("images: are not supported.", "images")


def _call(function: dict[str, str]) -> dict[str, Any] | None:
    """Return a call in Ollama's form; None if its arguments are no JSON object, as in a text that was cut."""
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return None
    if not isinstance(arguments, dict):
        return None
    return {"function": {"name": function["name"], "arguments": arguments}}


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
