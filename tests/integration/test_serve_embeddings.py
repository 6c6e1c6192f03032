"""Test the embeddings of a real server with OpenAI's client, against transformers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from finetale.models import load_tokenizer
from finetale.tokens import begin_and_end
from serving import Serving
from tiny import save_model, story

TEXTS = ["The lamp stood on the sill.", "北京 🦉", story(3, 300)]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    place = tmp_path_factory.mktemp("embeddings")
    save_model(place / "tiny", positions=600)
    with Serving(place, "tiny", "--engine", "torch", "--queue", "0", "--slots", "1") as serving:
        yield serving


@pytest.fixture
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def expected(serving: Serving) -> torch.Tensor:
    """Return the mean of the last hidden states of each text, with length 1, (texts, width)."""
    folder = serving._log.parent / "tiny"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    rows = []
    for text in TEXTS:
        ids = torch.tensor([[begin_and_end(tokenizer)[0], *tokenizer(text)["input_ids"]]])
        with torch.inference_mode():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, 1:]
        rows.append(states.mean(0) / states.mean(0).norm())
    return torch.stack(rows)


def test_embeddings_are_the_mean_of_the_last_hidden_states(serving: Serving, client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="tiny", input=TEXTS)  # asks for base64
    rows = torch.tensor([item.embedding for item in found.data])
    assert torch.allclose(rows, expected(serving), atol=1e-5)
    assert [item.index for item in found.data] == [0, 1, 2]
    plain = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float", dimensions=rows.shape[1])
    assert torch.allclose(torch.tensor([item.embedding for item in plain.data]), rows, atol=1e-6)
    (alone,) = client.embeddings.create(model="tiny", input=TEXTS[1]).data
    assert torch.allclose(torch.tensor(alone.embedding), rows[1], atol=1e-6)
    tokenizer = load_tokenizer(serving._log.parent / "tiny")
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert len(ids[2]) > 256  # read in several passes
    same = client.embeddings.create(model="tiny", input=ids)
    assert torch.allclose(torch.tensor([item.embedding for item in same.data]), rows, atol=1e-6)
    assert found.usage.prompt_tokens == same.usage.prompt_tokens == sum(map(len, ids)) + 3
    (described,) = client.models.list().data
    assert described.model_extra["embeddings"] == {"pooling": "mean", "dimensions": rows.shape[1]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("values", "parameter", "said"),
    [
        ({"dimensions": 3}, "dimensions", "have 32 numbers"),
        ({"input": ["a", ""]}, "input", "input[1]: has no text"),
        ({"input": []}, "input", "must be a string"),
        ({"input": ["a"] * 2049}, "input", "has 2,049 texts; the maximum is 2,048"),
        ({"input": [[400_000]]}, "input", "ids must be below"),
        ({"input": "x" * 900}, "input", "input[0] has 901 tokens"),
        ({"input": "x" * 100_000}, "input", "100,000 characters"),
        ({"input": [[5] * 500] * 700}, "input", "has 350,700 tokens; the maximum is 300,000"),
        ({"encoding_format": "int8"}, "encoding_format", "'base64'"),
        ({"pooling": "last"}, "pooling", "Unknown parameter"),
    ],
)
def test_what_is_refused(values: dict[str, Any], parameter: str, said: str, serving: Serving) -> None:
    body = {"model": "tiny", "input": "Hello."} | values
    response = httpx2.post(f"http://127.0.0.1:{serving.port}/v1/embeddings", json=body, trust_env=False)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == parameter
    assert said in error["message"]


def test_openvino_gives_none(tmp_path: Any) -> None:
    pytest.importorskip("openvino")
    save_model(tmp_path / "tiny")
    with Serving(tmp_path, "tiny", "--engine", "openvino") as serving:
        url = f"http://127.0.0.1:{serving.port}/v1"
        response = httpx2.post(f"{url}/embeddings", json={"model": "tiny", "input": "a"}, trust_env=False)
        assert response.status_code == 400
        assert "Serve it with --engine torch" in response.json()["error"]["message"]
        assert httpx2.get(f"{url}/models", trust_env=False).json()["data"][0]["embeddings"] is None


def test_a_request_counts_in_the_queue(serving: Serving) -> None:
    """With no room to wait, of requests that arrive together one is computed and the others are refused."""
    url = f"http://127.0.0.1:{serving.port}/v1/embeddings"

    def ask(number: int) -> httpx2.Response:
        body = {"model": "tiny", "input": [[5] * 500] * 60}
        return httpx2.post(url, json=body, trust_env=False, timeout=300)

    with ThreadPoolExecutor() as threads:
        found = list(threads.map(ask, range(3)))
    assert {each.status_code for each in found} == {200, 429}
    refused = next(each for each in found if each.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full"
    assert ask(3).status_code == 200


def test_a_client_that_leaves_frees_its_place(serving: Serving) -> None:
    """There is no queue, so the next request is computed only when the texts of the first are given up."""
    url = f"http://127.0.0.1:{serving.port}/v1/embeddings"

    def ask(number: int, seconds: float) -> httpx2.Response:
        body = {"model": "tiny", "input": [[5] * 590] * number}
        return httpx2.post(url, json=body, trust_env=False, timeout=seconds)

    started = time.monotonic()
    assert ask(100, 60).status_code == 200
    seconds = 5 * (time.monotonic() - started)  # of 500 texts
    with pytest.raises(httpx2.TimeoutException):
        ask(500, seconds / 10)
    started = time.monotonic()
    while (response := ask(1, 60)).status_code == 429:
        assert time.monotonic() - started < seconds / 2, "the texts of the client that left are still computed"
        time.sleep(0.05)
    assert response.status_code == 200
