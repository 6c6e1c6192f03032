"""The service's OpenAPI 3.1 document, generated from the models of its requests. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import finetale
from finetale.server.embeddings import EmbeddingsRequest
from finetale.server.responses import ResponsesRequest
from finetale.server.token_routes import DetokenizeRequest, TokenizeRequest
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


def _response_schema(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a response whose choices have the given content."""
    choice = content | {
        "index": {"type": "integer", "minimum": 0},
        "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
    }
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
    "properties": {
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"]},
        "tool_calls": {"type": "array", "items": {"type": "object", "required": ["id", "type", "function"]}},
    },
}
_COMPLETION = _response_schema("text_completion", {"text": {"type": "string"}, "logprobs": _LOGPROBS})
_CHAT = _response_schema("chat.completion", {"message": _MESSAGE, "logprobs": {"type": ["object", "null"]}})
_RESPONSE = {
    "type": "object",
    "required": ["id", "object", "created_at", "status", "model", "output", "tools", "tool_choice", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "response"},
        "created_at": {"type": "integer"},
        "status": {"enum": ["completed", "incomplete"]},
        "model": {"type": "string"},
        "output": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["id", "type", "status"],
                "properties": {"type": {"enum": ["message", "function_call"]}},
            },
        },
        "usage": {"type": "object", "required": ["input_tokens", "output_tokens", "total_tokens"]},
    },
}
_TOKENIZED = {
    "type": "object",
    "required": ["count", "max_model_len", "tokens", "token_strs"],
    "properties": {
        "count": {"type": "integer"},
        "max_model_len": {"type": "integer"},
        "tokens": {"type": "array", "items": {"type": "integer"}},
        "token_strs": {"type": ["array", "null"], "items": {"type": "string"}},
    },
}
_EMBEDDINGS = {
    "type": "object",
    "required": ["object", "data", "model", "usage"],
    "properties": {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {
                    "object": {"const": "embedding"},
                    "index": {"type": "integer", "minimum": 0},
                    "embedding": {"type": ["array", "string"], "items": {"type": "number"}},
                },
            },
        },
    },
}
_DETOKENIZED = {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}}
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "max_model_len": {"type": "integer"},
        "parent": {"type": ["string", "null"]},
        "chat": {"type": "boolean"},
        "embeddings": {"type": ["object", "null"], "required": ["pooling", "dimensions"]},
    },
}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}


def document(models: Sequence[str], *, needs_key: bool) -> dict[str, Any]:
    """Return the OpenAPI document of a service with the given models."""
    shapes: dict[str, Any] = {}
    for kind in (
        CompletionRequest,
        ChatRequest,
        ResponsesRequest,
        EmbeddingsRequest,
        TokenizeRequest,
        DetokenizeRequest,
    ):
        request = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        request["properties"]["model"]["enum"] = list(models)
        shapes |= request.pop("$defs", {}) | {kind.__name__: request}
    errors = {str(status): _response(text, _ERROR) for status, text in _ERRORS.items()}
    listed = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"data": {"type": "array", "items": _MODEL}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Finetale", "version": finetale.__version__},
        "paths": {
            "/health": {"get": {"responses": {"200": _response("The process is alive.", _STATUS)}, "security": []}},
            "/ready": {
                "get": {
                    "responses": {
                        "200": _response("The service takes requests.", _STATUS),
                        "503": _response("The service is loading, draining or has failed.", _STATUS),
                    },
                    "security": [],
                }
            },
            "/v1/models": {"get": {"responses": {"200": _response("All models.", listed)} | _select(errors, 401, 403)}},
            "/v1/models/{name}": {
                "get": {
                    "parameters": [
                        {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                    ],
                    "responses": {"200": _response("One model.", _MODEL)} | _select(errors, 401, 403, 404),
                }
            },
            "/v1/completions": {"post": _generation_route("CompletionRequest", "Completions", _COMPLETION, errors)},
            "/v1/chat/completions": {"post": _generation_route("ChatRequest", "The next message", _CHAT, errors)},
            "/v1/responses": {"post": _generation_route("ResponsesRequest", "The next message", _RESPONSE, errors)},
            "/v1/embeddings": {"post": _route("EmbeddingsRequest", "Embeddings of texts", _EMBEDDINGS, errors)},
            "/tokenize": {"post": _route("TokenizeRequest", "Token ids of a text", _TOKENIZED, errors)},
            "/detokenize": {"post": _route("DetokenizeRequest", "The text of token ids", _DETOKENIZED, errors)},
        },
        "components": {
            "schemas": shapes,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if needs_key else [],
    }


_ERRORS = {
    400: "The request is invalid.",
    401: "The API key is missing or incorrect.",
    403: "The host or the page's origin is not allowed.",
    404: "The model does not exist.",
    408: "The body was not received in time.",
    413: "The body is too large.",
    429: "Too many requests are waiting.",
    500: "The server had an internal error.",
    503: "The service is loading or shutting down.",
    504: "The response was not ready in time.",
}


def _generation_route(request: str, what: str, body: dict[str, Any], errors: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a route that generates text."""
    route = _route(request, f"{what}; as server-sent events if stream is true.", body, errors)
    route["responses"]["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
    return route


def _route(request: str, what: str, body: dict[str, Any], errors: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a route with a body."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{request}"}}},
        },
        "responses": {"200": _response(what, body)} | errors,
    }


def _response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _select(errors: dict[str, Any], *statuses: int) -> dict[str, Any]:
    return {str(status): errors[str(status)] for status in statuses}
