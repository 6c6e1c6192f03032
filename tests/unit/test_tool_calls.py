"""Test tool calls: the notation of a chat template, calls in a text, and the form of required calls."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from finetale.errors import RequestError
from finetale.server import tools
from finetale.server.call_reader import HERMES, LLAMA, MISTRAL, PLAIN, CallReader, Notation, joined
from finetale.server.forms import Form
from finetale.server.grammars import Grammars
from finetale.server.messages import Tool, ToolParameters
from finetale.server.ollama import Reply
from finetale.server.tools import Calls
from finetale.tokens import begin_and_end
from tiny import tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"city": {"enum": ["Paris", "北京"]}},
        },
    },
}
LIGHT = {"type": "function", "function": {"name": "light"}}
NAMES = frozenset({"weather", "light"})
HERMES_TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>"
    'Answer with <tool_call>{"name": .., "arguments": ..}</tool_call>{% endif %}'
)
NOTATIONS = {"hermes": HERMES, "mistral": MISTRAL, "llama": LLAMA, "plain": PLAIN}
TEXTS = {
    "hermes": 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "light", "arguments": {}}\n</tool_call>',
    "mistral": 'Let me see.\n[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "北京"}}, '
    '{"name": "light", "arguments": {}}]',
    "llama": ' {"name": "weather", "parameters": {"city": "北京"}}',
    "plain": '{"name": "weather", "arguments": {"city": "北京"}}',
}


@pytest.mark.parametrize(
    ("template", "notation"),
    [
        (HERMES_TEMPLATE, HERMES),
        ("{{ tools }}[TOOL_CALLS]", MISTRAL),
        ('{% if tools %}{% endif %}{{ \'{"name": "\' + call.name + \'", "parameters": \' }}', LLAMA),
        ("{{ messages }}<tool_call>", None),
        ("{{ tools }}<tool_call><function=name>", None),
        ("{{ tools }}[TOOL_CALLS]name[ARGS]", None),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", None),
        (None, None),
    ],
)
def test_a_template_shows_its_notation(template: str | None, notation: Notation | None) -> None:
    assert tools.notation_of(template) == notation


def read(notation: Notation, text: str, size: int = 1000) -> tuple[str, list[dict[str, Any]]]:
    """Return the text beside the calls, and the parts of the calls, of a text in pieces of some size."""
    reader = CallReader(notation, NAMES)
    found = [*(reader.add(text[at : at + size]) for at in range(0, len(text), size)), reader.end()]
    return "".join(content for content, _ in found), [part for _, parts in found for part in parts]


@pytest.mark.parametrize("name", NOTATIONS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_found_in_pieces_of_any_size(name: str, size: int) -> None:
    content, parts = read(NOTATIONS[name], TEXTS[name], size)
    calls = joined(parts)
    assert content == ("Let me see." if name in ("hermes", "mistral") else "")
    assert [call["function"]["name"] for call in calls] == ["weather", "light"][: len(calls)]
    assert [call["function"]["arguments"] for call in calls] == ['{"city": "北京"}', "{}"][: len(calls)]
    assert len(calls) == (2 if name in ("hermes", "mistral") else 1)
    assert len({call["id"] for call in calls}) == len(calls)


def test_arguments_arrive_as_they_are_written() -> None:
    reader = CallReader(HERMES, NAMES)
    assert reader.add('Well. <tool_call>{"name": "weather", "arguments": ') == ("Well.", [])
    _, (named, part) = reader.add('{"city": "Pa')
    assert named["function"] == {"name": "weather", "arguments": ""}
    assert part == {"index": 0, "function": {"arguments": '{"city": "Pa'}}
    assert reader.add('ris {}\\" [') == ("", [{"index": 0, "function": {"arguments": 'ris {}\\" ['}}])
    assert reader.add('"}}') == ("", [{"index": 0, "function": {"arguments": '"}'}}])
    assert reader.add("</tool_call> and more") == ("", [])
    assert reader.end() == ("", [])


def test_a_call_that_was_cut_has_what_was_written() -> None:
    content, parts = read(HERMES, '<tool_call>{"name": "weather", "arguments": {"city"', 4)
    (call,) = joined(parts)
    assert (content, call["function"]) == ("", {"name": "weather", "arguments": '{"city"'})


def test_the_keys_of_a_call_may_have_another_order() -> None:
    text = '<tool_call>{"arguments": {"city": "x"}, "name": "weather"}</tool_call>'
    for size in (1, 1000):
        content, parts = read(HERMES, TEXTS["hermes"] + text, size)
        assert [call["function"]["name"] for call in joined(parts)] == ["weather", "light", "weather"]
        assert [call["index"] for call in joined(parts)] == [0, 1, 2]
        assert content == "Let me see."


@pytest.mark.parametrize(
    ("notation", "text"),
    [
        (HERMES, "Just text < with > signs"),
        (HERMES, "a <tool_call> of a bird"),
        (HERMES, '<tool_call>{"name": "weather", "arguments": '),
        (HERMES, '<tool_call>{"name": "' + "x" * 2000),
        (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "light", "arguments": 3}</tool_call>'),
        (HERMES, "<tool_call>" + "[" * 100_000),
        (MISTRAL, "[TOOL_CALLS] [3]"),
        (MISTRAL, "text [TOOL"),
        (LLAMA, '{"a": 1}'),
        (LLAMA, "text"),
        (LLAMA, "<|python text"),
        (LLAMA, "   "),
    ],
)
def test_what_is_no_call_stays_text(notation: Notation, text: str) -> None:
    for size in (1, 1000):
        assert read(notation, text, size) == (text, [])


def test_text_is_passed_on_before_the_end() -> None:
    reader = CallReader(HERMES, NAMES)
    assert reader.add("Let me") == ("Let me", [])
    assert reader.add(" see <to") == (" see", [])
    assert reader.add("day>") == (" <today>", [])


def written(form: Form, seed: int) -> str | None:
    """Return a random text of a form, None if it does not end."""
    used = tokenizer()
    grammars = Grammars(used, len(used), (begin_and_end(used)[1],))
    constraint, chance, data = grammars.constraint(form), random.Random(seed), b""
    words = grammars._words
    assert isinstance(words, tuple)
    for _ in range(300):
        token = chance.choice(constraint.mask().nonzero()[:, 0].tolist())
        if token == begin_and_end(used)[1]:
            return data.decode()
        constraint.accept(token)
        data += words[0].bytes[token]
        if constraint.complete:
            return data.decode()
    return None


@pytest.mark.parametrize("name", NOTATIONS)
def test_a_required_call_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    monkeypatch.setattr(tools, "notation_of", lambda template: NOTATIONS[name])
    asked = ToolParameters.model_validate({"tools": [WEATHER, LIGHT], "tool_choice": "required"})
    form = Calls(asked, "").form
    assert form is not None
    found, most = set(), 0
    for seed in range(12):
        text = written(form, seed)
        if text is None:
            continue
        content, parts = read(NOTATIONS[name], text, 5)
        assert content == "", text
        calls = joined(parts)
        most = max(most, len(calls))
        for call in calls:
            found.add(call["function"]["name"])
            if call["function"]["name"] == "weather":
                schema = WEATHER["function"]["parameters"]  # type: ignore[index]
                jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
    assert found == NAMES
    assert (most > 1) == (name in ("hermes", "mistral"))


@pytest.mark.parametrize(
    "values",
    [
        {"tools": [WEATHER, LIGHT], "tool_choice": {"type": "function", "function": {"name": "light"}}},
        {"tools": [LIGHT], "tool_choice": "required", "parallel_tool_calls": False},
    ],
)
def test_one_call(values: dict[str, Any]) -> None:
    pytest.importorskip("llguidance")
    form = Calls(ToolParameters.model_validate(values), HERMES_TEMPLATE).form
    assert form is not None
    for seed in range(5):
        text = written(form, seed)
        assert text is not None
        assert text.count("light") == text.count("<tool_call>") == 1


def test_auto_needs_a_template_with_tools() -> None:
    asked = ToolParameters.model_validate({"tools": [WEATHER]})
    with pytest.raises(RequestError) as caught:
        Calls(asked, "{{ messages }}")
    assert (caught.value.status, caught.value.parameter) == (400, "tool_choice")
    calls = Calls(asked, HERMES_TEMPLATE)
    assert calls.tools == [Tool.model_validate(WEATHER).plain()]
    assert calls.form is not None
    assert calls.form.optional
    calls = Calls(asked, HERMES_TEMPLATE, is_special=lambda text: text == "<tool_call>")
    assert (calls.form, calls.keeps_special) == (None, True)


@pytest.mark.parametrize("name", ["hermes", "mistral"])
def test_what_begins_like_a_call_becomes_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    notation = NOTATIONS[name]
    monkeypatch.setattr(tools, "notation_of", lambda template: notation)
    form = Calls(ToolParameters.model_validate({"tools": [WEATHER, LIGHT]}), "").form
    assert form is not None
    used, ended = tokenizer(), 0
    end = begin_and_end(used)[1]
    grammars = Grammars(used, len(used), (end,))
    for seed in range(8):
        constraint, chance, text = grammars.constraint(form), random.Random(seed), b""
        words = grammars._words
        assert isinstance(words, tuple)

        def add(token: int, constraint: Any = constraint, words: Any = words) -> bytes:
            assert bool(constraint.mask()[token])
            constraint.accept(token)
            assert constraint.failure is None
            return bytes(words[0].bytes[token])

        for token in used("Just text, <tool> [x].\n" + notation.start)["input_ids"]:
            assert bool(constraint.mask()[end])  # the text may end without a call
            text += add(token)
        for _ in range(150):
            allowed = constraint.mask().nonzero()[:, 0].tolist()
            if end in allowed:
                ended += 1
                break
            text += add(chance.choice(allowed))
        else:
            continue
        content, parts = read(notation, text.decode())
        assert content == "Just text, <tool> [x]."
        calls = joined(parts)
        assert {call["function"]["name"] for call in calls} <= NAMES
        assert calls
    assert ended > 2


def test_without_tools_nothing_changes() -> None:
    for values in ({}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}, {"tool_choice": "auto"}):
        calls = Calls(ToolParameters.model_validate(values), None, has_form=True)
        assert (calls.tools, calls.form, calls.shape) == (None, None, tools.CHAT)


def test_tools_and_a_form_contradict_each_other() -> None:
    asked = ToolParameters.model_validate({"tools": [WEATHER], "tool_choice": "required"})
    with pytest.raises(RequestError, match="can't be combined"):
        Calls(asked, HERMES_TEMPLATE, has_form=True)


def test_large_tools_can_be_called_but_not_required() -> None:
    function = {"name": "x", "parameters": {"description": "x" * 70_000}}
    values: dict[str, Any] = {"tools": [{"type": "function", "function": function}]}
    with pytest.raises(RequestError, match="maximum is 65,536"):
        Calls(ToolParameters.model_validate(values | {"tool_choice": "required"}), None)
    assert Calls(ToolParameters.model_validate(values), HERMES_TEMPLATE).form is None


def test_a_response_with_calls() -> None:
    shape = tools.CallShape(HERMES, NAMES)
    choice = shape.choice(0, TEXTS["hermes"], "stop", None)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather", "light"]
    choice = shape.choice(1, "Just text", "stop", None)
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "Just text")
    assert "tool_calls" not in choice["message"]


def test_a_stream_with_calls() -> None:
    shape, text = tools.CallShape(HERMES, NAMES), TEXTS["hermes"]
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    parts = [
        shape.part(0, piece, "stop" if place == len(pieces) - 1 else None, None, first=place == 0)
        for place, piece in enumerate(pieces)
    ]
    other = shape.part(1, "Just text", "length", None, first=True)
    assert "".join(part["delta"].get("content", "") for part in parts) == "Let me see."
    assert parts[0]["delta"]["role"] == "assistant"
    assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["tool_calls"]
    each = [part["delta"].get("tool_calls", []) for part in parts]
    assert sum(map(bool, each)) > 3  # not whole at the end
    calls = joined(call for part in each for call in part)
    assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "weather"), (1, "light")]
    assert [call["function"]["arguments"] for call in calls] == ['{"city": "北京"}', "{}"]
    assert (other["delta"]["content"], other["finish_reason"]) == ("Just text", "length")


def test_calls_in_ollamas_form() -> None:
    shape = tools.CallShape(HERMES, NAMES)
    choice = shape.choice(0, TEXTS["hermes"], "stop", None)
    found = Reply("tiny", chats=True).whole({"choices": [choice], "usage": None})
    assert found["message"] == {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "北京"}}},
            {"function": {"name": "light", "arguments": {}}},
        ],
    }
    assert found["done_reason"] == "stop"
