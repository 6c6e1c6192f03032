"""Test the chat API with models that have a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from finetale.chat import PLAIN_TEMPLATE
from finetale.models import load_tokenizer
from serving import Serving
from tiny import save_model, tokenizer

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
LIGHT = {"type": "function", "function": {"name": "light"}}
LIGHT_CALL = {"id": "1", "type": "function", "function": {"name": "light", "arguments": "{}"}}
HELLO = [{"role": "user", "content": "The lamp"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    place = tmp_path_factory.mktemp("chat")
    save_model(place / "plain")
    folder = save_model(place / "talks")
    chat_tokenizer = load_tokenizer(folder)
    chat_tokenizer.chat_template = TEMPLATE
    chat_tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["bos_before_text"]  # as in a model that others trained
    (folder / "config.json").write_text(json.dumps(config))
    folder = save_model(place / "pairs")
    pair_tokenizer = load_tokenizer(folder)
    pair_tokenizer.chat_template = PLAIN_TEMPLATE
    pair_tokenizer.save_pretrained(folder)
    also = ("--also", "plain=plain", "--also", "pairs=pairs")
    with (
        Serving(place, "talks", *also, "--engine", "torch") as serving,
        openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def talk(client: openai.OpenAI, **values: Any) -> Any:
    given = {"model": "talks", "messages": HELLO, "max_tokens": 12, "temperature": 0} | values
    return client.chat.completions.create(**given)


def test_the_plain_template_is_the_one_of_training(client: openai.OpenAI) -> None:
    found = talk(client, model="pairs", messages=[*HELLO])
    # A string prompt gets the beginning-of-text that the training text had.
    prompt = "User:\nThe lamp\n\nAssistant:\n"
    completed = client.completions.create(model="pairs", prompt=prompt, max_tokens=12, temperature=0)
    assert found.choices[0].message.content == completed.choices[0].text
    assert found.usage.prompt_tokens == completed.usage.prompt_tokens + 1  # usage of a chat includes beginning-of-text


def test_a_chat_answer_equals_the_completion_of_the_rendered_template(client: openai.OpenAI) -> None:
    asked = [
        *HELLO,
        {"role": "assistant", "content": "stood"},
        {"role": "user", "content": [{"type": "text", "text": "on"}]},
    ]
    found = talk(client, messages=asked)
    ids = tokenizer()("user: The lamp\nassistant: stood\nuser: on\nassistant:")["input_ids"]
    completed = client.completions.create(model="talks", prompt=ids, max_tokens=12, temperature=0)
    assert found.object == "chat.completion"
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].message.content == completed.choices[0].text
    assert found.usage.model_dump(exclude_none=True) == completed.usage.model_dump(exclude_none=True)
    assert found.choices[0].finish_reason == completed.choices[0].finish_reason


def test_a_chat_stream_adds_up_to_the_message(client: openai.OpenAI) -> None:
    whole = talk(client, n=2, temperature=1, seed=4)
    parts = list(talk(client, n=2, temperature=1, seed=4, stream=True, stream_options={"include_usage": True}))
    assert {part.object for part in parts} == {"chat.completion.chunk"}
    assert parts[-1].choices == []
    assert parts[-1].usage == whole.usage
    for choice in whole.choices:
        mine = [part.choices[0] for part in parts[:-1] if part.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert all(part.delta.role is None for part in mine[1:])
        assert "".join(part.delta.content for part in mine) == choice.message.content
        assert [part.finish_reason for part in mine][-1] == choice.finish_reason


def test_a_stream_can_send_the_usage_in_each_chunk(client: openai.OpenAI) -> None:
    """As load generators ask for it (vLLM's extension)."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    parts = list(talk(client, temperature=0, stream=True, stream_options=options))
    made = [part.usage.completion_tokens for part in parts]
    assert len(made) > 4
    assert made == sorted(made)
    assert made[0] < made[-1] == 12
    assert {part.usage.prompt_tokens for part in parts} == {parts[-1].usage.prompt_tokens}


def test_log_probabilities_of_a_message(client: openai.OpenAI) -> None:
    content = talk(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(content) == 12
    for token in content:
        assert len(token.top_logprobs) == 2
        assert token.logprob == max(other.logprob for other in token.top_logprobs), "the chosen token is the likeliest"
        if not token.token.startswith("bytes:"):
            assert bytes(token.bytes).decode() == token.token
        else:
            assert len(token.bytes) >= 1
    assert talk(client).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("values", "parameter", "words"),
    [
        ({"model": "plain"}, "model", "no chat template"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, "messages", "no system here"),
        ({"messages": []}, "messages", ""),
        ({"messages": [{"role": "other", "content": "x"}]}, "messages[0].role", ""),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [LIGHT_CALL]}]}, "messages[0].tool_calls", ""),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id", ""),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [LIGHT], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "no tool"),
        ({"tools": [LIGHT, LIGHT]}, "tools", "same name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", ""),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages[0].content[0].type",
            "",
        ),
        ({"messages": [*HELLO, {"role": "user", "content": [{"type": "text"}]}]}, "messages[1].content[0].text", ""),
        ({"tools": [LIGHT]}, "tool_choice", "no tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type", ""),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", ""),
        ({"stop": "x" * 1001}, "stop", "1000"),
        ({"extra_body": {"unknown": 1}}, "unknown", "Unknown parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "requires logprobs"),
        ({"max_completion_tokens": 3}, "max_tokens", "one of them"),
        ({"max_tokens": 5000}, "max_tokens", "context"),
        ({"messages": [{"role": "user", "content": "lamp " * 70}], "max_tokens": None}, "prompt", "context"),
        ({"messages": [{"role": "user", "content": "lamp " * 100_000}]}, "messages", "characters"),
    ],
)
def test_unsupported_chat_parameters_are_refused(
    client: openai.OpenAI, values: dict[str, Any], parameter: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        talk(client, **values)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == parameter
    assert words in caught.value.body["message"]


def test_a_clients_own_parameters_are_accepted(client: openai.OpenAI) -> None:
    """Clients send parameters that concern OpenAI's service, and the fields of a response when they send it back."""
    plain = talk(client, messages=[*HELLO, {"role": "assistant", "content": "stood"}, *HELLO])
    first = talk(client).choices[0].message.model_dump() | {"content": "stood"}
    answered = first | {"refusal": None, "annotations": [], "audio": None, "tool_calls": None, "reasoning": "…"}
    found = talk(
        client,
        messages=[*HELLO, answered, *HELLO],
        store=True,
        metadata={"purpose": "test"},
        service_tier="auto",
        parallel_tool_calls=True,
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        reasoning_effort="low",
        verbosity="low",
        modalities=["text"],
        logprobs=True,
        top_logprobs=20,
    )
    assert found.choices[0].message.content == plain.choices[0].message.content
    assert len(found.choices[0].logprobs.content[0].top_logprobs) == 20


def test_an_assistants_message_without_text_and_the_developers_role(client: openai.OpenAI) -> None:
    empty = [{"role": "assistant", "content": None}, *HELLO]
    assert talk(client, messages=[*HELLO, *empty]).choices[0].message.content is not None
    with pytest.raises(openai.BadRequestError, match="no system here"):
        talk(client, messages=[{"role": "developer", "content": "Be kind."}, *HELLO])
