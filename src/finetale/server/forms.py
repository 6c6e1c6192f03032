"""Parameters of requests that ask for a form of the text: JSON, a pattern, a choice or a grammar. Knows no grammars."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SCHEMA_CHARACTERS = 65_536
MAX_GRAMMAR_CHARACTERS = 8_192
MAX_CHOICES = 4_096
MAX_DEPTH = 64
"""Maximum nesting of a JSON schema."""
JSON_SPACE = r"( |\n[ \t]{0,64})"
"""Space between the tokens of JSON. Unlimited space would let a weak model write spaces until its limit."""
_CONDITIONS = ("if", "not", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef")
_ALTERNATIVES = ("$ref", "anyOf", "oneOf", "allOf")
_OTHERS = ("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties")
"""Keywords with which a schema speaks of properties that it does not list."""
_NO_EFFECT = "Accepted, without effect."
Text = Annotated[str, Field(strict=True)]
_Switch = Annotated[bool, Field(strict=True)]
_Choices = Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]


@dataclass(frozen=True, slots=True)
class Form:
    """The form that a text must have.

    Attributes:
        kind: how to read `source`.
        source: a JSON schema, a regular expression, a grammar in Lark's or GBNF notation, or
            llguidance's grammar of tool calls.
        parameter: the parameter of the request, for messages.
        space: regular expression of the space between the tokens of JSON; None for no space.
    """

    kind: Literal["json", "regex", "grammar", "calls", "possible calls"]
    source: str
    parameter: str
    space: str | None = None

    @property
    def optional(self) -> bool:
        """Whether a text without the form is better than none."""
        return self.kind == "possible calls"


class JsonSchema(BaseModel):
    """A schema with its name."""

    model_config = ConfigDict(extra="ignore")

    name: Text | None = None
    description: Text | None = None
    content: dict[str, Any] | _Switch | None = Field(None, alias="schema", description="Default: any object.")
    strict: _Switch | None = Field(None, description="Accepted, without effect: a schema is always enforced.")


class ResponseFormat(BaseModel):
    """The form of the response."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description="Required for json_schema.")


class StructuredOutputs(BaseModel):
    """The form of the text, as in vLLM. One of the first five is required."""

    model_config = ConfigDict(extra="forbid")

    content: dict[str, Any] | _Switch | Text | None = Field(None, alias="json", description="A JSON schema.")
    regex: Text | None = None
    choice: _Choices | None = None
    grammar: Text | None = Field(None, description="A grammar in Lark's or GBNF notation.")
    json_object: _Switch | None = Field(None, description="Any JSON object.")
    whitespace_pattern: Text | None = Field(None, description="Regular expression of the space in JSON.")
    disable_any_whitespace: _Switch = Field(False, description="JSON without space.")
    disable_fallback: _Switch | None = Field(None, description=_NO_EFFECT)
    disable_additional_properties: _Switch = Field(
        True, description="Objects have only the properties that their schema lists, unless it says otherwise."
    )


class FormParameters(BaseModel):
    """Parameters for the form of a text."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="Extension.")
    guided_json: dict[str, Any] | _Switch | Text | None = Field(None, description="Extension: a JSON schema.")
    guided_regex: Text | None = Field(None, description="Extension.")
    guided_choice: _Choices | None = Field(None, description="Extension.")
    guided_grammar: Text | None = Field(None, description="Extension: a grammar in Lark's or GBNF notation.")
    guided_whitespace_pattern: Text | None = Field(None, description="Extension.")
    guided_decoding_backend: Text | None = Field(None, description=_NO_EFFECT)

    def form(self) -> Form | None:
        """Return the form that the text must have; None for any text.

        Raises:
            ValueError: the parameters contradict each other, or one is too large. The message begins with its name.
        """
        found = [*self._from_response_format(), *self._from_structured_outputs(), *self._from_guided()]
        if len(found) > 1:
            raise ValueError(f"{found[1].parameter}: can't be combined with {found[0].parameter}; set only one of them")
        return found[0] if found else None

    def _from_response_format(self) -> list[Form]:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return []
        if wanted.type == "json_object":
            return [json_form({"type": "object"}, "response_format")]
        if wanted.json_schema is None:
            raise ValueError("response_format: json_schema is required for this type")
        content = wanted.json_schema.content
        where = "response_format.json_schema.schema"
        return [json_form({"type": "object"} if content is None else content, where)]

    def _from_structured_outputs(self) -> list[Form]:
        wanted = self.structured_outputs
        if wanted is None:
            return []
        space = None if wanted.disable_any_whitespace else wanted.whitespace_pattern or JSON_SPACE
        values = {"json": wanted.content, "regex": wanted.regex, "choice": wanted.choice, "grammar": wanted.grammar}
        if wanted.json_object:
            values["json_object"] = {"type": "object"}
        if all(value is None for value in values.values()):
            raise ValueError("structured_outputs: needs json, regex, choice, grammar or json_object")
        closing = wanted.disable_additional_properties
        return [
            _form(kind, value, f"structured_outputs.{kind}", space, closing=closing)
            for kind, value in values.items()
            if value is not None
        ]

    def _from_guided(self) -> list[Form]:
        values = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        space = self.guided_whitespace_pattern or JSON_SPACE
        return [_form(kind, value, f"guided_{kind}", space) for kind, value in values.items() if value is not None]


def json_form(schema: Any, parameter: str, space: str | None = JSON_SPACE, *, closing: bool = True) -> Form:
    """Return the form of JSON with a schema.

    Args:
        closing: whether to close the schema's objects (see `closed`).

    Raises:
        ValueError: the schema is too large or nested too deeply.
    """
    if schema is True:
        schema = {}  # the same, and the notation that options need
    if not isinstance(schema, dict):
        raise ValueError(f"{parameter}: must be a JSON schema that allows a value, as an object")
    if _depth(schema) > MAX_DEPTH:
        raise ValueError(f"{parameter}: is nested deeper than {MAX_DEPTH} levels")
    text = json.dumps(closed(schema) if closing else schema, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise ValueError(f"{parameter}: has {len(text):,} characters; the maximum is {MAX_SCHEMA_CHARACTERS:,}")
    if space is not None and len(space) > MAX_GRAMMAR_CHARACTERS:
        raise ValueError("whitespace_pattern: is too long")
    return Form("json", text, parameter, space)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have only the properties that they list, if it does not mention others.

    JSON Schema allows any other property, and a small model then writes them until its limit. The texts of the closed
    schema are valid for the original. A schema that joins the properties of several schemas is returned unchanged,
    because closing one of them would exclude the properties of the others.
    """
    return _closed(schema) if not _joins(schema) else schema


