"""Request and response bodies of OpenAI's completions APIs. Pure functions; knows no network and no engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from finetale.config import SamplingSettings
from finetale.errors import RequestError
from finetale.server.extensions import ChatExtensions, Extensions
from finetale.server.forms import FormParameters, Text
from finetale.server.messages import Message, ToolParameters
from finetale.surrogates import SURROGATE

MAX_LOGPROBS = 5
MAX_CHAT_LOGPROBS = 20
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1000
MAX_BIASES = 300
_MAX_PARAMETERS = 100
LARGEST_SEED = 2**63 - 1

TokenId = Annotated[int, Field(ge=0, strict=True)]


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def checked_prompt(value: Any) -> Any:
    """Return a valid prompt. Report only the first problem, because a body can have a million of them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, token ids, or a non-empty list of either")
    if isinstance(value[0], str):
        if not all(isinstance(item, str) for item in value):
            raise ValueError("must be strings or token ids, not both")
        return value
    lists = value if isinstance(value[0], list) else [value]
    for ids in lists:
        if not isinstance(ids, list) or not ids:
            raise ValueError("must be non-empty lists of token ids")
        if not all(type(token) is int and token >= 0 for token in ids):
            raise ValueError("token ids must be non-negative integers")
    return value


def as_list(prompt: Any) -> list[str] | list[list[int]]:
    """Return a valid prompt as a list of strings or of lists of token ids."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"must have at most {MAX_BIASES} tokens")
    return value


AnyPrompt = (
    Text
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Text], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
)
_Biases = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100, strict=True)]], BeforeValidator(_few)]


_NO_EFFECT = "Accepted, without effect."


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = Field(False, strict=True, description="Send the usage in a last chunk.")
    continuous_usage_stats: bool | None = Field(
        None, strict=True, description="Extension: with include_usage, send the usage so far in each chunk."
    )
    include_obfuscation: bool | None = Field(None, strict=True, description=_NO_EFFECT)


_Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
_Stops = Annotated[list[_Stop], Field(max_length=MAX_STOPS)]
_DEFAULT_MAX_TOKENS = 16
"""Default `max_tokens`, as in OpenAI's API."""


class SamplingParameters(BaseModel):
    """Parameters of all requests that generate text. Types are strict.

    Some parameters of OpenAI's API concern its own service: where a response is stored, how it is billed. Clients send
    them with each request, so they are accepted and have no effect.
    """

    model: Text = Field(description="Name of the model, as /v1/models lists it.")
    temperature: float | None = Field(1.0, ge=0, le=2, strict=True, description="0: always the most likely token.")
    top_p: float | None = Field(1.0, gt=0, le=1, strict=True)
    stop: Annotated[_Stops, BeforeValidator(_one_or_many, json_schema_input_type=_Stop | _Stops)] | None = None
    seed: int | None = Field(None, ge=-LARGEST_SEED - 1, le=LARGEST_SEED, strict=True)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2, strict=True)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2, strict=True)
    logit_bias: _Biases | None = Field(
        None, max_length=MAX_BIASES, description="Token id to the value added to its score."
    )
    user: Text | None = None
    store: bool | None = Field(None, strict=True, description=_NO_EFFECT)
    metadata: dict[str, Any] | None = Field(None, description=_NO_EFFECT)
    service_tier: Text | None = Field(None, description=_NO_EFFECT)
    prompt_cache_key: Text | None = Field(None, description=_NO_EFFECT)
    safety_identifier: Text | None = Field(None, description=_NO_EFFECT)
    top_k: int | None = Field(
        0, ge=-1, strict=True, description="Extension: sample from the k most likely tokens. 0 and -1: all."
    )
    min_p: float | None = Field(0.0, ge=0, le=1, strict=True, description="Extension.")
    repetition_penalty: float | None = Field(1.0, ge=0.01, le=10, strict=True, description="Extension.")


