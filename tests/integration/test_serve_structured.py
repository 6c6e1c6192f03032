"""Test structured output of a real server with the clients that people use."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import operator
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from finetale.chat import PLAIN_TEMPLATE
from finetale.models import load_tokenizer
from serving import Client, Serving
from tiny import save_model


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")

    city: Literal["Paris", "北京"]


class Person(BaseModel):
    """A person."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern="^[a-z]{1,8}$", description="The name.")]
    age: Annotated[int, Field(ge=0, le=120)]
    home: Place | None
    tags: Annotated[list[Literal["poet", "sailor"]], Field(max_length=2)]


TOOL_TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}<tool_call>{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function.arguments | tojson }}</tool_call>{% endfor %}"
    "\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "北京"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}
ASKED = [{"role": "user", "content": "Who stood at the lamp?"}]
SCHEMA = Person.model_json_schema()
BOTH = pytest.mark.parametrize("engine", ["torch", "openvino"])


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    place = tmp_path_factory.mktemp("structured")
    folder = save_model(place / "torch", positions=512)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.save_pretrained(folder)
    folder = save_model(place / "calls", positions=512)
    tokenizer.chat_template = TOOL_TEMPLATE
    tokenizer.save_pretrained(folder)
    with Serving(place, "torch", "--also", "calls=calls", "--engine", "torch") as serving:
        yield serving


@pytest.fixture
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_parses_a_model_of_pydantic(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model="torch", messages=ASKED, response_format=Person, n=4, seed=1, max_tokens=200
    )
    assert len(found.choices) == 4
    for choice in found.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Person)


def test_openai_raises_for_a_text_that_was_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="torch", messages=ASKED, response_format=Person, max_tokens=5)


def test_a_stream_of_openai_parses(client: openai.OpenAI) -> None:
    asked = {"model": "torch", "messages": ASKED, "response_format": Person, "seed": 2, "max_tokens": 200}
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion()
    assert "content.delta" in kinds
    whole = client.chat.completions.parse(**asked)
    assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed


def test_any_object(client: openai.OpenAI) -> None:
    ended = 0
    for seed in range(4):
        found = client.chat.completions.create(
            model="torch", messages=ASKED, response_format={"type": "json_object"}, n=4, seed=seed, max_tokens=150
        )
        for choice in found.choices:
            if choice.finish_reason == "stop":
                assert isinstance(json.loads(choice.message.content or ""), dict)
                ended += 1
    assert ended


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"guided_regex": "(lamp|boat){1,3}"}, "(lamp|boat){1,3}"),
        ({"guided_choice": ["yes", "诗"]}, "yes|诗"),
        ({"guided_grammar": 'root ::= "a" [0-9]'}, "a[0-9]"),
        ({"guided_json": {"type": "integer", "minimum": 0, "maximum": 9}}, "[0-9]"),
        ({"guided_json": '{"const": "x"}'}, '"x"'),
        ({"structured_outputs": {"regex": "(lamp|boat)"}}, "lamp|boat"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "a|b"),
        ({"structured_outputs": {"grammar": 'start: "a" | "b"'}}, "a|b"),
        ({"structured_outputs": {"json": {"const": [1, 2]}, "disable_any_whitespace": True}}, r"\[1,2\]"),
    ],
)
def test_the_parameters_of_vllm(values: dict[str, Any], pattern: str, client: openai.OpenAI) -> None:
    told = client.chat.completions.create(model="torch", messages=ASKED, extra_body=values, n=3, max_tokens=60)
    texts = [(choice.message.content, choice.finish_reason) for choice in told.choices]
    written = client.completions.create(model="torch", prompt="The lamp", extra_body=values, n=3, max_tokens=60)
    texts += [(choice.text, choice.finish_reason) for choice in written.choices]
    for text, reason in texts:
        assert reason == "stop"
        assert re.fullmatch(pattern, text or ""), text


def test_a_bad_schema_is_refused_with_its_parameter(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="torch", messages=ASKED, response_format=wanted)  # type: ignore[call-overload]
    assert caught.value.param == "response_format.json_schema.schema"
    assert "uniqueItems" in str(caught.value)


def test_openvino_writes_the_form_too(tmp_path: Any) -> None:
    save_model(tmp_path / "tiny", positions=512)
    with (
        Serving(tmp_path, "tiny", "--engine", "openvino") as serving,
        openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0) as client,
    ):
        found = client.completions.create(
            model="tiny", prompt="The lamp", extra_body={"guided_json": SCHEMA}, n=8, seed=3, max_tokens=200
        )
        for choice in found.choices:
            assert choice.finish_reason == "stop", choice.text
            jsonschema.validate(json.loads(choice.text), SCHEMA)


def test_compiling_does_not_stop_a_running_stream(serving: Serving) -> None:
    """Large schemas are compiled one after the other while a stream runs. Its longest pause stays short."""
    large = {"properties": {f"property_{i:05}": {"type": "string"} for i in range(1000)}}

    async def body() -> float:
        streaming, asking = await Client.to(serving), await Client.to(serving)
        streaming.send(
            "POST",
            "/v1/completions",
            {"model": "torch", "prompt": "The", "max_tokens": 400, "stream": True, "logit_bias": {"0": -100}},
        )
        await streaming.head()
        pauses: list[float] = []

        async def read() -> None:
            clock = asyncio.get_running_loop().time
            last = clock()
            while size := int(await streaming.reader.readline(), 16):
                await streaming.reader.readexactly(size + 2)
                pauses.append(clock() - last)
                last = clock()

        reading = asyncio.create_task(read())
        for number in range(3):
            schema = large | {"title": str(number)}
            body = {"model": "torch", "prompt": "The", "guided_json": schema, "max_tokens": 1}
            status, *_ = await asking.ask("POST", "/v1/completions", body)
            assert status in (200, 400)
        await reading
        await streaming.close()
        await asking.close()
        return max(pauses)

    assert asyncio.run(body()) < 1.0


