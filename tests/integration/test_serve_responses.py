"""Test the responses API of a real server with OpenAI's client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema
import openai
import pytest
from pydantic import ValidationError
from test_serve_structured import ASKED, TOOL_TEMPLATE, WEATHER, Person

from finetale.chat import PLAIN_TEMPLATE
from finetale.models import load_tokenizer
from serving import Serving
from tiny import save_model

TOOL = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
NAMED = {"type": "function", "name": "weather"}
GREEDY: dict[str, Any] = {"temperature": 0, "max_output_tokens": 12}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    place = tmp_path_factory.mktemp("responses")
    for name, template in (("talks", PLAIN_TEMPLATE), ("calls", TOOL_TEMPLATE), ("writes", None)):
        folder = save_model(place / name, positions=512)
        tokenizer = load_tokenizer(folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    also = ("--also", "calls=calls", "--also", "writes=writes")
    with Serving(place, "talks", *also, "--engine", "torch") as serving:
        yield serving


@pytest.fixture
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def chatted(client: openai.OpenAI, messages: list[Any], model: str = "talks") -> str | None:
    found = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=12)
    return found.choices[0].message.content


def test_a_response_is_that_of_the_chat(client: openai.OpenAI) -> None:
    found = client.responses.create(model="talks", input="Who stood at the lamp?", **GREEDY)
    assert found.output_text == chatted(client, ASKED)
    assert found.usage is not None
    assert found.usage.output_tokens == 12
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")  # type: ignore[union-attr]
    assert [(item.type, item.status) for item in found.output] == [("message", "incomplete")]  # type: ignore[union-attr]


def test_input_may_be_a_conversation(client: openai.OpenAI) -> None:
    first = client.responses.create(model="talks", input="Hello.", instructions="Be brief.", **GREEDY)
    items: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hel"}, {"type": "input_text", "text": "lo."}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        *(item.model_dump() for item in first.output),
        {"type": "message", "role": "user", "content": "More."},
    ]
    found = client.responses.create(model="talks", input=items, instructions="Be brief.", **GREEDY)
    messages = [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "More."},
    ]
    assert found.output_text == chatted(client, messages)
    assert found.instructions == "Be brief."


def test_a_stream_is_the_response(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "talks", "input": "Who stood at the lamp?", "top_logprobs": 2} | GREEDY
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert len(kinds) > 12
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    last: Any = events[-1]
    (message,), (expected,) = last.response.output, whole.output
    assert message.content[0].text == expected.content[0].text  # type: ignore[union-attr]
    assert len(expected.content[0].logprobs) == 12  # type: ignore[union-attr]
    assert all(len(token.top_logprobs) == 2 for token in expected.content[0].logprobs)  # type: ignore[union-attr]
    assert message.content[0].logprobs == expected.content[0].logprobs  # type: ignore[union-attr]
    assert last.response.usage == whole.usage


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    found = client.responses.parse(model="talks", input="Who?", text_format=Person, max_output_tokens=200)
    assert isinstance(found.output_parsed, Person)
    assert found.status == "completed"
    with client.responses.stream(model="talks", input="Who?", text_format=Person, max_output_tokens=200) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Person)
    with pytest.raises(ValidationError):  # it was cut
        client.responses.parse(model="talks", input="Who?", text_format=Person, max_output_tokens=3)
    plain = client.responses.create(
        model="talks", input="Who?", text={"format": {"type": "json_object"}}, max_output_tokens=100
    )
    assert plain.output_text.startswith("{")


@pytest.mark.parametrize("model", ["talks", "calls"])
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_is_called(model: str, choice: Any, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": model, "input": "The weather?", "tools": [TOOL], "tool_choice": choice}
    asked |= {"parallel_tool_calls": False, "max_output_tokens": 300, "extra_body": {"seed": 1}}
    whole = client.responses.create(**asked)
    (call,) = whole.output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")  # type: ignore[union-attr]
    jsonschema.validate(json.loads(call.arguments), TOOL["parameters"])  # type: ignore[union-attr, call-overload]
    events = list(client.responses.create(stream=True, **asked))
    parts = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(parts) > 5
    assert "".join(parts) == call.arguments  # type: ignore[union-attr]
    done = [event.arguments for event in events if event.type == "response.function_call_arguments.done"]
    assert done == [call.arguments]  # type: ignore[union-attr]
    assert events[-1].type == "response.completed"
    with client.responses.stream(**asked) as stream:
        (streamed,) = stream.get_final_response().output
    assert streamed.arguments == call.arguments  # type: ignore[union-attr]
    if model == "calls":  # the result of the call is part of the conversation
        ask: dict[str, Any] = {"role": "user", "content": "The weather?"}
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}  # type: ignore[union-attr]
        tools: dict[str, Any] = {"model": model, "tools": [TOOL], "tool_choice": "auto"}
        found = client.responses.create(input=[ask, call.model_dump(), result], **tools, **GREEDY)
        before = client.responses.create(input=[ask], **tools, **GREEDY)
        assert found.usage is not None
        assert before.usage is not None
        assert found.usage.input_tokens > before.usage.input_tokens + 10


@pytest.mark.parametrize(
    ("values", "parameter", "said"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored; send the whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "nothing is stored"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "nothing is stored"),
        ({"background": True}, "background", "not supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "item_reference is not supported"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", "input_text"),
        ({"input": [{"role": "user"}]}, "input[0].content", "is required"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "has no message"),
        ({"input": []}, "input", "at least 1"),
        ({"input": "x " * 600}, "input", "context length is 512"),
        ({"max_output_tokens": 600}, "max_output_tokens", "max_output_tokens is 600"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function'"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "is required"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"uniqueItems": True}}}},
            "text.format.schema",
            "uniqueItems",
        ),
        ({"n": 2}, "n", "Unknown parameter"),
        ({"model": "writes"}, "model", "no chat template"),
    ],
)
def test_what_is_refused(values: dict[str, Any], parameter: str, said: str, serving: Serving) -> None:
    body = {"model": "talks", "input": "Hello."} | values
    response = httpx2.post(f"http://127.0.0.1:{serving.port}/v1/responses", json=body, trust_env=False)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == parameter
    assert said in error["message"]


def test_parameters_without_effect_are_accepted(client: openai.OpenAI) -> None:
    found = client.responses.create(
        model="talks",
        input="Hello.",
        store=True,
        metadata={"a": "b"},
        reasoning={"effort": "low"},
        truncation="auto",
        include=["reasoning.encrypted_content"],
        text={"verbosity": "low"},
        max_output_tokens=2,
        service_tier="auto",
        extra_body={"previous_response_id": None, "stream": False, "tools": []},
    )
    assert found.metadata == {"a": "b"}