class _GenerationRequest(SamplingParameters, FormParameters, Extensions):
    """Parameters of completions and chats. Unknown parameters are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int | None = Field(1, ge=1, le=128, strict=True, description="Completions per prompt.")
    stream: bool | None = Field(False, strict=True)
    stream_options: StreamOptions | None = None


class CompletionRequest(_GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Annotated[Any, PlainValidator(checked_prompt, json_schema_input_type=AnyPrompt)] = Field(
        "", description="String, token ids, or a list of either. Empty: a new document."
    )
    max_tokens: int | None = Field(
        _DEFAULT_MAX_TOKENS, ge=0, strict=True, description="Maximum number of tokens to generate."
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=128,
        strict=True,
        description="Completions to generate; the n with the highest mean log-probability per token are returned.",
    )
    echo: bool | None = Field(False, strict=True, description="Return the prompt before the completion.")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, strict=True)
    suffix: Text | None = Field(None, description="Not supported.")

    @model_validator(mode="after")
    def _together(self) -> CompletionRequest:
        if self.suffix:
            raise ValueError("suffix: is not supported")
        self.form()
        self.check_extensions(stream=self.stream, echo=self.echo)
        made = self.best_of or self.n or 1
        if made < (self.n or 1):
            raise ValueError("best_of: must be at least n")
        if self.stream and made > (self.n or 1):
            raise ValueError("best_of: can't be larger than n in a stream")
        if not self.max_tokens and self.max_tokens is not None and not self.echo:
            raise ValueError("max_tokens: must be at least 1 unless echo is true")
        _check_together(self.stream, self.stream_options, self.logit_bias)
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list of strings or of lists of token ids."""
        return as_list(self.prompt)

    @property
    def wanted(self) -> int:
        """Maximum number of tokens to generate."""
        return _DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def size(self) -> int:
        """Number of characters or token ids in all prompts."""
        return sum(map(len, self.prompts))

    @property
    def count(self) -> int:
        """Number of completions to generate per prompt."""
        return self.best_of or self.n or 1

    def sampling(self, seed: int) -> SamplingSettings:
        """Return the sampling settings; `seed` applies if the request has none."""
        given = {
            "max_new_tokens": self.max_tokens or 1,
            # Dividing by less would overflow; the most likely token would be chosen anyway.
            "temperature": 1.0 if self.temperature is None else self.temperature if self.temperature >= 1e-3 else 0.0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": max(0, self.top_k or 0),
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty or 1.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "stop": tuple(self.stop or ()),
            "seed": (seed if self.seed is None else self.seed) % 2**32,
        }
        return SamplingSettings.resolve(given)


class ChatRequest(_GenerationRequest, ToolParameters, ChatExtensions):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1, strict=True)
    max_completion_tokens: int | None = Field(
        None,
        ge=1,
        strict=True,
        description="Maximum number of tokens to generate. Default: what the context has room for.",
    )
    logprobs: bool | None = Field(False, strict=True)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_CHAT_LOGPROBS, strict=True)
    modalities: list[Literal["text"]] | None = Field(None, description=_NO_EFFECT)
    reasoning_effort: Text | None = Field(None, description=_NO_EFFECT)
    verbosity: Text | None = Field(None, description=_NO_EFFECT)

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: requires logprobs to be true")
        self.form()
        self.check_tools()
        self.check_extensions(stream=self.stream)
        self.template_options()
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens: is the same as max_completion_tokens; set only one of them")
        _check_together(self.stream, self.stream_options, self.logit_bias)
        return self

    def completion(self, ids: list[int]) -> CompletionRequest:
        """Return the request as a completion of the conversation's token ids."""
        shared = {name: getattr(self, name) for name in _GenerationRequest.model_fields}
        wanted = self.max_tokens if self.max_tokens is not None else self.max_completion_tokens
        request = CompletionRequest.model_validate(shared | {"prompt": ids, "max_tokens": wanted})
        # Conversations may ask for more of them than completions.
        return request.model_copy(update={"logprobs": (self.top_logprobs or 0) if self.logprobs else None})


Body = TypeVar("Body", bound=BaseModel)


def read(kind: type[Body], body: bytes) -> Body:
    """Parse and validate a request body.

    Raises:
        RequestError: names the parameter and the rule that it breaks.
    """
    try:
        values = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise RequestError("The body must be a JSON object.")
    if len(values) > _MAX_PARAMETERS:
        raise RequestError(f"The body has {len(values):,} parameters; the maximum is {_MAX_PARAMETERS}.")
    request = valid(kind, values)
    if b"\\u" in body and _has_surrogate(values):
        raise RequestError("The body has an unpaired surrogate, which is not valid text.")
    return request


