"""Test how JSON schemas are closed before a text is written in their form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from finetale.server.forms import closed, json_form

NAME = {"type": "string"}
OPEN = {"type": "object", "properties": {"name": NAME}}
CLOSED = OPEN | {"additionalProperties": False}


class Place(BaseModel):
    city: str


class Trip(BaseModel):
    place: Place
    stops: list[Place]
    other: Place | None = None


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (OPEN, CLOSED),
        (OPEN | {"required": ["name"]}, CLOSED | {"required": ["name"]}),
        ({"type": "array", "items": OPEN}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [OPEN, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        (
            {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": OPEN}},
            {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": CLOSED}},
        ),
    ],
)
def test_objects_are_closed_wherever_a_schema_lists_properties(schema: Any, expected: Any) -> None:
    before = json.dumps(schema)
    assert closed(schema) == expected
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},  # any object
        {"type": "object", "properties": {}},
        OPEN | {"additionalProperties": True},
        OPEN | {"additionalProperties": {"type": "integer"}},
        OPEN | {"patternProperties": {"^x": NAME}},
        OPEN | {"minProperties": 2},
        OPEN | {"required": ["name", "age"]},  # a property that is required and not listed
        {"allOf": [OPEN, {"properties": {"age": {"type": "integer"}}}]},  # the properties of both are allowed
        OPEN | {"anyOf": [{"required": ["name"]}, {"properties": {"age": NAME}}]},
        OPEN | {"if": OPEN, "then": {"properties": {"age": NAME}}},
        {"enum": [{"properties": {"name": 1}}]},  # a value, not a schema
        {"allOf": True, "required": 1, "properties": 2},  # not a schema; the grammar says so
    ],
)
def test_schemas_that_allow_other_properties_stay_open(schema: Any) -> None:
    assert closed(schema) == schema


def test_the_schema_of_nested_pydantic_models_is_closed_at_every_level() -> None:
    found = closed(Trip.model_json_schema())
    assert found["additionalProperties"] is False
    assert found["$defs"]["Place"]["additionalProperties"] is False


def test_a_request_can_keep_the_schema_open() -> None:
    assert json.loads(json_form(OPEN, "p").source) == CLOSED
    assert json.loads(json_form(OPEN, "p", closing=False).source) == OPEN
