"""The service described in OpenAPI 3.1, from the shapes that read requests. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import finetale
from finetale.server.wire import ChatRequest, CompletionRequest

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_LOGPROBS = {
    "type": ["object", "null"],
    "required": ["tokens", "token_logprobs", "top_logprobs", "text_offset"],
    "properties": {
        "tokens": {"type": "array", "items": {"type": "string"}},
        "token_logprobs": {"type": "array", "items": {"type": ["number", "null"]}},
        "top_logprobs": {
            "type": "array",
            "items": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        },
        "text_offset": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    },
}
_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "additionalProperties": {"type": "integer", "minimum": 0},
}


def _answered(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """The shape of a body whose choices have some content."""
    choice = content | {"index": {"type": "integer", "minimum": 0}, "finish_reason": {"enum": ["stop", "length"]}}
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {
                "type": "array",
                "items": {"type": "object", "required": list(choice), "properties": choice},
            },
            "usage": _USAGE,
        },
    }


_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"const": "assistant"}, "content": {"type": "string"}},
}
_COMPLETION = _answered("text_completion", {"text": {"type": "string"}, "logprobs": _LOGPROBS})
_CHAT = _answered("chat.completion", {"message": _MESSAGE, "logprobs": {"type": ["object", "null"]}})
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}


def document(models: Sequence[str], *, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI document of a service that has some models."""
    shapes: dict[str, Any] = {}
    for kind in (CompletionRequest, ChatRequest):
        request = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        request["properties"]["model"]["enum"] = list(models)
        shapes |= request.pop("$defs", {}) | {kind.__name__: request}
    errors = {str(status): _answer(text, _ERROR) for status, text in _ERRORS.items()}
    listed = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"data": {"type": "array", "items": _MODEL}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Finetale", "version": finetale.__version__},
        "paths": {
            "/health": {"get": {"responses": {"200": _answer("It is alive.", _STATUS)}, "security": []}},
            "/ready": {
                "get": {
                    "responses": {"200": _answer("It takes requests.", _STATUS), "503": _answer("It drains.", _STATUS)},
                    "security": [],
                }
            },
            "/v1/models": {"get": {"responses": {"200": _answer("Every model.", listed)} | _some(errors, 401, 403)}},
            "/v1/models/{name}": {
                "get": {
                    "parameters": [
                        {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                    ],
                    "responses": {"200": _answer("One model.", _MODEL)} | _some(errors, 401, 403, 404),
                }
            },
            "/v1/completions": {"post": _asked("CompletionRequest", "Completions", _COMPLETION, errors)},
            "/v1/chat/completions": {"post": _asked("ChatRequest", "The next message", _CHAT, errors)},
        },
        "components": {
            "schemas": shapes,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if needs_key else [],
    }


_ERRORS = {
    400: "Something in the request can't be done.",
    401: "The key is missing or wrong.",
    403: "Another host or page than may ask.",
    404: "No such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "Too many requests wait.",
    500: "Something failed here.",
    503: "The service can't take it now: it is loading, or about to end.",
    504: "The answer was not done in time.",
}


def _asked(request: str, what: str, body: dict[str, Any], errors: dict[str, Any]) -> dict[str, Any]:
    """A route that computes."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{request}"}}},
        },
        "responses": {
            "200": {
                "description": f"{what}; as server-sent events if stream is true.",
                "content": {"application/json": {"schema": body}, "text/event-stream": {"schema": _EVENT}},
            }
        }
        | errors,
    }


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _some(errors: dict[str, Any], *statuses: int) -> dict[str, Any]:
    return {str(status): errors[str(status)] for status in statuses}
