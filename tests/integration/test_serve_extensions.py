"""Test the parameters and routes of vLLM's API that OpenAI's does not have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from finetale.chat import PLAIN_TEMPLATE
from finetale.cli import run
from finetale.models import load_tokenizer
from serving import Serving
from tiny import save_model, tokenizer

ASKED = [{"role": "user", "content": "The lamp"}]
TEMPLATE = (
    "{% if tools %}{{ tools[0].function.name }} {% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ mark or '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
END = 0
"""End-of-text of the tiny model."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    place = tmp_path_factory.mktemp("extensions")
    folder = save_model(place / "tiny", positions=128)
    own = load_tokenizer(folder)
    own.chat_template = PLAIN_TEMPLATE
    own.save_pretrained(folder)
    (place / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    words = ("tiny", "--engine", "torch", "--chat-template", "template.jinja")
    with (
        Serving(place, *words) as serving,
        openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def write(client: openai.OpenAI, **values: Any) -> Any:
    extra = {name: values.pop(name) for name in list(values) if name not in ("logprobs", "echo", "stop", "n", "stream")}
    asked = {"model": "tiny", "max_tokens": 12, "temperature": 0, "prompt": "The lamp"}
    asked |= {name: extra.pop(name) for name in list(extra) if name in ("prompt", "max_tokens", "logit_bias")}
    return client.completions.create(**asked, **values, extra_body=extra)  # type: ignore[call-overload]


def post(client: openai.OpenAI, path: str, **body: Any) -> Any:
    return client.post(str(client.base_url).removesuffix("v1/") + path, body={"model": "tiny"} | body, cast_to=object)


def ids_of(text: str) -> list[int]:
    return list(tokenizer()(text)["input_ids"])


def test_token_ids_are_returned(client: openai.OpenAI) -> None:
    for more in ({}, {"logprobs": 1}, {"stop": ["zzz"]}):
        choice = write(client, return_token_ids=True, n=2, **more).choices[1]
        assert choice.prompt_token_ids == [END, *ids_of("The lamp")]
        assert len(choice.token_ids) == 12
        assert tokenizer().decode(choice.token_ids, skip_special_tokens=True) == choice.text
        parts = [part.choices[0] for part in write(client, return_token_ids=True, stream=True, **more)]
        assert [token for part in parts for token in part.token_ids] == choice.token_ids
        assert parts[0].prompt_token_ids == choice.prompt_token_ids


def test_end_of_text_is_ignored_or_late(client: openai.OpenAI) -> None:
    ends = {"logit_bias": {str(END): 100}}
    assert write(client, **ends).usage.completion_tokens == 1
    ignored = write(client, ignore_eos=True, return_token_ids=True, **ends)
    assert ignored.choices[0].token_ids == [END] * 12
    assert (ignored.choices[0].finish_reason, ignored.choices[0].text) == ("length", "")
    late = write(client, min_tokens=5, return_token_ids=True, **ends)
    assert len(late.choices[0].token_ids) == 6
    assert late.choices[0].token_ids.index(END) == 5
    assert late.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("more", [{}, {"logprobs": 1}])
def test_a_token_stops(more: dict[str, Any], client: openai.OpenAI) -> None:
    plain = write(client, return_token_ids=True, **more).choices[0]
    stop = next(token for place, token in enumerate(plain.token_ids) if place > 2)
    place = plain.token_ids.index(stop)
    before = tokenizer().decode(plain.token_ids[:place])
    found = write(client, stop_token_ids=[stop], **more).choices[0]
    assert (found.text, found.finish_reason) == (before, "stop")
    shown = write(client, stop_token_ids=[stop], include_stop_str_in_output=True, **more).choices[0]
    assert (shown.text, shown.finish_reason) == (tokenizer().decode(plain.token_ids[: place + 1]), "stop")
    later = write(client, stop_token_ids=[stop], min_tokens=12, return_token_ids=True).choices[0]
    assert stop not in later.token_ids[:11]


def test_a_stop_string_can_stay(client: openai.OpenAI) -> None:
    text = write(client).choices[0].text
    stop = text[4:7]
    at = text.index(stop)
    assert write(client, stop=[stop]).choices[0].text == text[:at]
    assert write(client, stop=[stop], include_stop_str_in_output=True).choices[0].text == text[: at + 3]


def test_special_tokens_can_be_shown(client: openai.OpenAI) -> None:
    values = {"ignore_eos": True, "logit_bias": {str(END): 100}, "max_tokens": 2}
    assert write(client, **values).choices[0].text == ""
    name = tokenizer().convert_ids_to_tokens(END)
    assert write(client, skip_special_tokens=False, **values).choices[0].text == name * 2


def test_log_probabilities_of_the_prompt(client: openai.OpenAI) -> None:
    echoed = write(client, echo=True, logprobs=2, n=2).choices[0].logprobs
    found = write(client, prompt_logprobs=2, n=2)
    ids = [END, *ids_of("The lamp")]
    for choice in found.choices:
        assert choice.prompt_logprobs[0] is None
        for place, token in enumerate(ids[1:], start=1):
            entry = choice.prompt_logprobs[place]
            assert next(iter(entry)) == str(token)
            assert entry[str(token)]["logprob"] == pytest.approx(echoed.token_logprobs[place], abs=1e-5)
            assert entry[str(token)]["decoded_token"] == echoed.tokens[place]
            assert len(entry) in (2, 3)
            assert {1, 2} <= {value["rank"] for value in entry.values()}
    chat = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=1, extra_body={"prompt_logprobs": 0, "return_token_ids": True}
    )
    assert len(chat.choices[0].prompt_logprobs) == chat.usage.prompt_tokens
    assert len(chat.choices[0].prompt_token_ids) == chat.usage.prompt_tokens


def test_a_prompt_is_truncated_at_its_start(client: openai.OpenAI) -> None:
    ids = ids_of("The lamp stood on the sill and the boat lay in the reeds. " * 20)
    found = write(client, prompt=ids, truncate_prompt_tokens=6, return_token_ids=True).choices[0]
    assert found.prompt_token_ids == ids[-6:]
    text = tokenizer().decode(ids)
    found = write(client, prompt=text, truncate_prompt_tokens=6, return_token_ids=True).choices[0]
    assert found.prompt_token_ids == [END, *ids_of(text)[-5:]]
    found = write(client, prompt=ids, truncate_prompt_tokens=-1, return_token_ids=True, max_tokens=8).choices[0]
    assert found.prompt_token_ids == ids[-120:]


def test_top_k_minus_one_is_all_tokens(client: openai.OpenAI) -> None:
    assert write(client, top_k=-1).choices[0].text == write(client).choices[0].text


def test_the_template_of_a_file_and_its_variables(client: openai.OpenAI) -> None:
    def prompt(messages: list[Any] = ASKED, **values: Any) -> str:
        found = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=1, extra_body={"return_token_ids": True} | values
        )
        return str(tokenizer().decode(found.choices[0].prompt_token_ids, skip_special_tokens=True))

    assert prompt() == "user: The lamp\nassistant:"
    assert prompt(chat_template_kwargs={"mark": "!"}) == "user: The lamp!\nassistant:"
    assert prompt(add_generation_prompt=False) == "user: The lamp\n"
    begun = [*ASKED, {"role": "assistant", "content": "stood"}]
    assert prompt(begun, continue_final_message=True) == "user: The lamp\nassistant: stood"