def _joins(node: Any) -> bool:
    """Return whether a schema contains one that takes properties from several places."""
    if isinstance(node, list):
        return any(map(_joins, node))
    if not isinstance(node, dict):
        return False
    joined = node.get("allOf")
    if (isinstance(joined, list) and len(joined) > 1) or not node.keys().isdisjoint(_CONDITIONS):
        return True
    if "properties" in node and not node.keys().isdisjoint(_ALTERNATIVES):
        return True
    return any(map(_joins, node.values()))


def _closed(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    changed = dict(node)
    for name in ("items", "additionalProperties"):
        if name in node:
            changed[name] = _closed(node[name])
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(node.get(name), list):
            changed[name] = [_closed(each) for each in node[name]]
    for name in ("properties", "patternProperties", "$defs", "definitions"):
        if isinstance(node.get(name), dict):
            changed[name] = {key: _closed(each) for key, each in node[name].items()}
    listed, required = node.get("properties"), node.get("required", [])
    speaks_of_others = not node.keys().isdisjoint(_OTHERS) or not isinstance(required, list)
    if isinstance(listed, dict) and listed and not speaks_of_others and all(name in listed for name in required):
        changed["additionalProperties"] = False
    return changed


def choice_form(choices: Sequence[str], parameter: str) -> Form:
    """Return the form of one of several texts.

    Raises:
        ValueError: the texts are too long together, or one is empty.
    """
    if not all(choices):
        raise ValueError(f"{parameter}: has an empty text")
    size = sum(map(len, choices))
    if size > MAX_SCHEMA_CHARACTERS:
        raise ValueError(f"{parameter}: has {size:,} characters; the maximum is {MAX_SCHEMA_CHARACTERS:,}")
    return Form("regex", "|".join(map(literal, dict.fromkeys(choices))), parameter)


def literal(text: str) -> str:
    """Return a regular expression that matches a text only."""
    return re.sub(r"[\\.+*?()|\[\]{}^$/]", lambda found: "\\" + found[0], text)


def _form(kind: str, value: Any, parameter: str, space: str | None, *, closing: bool = True) -> Form:
    if kind == "json":
        if isinstance(value, str):
            if len(value) > MAX_SCHEMA_CHARACTERS:
                raise ValueError(
                    f"{parameter}: has {len(value):,} characters; the maximum is {MAX_SCHEMA_CHARACTERS:,}"
                )
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{parameter}: is not JSON ({error})") from None
        return json_form(value, parameter, space, closing=closing)
    if kind == "json_object":
        return json_form(value, parameter, space)
    if kind == "choice":
        return choice_form(value, parameter)
    if not value:
        raise ValueError(f"{parameter}: is empty")
    if len(value) > MAX_GRAMMAR_CHARACTERS:
        raise ValueError(f"{parameter}: has {len(value):,} characters; the maximum is {MAX_GRAMMAR_CHARACTERS:,}")
    return Form("regex" if kind == "regex" else "grammar", value, parameter)


def _depth(value: Any) -> int:
    """Return how deeply a JSON value is nested, at most MAX_DEPTH + 1."""
    level, depth = [value], 0
    while depth <= MAX_DEPTH:
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            break
        depth += 1
    return depth
