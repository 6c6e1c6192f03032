"""Simon Willison's llm, as its users set it up: with a file of extra models."""

import json
import os
import pathlib
import tempfile

home = pathlib.Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(home)

import llm  # noqa: E402  (it reads the variable)
from checks import MODEL, SCHEMA, URL, expect, expect_arguments, run  # noqa: E402

entry = {"model_id": "here", "model_name": MODEL, "api_base": URL, "supports_tools": True, "supports_schema": True}
(home / "extra-openai-models.yaml").write_text(json.dumps([entry]))
model = llm.get_model("here")


def plain():
    expect(model.prompt("Who?", stream=False, key="none", max_tokens=20).text())


def stream():
    expect(len(list(model.prompt("Who?", key="none", max_tokens=40))) > 4)


def structured():
    expect_arguments(model.prompt("Who?", schema=SCHEMA, key="none", max_tokens=200).text())


def tools():
    def weather(city: str) -> str:
        return "rain"

    for streams in (False, True):  # the tiny model decides itself, and writes text
        expect(model.prompt("Who?", tools=[weather], stream=streams, key="none", max_tokens=20).text())


run("llm", {f.__name__: f for f in (plain, stream, tools, structured)})