def valid(kind: type[Body], values: dict[str, Any]) -> Body:
    """Validate the parameters of a request.

    Raises:
        RequestError: names the parameter and the rule that it breaks.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda item: len(item["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        parameter = _path(first["loc"], values)
        if first["type"] == "value_error" and ": " in message:
            name, _, message = message.partition(": ")
            parameter = f"{parameter}.{name}" if parameter else name
        if first["type"] == "extra_forbidden":
            raise RequestError(f"Unknown parameter: {parameter}.", parameter) from None
        if first["type"] == "missing":
            raise RequestError(
                f"Missing required parameter: {parameter}.", parameter, code="missing_required_parameter"
            ) from None
        raise RequestError(f"{parameter}: {message[:1].lower()}{message[1:]}.", parameter) from None


def _path(location: Sequence[int | str], values: Any) -> str:
    """Return the path of a value, as messages[1].content. Names of types in the location are left out."""
    path = ""
    for step in location:
        if isinstance(step, int) and isinstance(values, list):
            path += f"[{step}]"
            values = values[step] if step < len(values) else None
        elif isinstance(step, str) and isinstance(values, dict) and step.isidentifier():
            path += f".{step}" if path else step
            values = values.get(step)
    return path


def _has_surrogate(value: Any) -> bool:
    """Return whether a string in a JSON value has a surrogate, which UTF-8 cannot encode."""
    waiting = [value]  # without recursion, because the value can be nested deeply
    while waiting:
        each = waiting.pop()
        if isinstance(each, str) and SURROGATE.search(each) is not None:
            return True
        if isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            waiting += each
    return False


def _check_together(
    stream: bool | None, stream_options: StreamOptions | None, logit_bias: Mapping[str, float] | None
) -> None:
    if stream_options is not None and not stream:
        raise ValueError("stream_options: requires stream to be true")
    for token in logit_bias or {}:
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise ValueError("logit_bias: keys must be token ids")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token's text, log-probability in nats, most likely alternatives, and offset in the completion."""

    text: str
    logprob: float | None
    top: list[tuple[str, float]]
    offset: int


class Shape(Protocol):
    """The form of a route's response bodies."""

    def head(self, name: str, created: int, model: str) -> dict[str, Any]:
        """Return the fields of every body."""

    def stream_head(self, head: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of every event of a stream."""

    def choice(self, index: int, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
        """Return a choice."""

    def part(self, index: int, text: str, reason: str | None, logprobs: Any, *, first: bool) -> dict[str, Any]:
        """Return a piece of a choice, for a stream."""

    def logprobs(self, tokens: Sequence[TokenText]) -> dict[str, Any]:
        """Return the log-probabilities of tokens."""


class _TextShape:
    """Bodies of /v1/completions."""

    def head(self, name: str, created: int, model: str) -> dict[str, Any]:
        return {"id": f"cmpl-{name}", "object": "text_completion", "created": created, "model": model}

    def stream_head(self, head: dict[str, Any]) -> dict[str, Any]:
        return head

    def choice(self, index: int, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}

    def part(self, index: int, text: str, reason: str | None, logprobs: Any, *, first: bool) -> dict[str, Any]:
        return self.choice(index, text, reason, logprobs)

    def logprobs(self, tokens: Sequence[TokenText]) -> dict[str, Any]:
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            # The chosen token is always included, as in OpenAI's API.
            "top_logprobs": [{token.text: token.logprob} | dict(token.top) if token.top else None for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }


class _ChatShape:
    """Bodies of /v1/chat/completions."""

    def head(self, name: str, created: int, model: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{name}", "object": "chat.completion", "created": created, "model": model}

    def stream_head(self, head: dict[str, Any]) -> dict[str, Any]:
        return head | {"object": "chat.completion.chunk"}

    def choice(self, index: int, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def part(self, index: int, text: str, reason: str | None, logprobs: Any, *, first: bool) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, tokens: Sequence[TokenText]) -> dict[str, Any]:
        return {
            "content": [
                _chat_token(token.text, token.logprob)
                | {"top_logprobs": [_chat_token(text, value) for text, value in token.top]}
                for token in tokens
            ],
            "refusal": None,
        }


def _chat_token(text: str, logprob: float | None) -> dict[str, Any]:
    part = text.removeprefix("bytes:").replace("\\x", "")  # the bytes of a part of a character, in hexadecimal
    data = bytes.fromhex(part) if text.startswith("bytes:\\x") else text.encode()
    return {"token": text, "logprob": logprob, "bytes": list(data)}


TEXT: Shape = _TextShape()
CHAT: Shape = _ChatShape()


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the `usage` of a response."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def finish_reason(reason: Literal["end", "length", "stop"]) -> str:
    """Return the API's `finish_reason`."""
    return "length" if reason == "length" else "stop"


def error_body(message: str, kind: str, parameter: str | None, code: str | None) -> dict[str, Any]:
    """Return the body of an error response."""
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def event(body: Mapping[str, Any] | str) -> bytes:
    """Encode a server-sent event."""
    data = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {data}\n\n".encode()


DONE = event("[DONE]")


async def bodies(events: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the bodies of server-sent events without names, whose bytes arrive in pieces of any size."""
    rest = b""
    async for data in events:
        *whole, rest = (rest + data).split(b"\n\n")
        for each in whole:
            text = each.removeprefix(b"data: ").strip()
            if text and text != b"[DONE]":
                yield json.loads(text)
