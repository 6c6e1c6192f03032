"""Test Ollama's API, with raw requests and with its Python client."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema
import pytest

import finetale
from finetale.models import load_tokenizer
from serving import Serving
from tiny import save_model

TEMPLATE = (
    "{% if tools %}<tool_call>{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
ASKED = [{"role": "user", "content": "The lamp"}]
LIGHT = {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}
GREEDY = {"temperature": 0, "top_k": 0, "top_p": 1.0, "repeat_penalty": 1.0, "num_predict": 12}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    place = tmp_path_factory.mktemp("ollama")
    save_model(place / "writes", positions=256)
    folder = save_model(place / "talks", positions=256)
    own = load_tokenizer(folder)
    own.chat_template = TEMPLATE
    own.save_pretrained(folder)
    with Serving(place, "writes", "--also", "talks=talks", "--engine", "torch") as serving:
        yield serving


@pytest.fixture
def http(serving: Serving) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"http://127.0.0.1:{serving.port}", timeout=60, trust_env=False) as client:
        yield client


def post(http: httpx2.Client, path: str, **body: Any) -> Any:
    response = http.post(path, json={"stream": False} | body)
    assert response.status_code == 200, response.text
    return response.json()


def lines(http: httpx2.Client, path: str, **body: Any) -> list[Any]:
    response = http.post(path, json=body)
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_the_models(http: httpx2.Client) -> None:
    assert http.get("/api/version").json() == {"version": finetale.__version__}
    for path in ("/api/tags", "/api/ps"):
        models = http.get(path).json()["models"]
        assert [model["name"] for model in models] == ["writes", "talks"]
        assert all(len(model["digest"]) == 64 for model in models)
    shown = post(http, "/api/show", model="talks:latest")
    assert shown["template"] == TEMPLATE
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["finetale.context_length"] == 256
    assert post(http, "/api/show", name="writes")["capabilities"] == ["completion"]


def test_a_text_is_that_of_openais_route(http: httpx2.Client) -> None:
    found = post(http, "/api/generate", model="writes", prompt="The lamp", options=GREEDY)
    body = {"model": "writes", "prompt": "The lamp", "max_tokens": 12, "temperature": 0}
    expected = http.post("/v1/completions", json=body).json()
    assert found["response"] == expected["choices"][0]["text"]
    assert (found["model"], found["done"], found["done_reason"]) == ("writes", True, "length")
    assert found["eval_count"] == 12
    assert found["prompt_eval_count"] == expected["usage"]["prompt_tokens"]
    assert found["total_duration"] > 0
    streamed = lines(http, "/api/generate", model="writes", prompt="The lamp", options=GREEDY)
    assert "".join(line["response"] for line in streamed) == found["response"]
    assert [line["done"] for line in streamed] == [False] * (len(streamed) - 1) + [True]
    assert len(streamed) > 3
    assert streamed[-1]["eval_count"] == 12


def test_a_prompt_is_a_message_if_the_model_talks(http: httpx2.Client) -> None:
    chat = post(http, "/api/chat", model="talks", messages=ASKED, options=GREEDY)
    assert chat["message"]["role"] == "assistant"
    assert (
        post(http, "/api/generate", model="talks", prompt="The lamp", options=GREEDY)["response"]
        == (chat["message"]["content"])
    )
    raw = post(http, "/api/generate", model="talks", prompt="The lamp", raw=True, options=GREEDY)
    assert raw["prompt_eval_count"] < chat["prompt_eval_count"]
    told = post(http, "/api/generate", model="talks", prompt="The lamp", system="Be kind.", options=GREEDY)
    assert told["prompt_eval_count"] > chat["prompt_eval_count"]
    streamed = lines(http, "/api/chat", model="talks", messages=ASKED, options=GREEDY)
    assert "".join(line["message"]["content"] for line in streamed) == chat["message"]["content"]


def test_without_num_predict_a_text_has_no_limit_but_the_context(http: httpx2.Client) -> None:
    found = post(http, "/api/generate", model="writes", prompt="The lamp", options=GREEDY | {"num_predict": -1})
    assert found["prompt_eval_count"] + found["eval_count"] > 100


def test_a_format_is_kept(http: httpx2.Client) -> None:
    found = post(http, "/api/chat", model="talks", messages=ASKED, format=SCHEMA, options={"seed": 1})
    jsonschema.validate(json.loads(found["message"]["content"]), SCHEMA)
    found = post(http, "/api/generate", model="writes", prompt="The lamp", format=SCHEMA)
    assert found["done_reason"] == "stop"
    jsonschema.validate(json.loads(found["response"]), SCHEMA)


def test_a_request_without_a_prompt_loads_the_model(http: httpx2.Client) -> None:
    for path in ("/api/generate", "/api/chat"):
        assert post(http, path, model="talks")["done_reason"] == "load"


def test_tools_and_their_results(http: httpx2.Client) -> None:
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "light", "arguments": {"a": 1}}}],
    }
    asked = [*ASKED, called, {"role": "tool", "tool_name": "light", "content": "on"}]
    with_tools = post(http, "/api/chat", model="talks", messages=asked, tools=[LIGHT], options=GREEDY)
    without = post(http, "/api/chat", model="talks", messages=ASKED, options=GREEDY)
    assert with_tools["prompt_eval_count"] > without["prompt_eval_count"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/chat", {"model": "none", "messages": ASKED}, 404, "does not exist"),
        ("/api/chat", {"model": "writes", "messages": ASKED}, 400, "no chat template"),
        ("/api/chat", {"messages": ASKED}, 400, "model"),
        ("/api/chat", {"model": "talks", "messages": [ASKED[0] | {"images": ["x"]}]}, 400, "images"),
        ("/api/chat", {"model": "talks", "messages": ASKED, "options": {"temperature": -1}}, 400, "temperature"),
        ("/api/generate", {"model": "talks", "prompt": "x", "suffix": "y"}, 400, "suffix"),
        ("/api/generate", {"model": "talks", "prompt": "x", "format": {"type": "strin"}}, 400, "strin"),
        ("/api/generate", {"model": "talks", "prompt": "x", "format": "xml"}, 400, "format"),
        ("/api/show", {}, 404, "does not exist"),
    ],
)
def test_errors_are_those_of_ollama(path: str, body: Any, status: int, words: str, http: httpx2.Client) -> None:
    response = http.post(path, json=body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


def test_ollamas_client(serving: Serving) -> None:
    if importlib.util.find_spec("ollama") is None:
        pytest.skip("ollama is not installed")
    import ollama

    client = ollama.Client(host=f"http://127.0.0.1:{serving.port}")
    assert [model.model for model in client.list().models] == ["writes", "talks"]
    assert client.show("talks").capabilities == ["completion", "tools"]
    whole = client.chat(model="talks", messages=ASKED, options=GREEDY)
    streamed = list(client.chat(model="talks", messages=ASKED, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in streamed) == whole.message.content
    assert client.generate(model="writes", prompt="The lamp", options=GREEDY).response
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        client.chat(model="none", messages=ASKED)
    client._client.close()  # it has no method for this


def test_embeddings(http: httpx2.Client) -> None:
    found = post(http, "/api/embed", model="talks:latest", input=["The lamp", "A heron"])
    body = {"model": "talks", "input": ["The lamp", "A heron"]}
    expected = http.post("/v1/embeddings", json=body).json()
    assert found["embeddings"] == [item["embedding"] for item in expected["data"]]
    assert found["prompt_eval_count"] == expected["usage"]["prompt_tokens"]
    (alone,) = post(http, "/api/embed", model="talks", input="The lamp")["embeddings"]
    assert alone == pytest.approx(found["embeddings"][0], abs=1e-6)
    assert post(http, "/api/embed", model="talks", input="")["embeddings"] == []
    assert "can't be changed" in http.post("/api/embed", json=body | {"dimensions": 2}).json()["error"]