def test_instructor(client: openai.OpenAI) -> None:
    if importlib.util.find_spec("instructor") is None:
        pytest.skip("instructor is not installed")
    import instructor

    asker = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    found = asker.chat.completions.create(
        model="torch", messages=ASKED, response_model=Person, max_retries=0, max_tokens=200
    )
    assert isinstance(found, Person)


def test_langchain(serving: Serving) -> None:
    if importlib.util.find_spec("langchain_openai") is None:
        pytest.skip("langchain-openai is not installed")
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        model="torch", base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_tokens=200, max_retries=0
    )
    found = chat.with_structured_output(Person, method="json_schema").invoke("Who stood at the lamp?")
    assert isinstance(found, Person)
    found = chat.with_structured_output(SCHEMA, method="json_schema").invoke("Who stood at the lamp?")
    jsonschema.validate(found, SCHEMA)


# Tools

MODELS = pytest.mark.parametrize("model", ["torch", "calls"])


@MODELS
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_required_tool_is_called(model: str, choice: Any, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "tools": [WEATHER], "tool_choice": choice, "seed": 1}
    asked |= {"max_tokens": 300, "parallel_tool_calls": False, "n": 3}
    found = client.chat.completions.create(**asked)
    called: list[Any] = []
    for choice in found.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "weather")
        jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])  # type: ignore[index]
        called.append(call)
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion()
    for choice, call in zip(streamed.choices, called, strict=True):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls[0].function.name == "weather"
        assert choice.message.tool_calls[0].function.arguments == call.function.arguments


@MODELS
def test_a_streamed_call_arrives_in_pieces(model: str, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "tools": [WEATHER], "tool_choice": NAMED, "seed": 4}
    asked |= {"max_tokens": 300}
    whole = client.chat.completions.create(**asked).choices[0]
    (call,) = whole.message.tool_calls
    chunks = list(client.chat.completions.create(stream=True, **asked))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert parts[0].id
    assert [part.function.name for part in parts] == ["weather"] + [None] * (len(parts) - 1)
    assert len(parts) > 5
    assert "".join(part.function.arguments for part in parts) == call.function.arguments
    assert {part.index for part in parts} == {0}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["tool_calls"]


@MODELS
def test_openai_parses_the_arguments_of_a_tool(model: str, client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model=model,
        messages=ASKED,
        tools=[openai.pydantic_function_tool(Person)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=300,
    )
    (call,) = found.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Person)


def test_the_result_of_a_tool_is_part_of_the_conversation(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "calls", "tools": [WEATHER], "max_tokens": 100}
    first = client.chat.completions.create(messages=ASKED, tool_choice=NAMED, seed=1, **asked)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Rain."}
    sent: list[Any] = [*ASKED, message.model_dump(), result]
    found = client.chat.completions.create(messages=sent, seed=1, **asked)
    # The tools, the call and its result are in the prompt.
    plain = client.chat.completions.create(messages=sent, seed=1, **(asked | {"tool_choice": "none"}))
    without = client.chat.completions.create(messages=ASKED, seed=1, **(asked | {"tool_choice": "none"}))
    assert found.usage.prompt_tokens > plain.usage.prompt_tokens > without.usage.prompt_tokens + 10
    assert found.choices[0].message.content is not None


def test_auto_without_a_template_for_tools_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="torch", messages=ASKED, tools=[WEATHER])  # type: ignore[list-item]
    assert caught.value.param == "tool_choice"


def test_instructor_with_tools(client: openai.OpenAI) -> None:
    if importlib.util.find_spec("instructor") is None:
        pytest.skip("instructor is not installed")
    import instructor

    for model in ("torch", "calls"):
        asker = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
        found = asker.chat.completions.create(
            model=model, messages=ASKED, response_model=Person, max_retries=0, max_tokens=300
        )
        assert isinstance(found, Person)


def test_langchain_with_tools(serving: Serving) -> None:
    if importlib.util.find_spec("langchain_openai") is None:
        pytest.skip("langchain-openai is not installed")
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        model="calls", base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_tokens=300, max_retries=0
    )
    found = chat.with_structured_output(Person, method="function_calling").invoke("Who stood at the lamp?")
    assert isinstance(found, Person)
    called = chat.bind_tools([WEATHER], tool_choice="required", parallel_tool_calls=False).invoke("The weather?")
    (call,) = called.tool_calls
    assert call["name"] == "weather"
    jsonschema.validate(call["args"], WEATHER["function"]["parameters"])  # type: ignore[index]
    chunks = list(chat.bind_tools([WEATHER], tool_choice="weather").stream("The weather?"))
    assert [call["name"] for chunk in chunks for call in chunk.tool_call_chunks if call["name"]] == ["weather"]
    (call,) = functools.reduce(operator.add, chunks).tool_calls
    jsonschema.validate(call["args"], WEATHER["function"]["parameters"])  # type: ignore[index]
    assert chat.bind_tools([WEATHER]).invoke("The weather?").content
