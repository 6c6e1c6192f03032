"""Test structured output with random schemas: what is accepted is written so that it is valid."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from finetale.errors import RequestError
from finetale.server.forms import json_form
from finetale.server.grammars import Constraint, Grammars
from finetale.tokens import begin_and_end
from tiny import tokenizer

pytest.importorskip("llguidance")

LEAVES = ("string", "integer", "number", "boolean", "null", "enum")
NAMES = ("a", "b", "c d", "é", '"q', "诗")
VALUES: tuple[Any, ...] = (1, "x", None, True, [1, "é"], {"k": "诗"}, 1.5, "", 'a"\\\n')
FORMATS = ("date", "email", "uuid", "ipv4")


def schema_of(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a random schema."""
    kind = chance.choice(LEAVES if depth > 2 else (*LEAVES, "array", "object", "anyOf", "allOf"))
    if kind == "enum":
        return {"enum": chance.choices(VALUES, k=chance.randint(1, 4))}
    if kind in ("anyOf", "allOf"):
        return {kind: [schema_of(chance, depth + 1) for _ in range(2)]}
    rules: dict[str, Any] = {}
    if kind == "string":
        rules = {"maxLength": chance.randint(2, 6), "minLength": chance.randint(0, 2)}
        rules |= {"pattern": chance.choice(("^[a-z]+$", "a|b", "[0-9]{2}", "^x"))}
        rules = {name: value for name, value in rules.items() if chance.random() < 0.4}
        if not rules and chance.random() < 0.3:
            rules = {"format": chance.choice(FORMATS)}
    elif kind in ("integer", "number"):
        rules = {"minimum": chance.randint(-50, 50), "maximum": chance.randint(-50, 150), "multipleOf": 5}
        rules = {name: value for name, value in rules.items() if chance.random() < 0.5}
    elif kind == "array":
        rules = {"items": schema_of(chance, depth + 1), "maxItems": chance.randint(0, 3)}
        if chance.random() < 0.2:
            rules["prefixItems"] = [schema_of(chance, depth + 1)]
    elif kind == "object":
        parts = {name: schema_of(chance, depth + 1) for name in chance.sample(NAMES, chance.randint(0, 3))}
        rules = {"properties": parts, "required": [name for name in parts if chance.random() < 0.6]}
        if chance.random() < 0.8:
            rules["additionalProperties"] = False
    return {"type": kind} | rules


def constraint_of(schema: dict[str, Any], grammars: Grammars) -> Constraint | None:
    """Return the constraint of a schema, None if no text satisfies it."""
    try:
        return grammars.constraint(json_form(schema, "guided_json"))
    except RequestError as error:
        if "is not supported: Unsatisfiable schema" not in error.message:
            raise
        return None


def written(constraint: Constraint, words: Any, end: int, seed: int) -> str | None:
    """Return a text of random tokens, None if it does not end."""
    chance, data = random.Random(seed), b""
    for _ in range(150):
        token = chance.choice(constraint.mask().nonzero()[:, 0].tolist())
        assert constraint.failure is None
        if token != end:
            constraint.accept(token)
            data += words[token]
        if token == end or constraint.complete:
            return data.decode()
    return None


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_what_is_written_is_valid(count: int) -> None:
    used = tokenizer()
    end = begin_and_end(used)[1]
    grammars = Grammars(used, len(used), (end,))
    num_valid = num_refused = num_cut = 0
    for number in range(count):
        schema = schema_of(random.Random(number))
        constraint = constraint_of(schema, grammars)
        if constraint is None:
            num_refused += 1
            continue
        assert isinstance(grammars._words, tuple)
        for seed in range(3):
            text = written(constraint.copy(), grammars._words[0].bytes, end, seed)
            if text is None:
                num_cut += 1
                continue
            checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
            assert checker.is_valid(json.loads(text)), (text, schema)
            num_valid += 1
    assert num_valid > 5 * (num_refused + num_cut)