@pytest.mark.parametrize(
    ("text", "words"), [("{% if %}", "is not valid Jinja"), (b"\xff\xfe\xfa", "can't be read"), (None, "can't be read")]
)
def test_a_template_that_is_invalid_is_refused_before_loading(
    text: str | bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "template.jinja"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert run(["serve", "no-such-model", "--chat-template", str(path)]) == 1
    printed = capsys.readouterr().err
    assert words in printed
    assert "no-such-model" not in printed


def test_texts_are_tokenized(client: openai.OpenAI) -> None:
    found = post(client, "tokenize", prompt="The lamp — é")
    ids = [END, *ids_of("The lamp — é")]
    assert found == {"count": len(ids), "max_model_len": 128, "tokens": ids, "token_strs": None}
    found = post(client, "tokenize", prompt="The lamp", add_special_tokens=False, return_token_strs=True)
    assert found["tokens"] == ids_of("The lamp")
    assert "".join(found["token_strs"]) == "The lamp"
    told = post(client, "tokenize", messages=ASKED, tools=[{"type": "function", "function": {"name": "weather"}}])
    assert post(client, "detokenize", tokens=told["tokens"]) == {
        "prompt": f"{tokenizer().eos_token}weather user: The lamp\nassistant:"
    }


@pytest.mark.parametrize(
    ("path", "values", "parameter"),
    [
        ("v1/completions", {"stop_token_ids": [100_000]}, "stop_token_ids"),
        ("v1/completions", {"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ("v1/completions", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("v1/completions", {"truncate_prompt_tokens": 3, "echo": True}, "truncate_prompt_tokens"),
        ("v1/completions", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ("v1/completions", {"prompt_logprobs": 21}, "prompt_logprobs"),
        ("v1/completions", {"top_k": -2}, "top_k"),
        ("v1/completions", {"min_tokens": -1}, "min_tokens"),
        ("v1/completions", {"use_beam_search": True}, "use_beam_search"),
        ("v1/completions", {"add_generation_prompt": True}, "add_generation_prompt"),
        ("v1/chat/completions", {"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ("v1/chat/completions", {"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
        ("v1/chat/completions", {"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        (
            "v1/chat/completions",
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "x", "messages": ASKED}, "prompt"),
        ("tokenize", {"prompt": "x" * 100_000}, "prompt"),
        ("tokenize", {"prompt": "x", "model": "other"}, "model"),
        ("detokenize", {"tokens": [100_000]}, "tokens"),
        ("detokenize", {"tokens": "x"}, "tokens"),
    ],
)
def test_what_is_refused(path: str, values: dict[str, Any], parameter: str, client: openai.OpenAI) -> None:
    body = ({"messages": ASKED} if "chat" in path else {}) | values
    with pytest.raises(openai.APIStatusError) as caught:
        post(client, path, **body)
    assert caught.value.status_code in (400, 404)
    assert caught.value.body["param"] == parameter  # type: ignore[index]
