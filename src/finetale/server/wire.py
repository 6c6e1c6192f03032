"""The shapes of OpenAI's completions API: bodies to requests, results to bodies. Pure functions; knows no network and no engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from finetale.config import SamplingSettings
from finetale.errors import RequestError

MOST_LOGPROBS = 5
MOST_STOPS = 4
LARGEST_SEED = 2**63 - 1

TokenId = Annotated[int, Field(ge=0, strict=True)]
Text = Annotated[str, Field(strict=True)]


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(BaseModel):
    """What a stream holds besides the text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = Field(False, strict=True, description="A last chunk tells the usage.")


class CompletionRequest(BaseModel):
    """Body of POST /v1/completions. Numbers are numbers and texts are texts: nothing is guessed, nothing ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text = Field(description="Name of the model, as /v1/models lists it.")
    prompt: (
        Text
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    ) = Field("", description="Text, token ids, or a list of either. Empty: a new document.")
    max_tokens: int | None = Field(16, ge=0, strict=True, description="Most tokens to generate.")
    temperature: float | None = Field(1.0, ge=0, le=2, strict=True, description="0: always the likeliest token.")
    top_p: float | None = Field(1.0, gt=0, le=1, strict=True)
    n: int | None = Field(1, ge=1, le=128, strict=True, description="Completions of each prompt.")
    best_of: int | None = Field(
        None, ge=1, le=128, strict=True, description="Completions made, of which the n likeliest a token are given."
    )
    echo: bool | None = Field(False, strict=True, description="Give the prompt back before the completion.")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS, strict=True)
    stop: (
        Annotated[
            list[Annotated[Text, Field(min_length=1)]], Field(max_length=MOST_STOPS), BeforeValidator(_one_or_many)
        ]
        | None
    ) = None
    seed: int | None = Field(None, ge=-LARGEST_SEED - 1, le=LARGEST_SEED, strict=True)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2, strict=True)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2, strict=True)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, strict=True)]] | None = Field(
        None, max_length=300, description="Token id to what is added to its score."
    )
    suffix: Text | None = Field(None, description="Not supported.")
    stream: bool | None = Field(False, strict=True)
    stream_options: StreamOptions | None = None
    user: Text | None = None
    top_k: int | None = Field(0, ge=0, strict=True, description="An extension: sample from the k likeliest. 0: all.")
    min_p: float | None = Field(0.0, ge=0, le=1, strict=True, description="An extension.")
    repetition_penalty: float | None = Field(1.0, ge=0.01, le=10, strict=True, description="An extension.")

    @model_validator(mode="after")
    def _together(self) -> CompletionRequest:
        if self.suffix:
            raise ValueError("suffix: is not supported")
        made = self.best_of or self.n or 1
        if made < (self.n or 1):
            raise ValueError("best_of: must be at least n")
        if self.stream and made > (self.n or 1):
            raise ValueError("best_of: can't be larger than n in a stream")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: is for stream: true only")
        if not self.max_tokens and self.max_tokens is not None and not self.echo:
            raise ValueError("max_tokens: must be at least 1 unless echo is true")
        for token in self.logit_bias or {}:
            if not (token.isascii() and token.isdigit() and len(token) <= 10):
                raise ValueError("logit_bias: its keys must be token ids")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts one by one, texts or lists of token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    @property
    def count(self) -> int:
        """Completions that are made of each prompt."""
        return self.best_of or self.n or 1

    def sampling(self, seed: int) -> SamplingSettings:
        """How a token is chosen; `seed` where the request names none."""
        given = {
            "max_new_tokens": self.max_tokens or 1,
            # Below that the scores would grow past what floats hold; the likeliest token is taken all the same.
            "temperature": 1.0 if self.temperature is None else self.temperature if self.temperature >= 1e-3 else 0.0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": self.top_k or 0,
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty or 1.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "stop": tuple(self.stop or ()),
            "seed": (seed if self.seed is None else self.seed) % 2**32,
        }
        return SamplingSettings.resolve(given)


def read_completion(body: bytes) -> CompletionRequest:
    """A request body, checked.

    Raises:
        RequestError: says what is wrong with which parameter.
    """
    try:
        values = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is no JSON: {error}.") from None
    if not isinstance(values, dict):
        raise RequestError("The body must be a JSON object.")
    try:
        request = CompletionRequest.model_validate(values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda item: len(item["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            parameter = str(first["loc"][0])
        else:
            parameter, _, message = message.partition(": ")
        if first["type"] == "extra_forbidden":
            raise RequestError(f"{parameter} is no parameter that is known here.", parameter) from None
        if first["type"] == "missing":
            raise RequestError(f"{parameter} is missing.", parameter, code="missing_required_parameter") from None
        raise RequestError(f"{parameter}: {message[:1].lower()}{message[1:]}.", parameter) from None
    for text in [
        request.model,
        request.user or "",
        *(request.stop or []),
        *(p for p in request.prompts if isinstance(p, str)),
    ]:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise RequestError("The body holds half of a surrogate pair, which is no text.")
    return request


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def completion(
    name: str, created: int, model: str, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int] | None
) -> dict[str, Any]:
    """Body of a completion, or of one chunk of its stream, where `usage` may be None."""
    body: dict[str, Any] = {
        "id": name,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": list(choices),
    }
    return body if usage is None else body | {"usage": dict(usage)}


def choice(index: int, text: str, finish_reason: str | None, logprobs: Mapping[str, Any] | None) -> dict[str, Any]:
    """One completion, or a piece of it."""
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens that were read and made."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def finish_reason(reason: Literal["end", "length", "stop"]) -> str:
    """The API's word for why a text ended."""
    return "length" if reason == "length" else "stop"


def error_body(message: str, kind: str, parameter: str | None, code: str | None) -> dict[str, Any]:
    """Body of an error."""
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def event(body: Mapping[str, Any] | str) -> bytes:
    """A server-sent event."""
    data = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {data}\n\n".encode()


DONE = event("[DONE]")
