import litellm
from checks import ASKED, MODEL, SCHEMA, URL, WEATHER, expect, expect_arguments, run

litellm.telemetry = False
OPTIONS = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": "none", "num_retries": 0}
FORMAT = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}


def plain():
    expect(litellm.completion(messages=ASKED, max_tokens=20, **OPTIONS).choices[0].message.content)
    text = litellm.text_completion(
        **(OPTIONS | {"model": f"text-completion-openai/{MODEL}"}), prompt="The", max_tokens=9
    )
    expect(text.choices[0].text)


def stream():
    chunks = list(litellm.completion(messages=ASKED, max_tokens=20, temperature=0, stream=True, **OPTIONS))
    expect(len(chunks) > 4, chunks)


def tools():
    asked = {"messages": ASKED, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 200, "seed": 1}
    (call, *_) = litellm.completion(**asked, **OPTIONS).choices[0].message.tool_calls
    expect_arguments(call.function.arguments)
    whole = litellm.stream_chunk_builder(list(litellm.completion(stream=True, **asked, **OPTIONS)))
    expect(whole.choices[0].message.tool_calls[0].function.arguments == call.function.arguments)


def structured():
    found = litellm.completion(messages=ASKED, response_format=FORMAT, max_tokens=200, **OPTIONS)
    expect_arguments(found.choices[0].message.content)


def embeddings():
    found = litellm.embedding(input=["The lamp", "A heron"], **OPTIONS)
    expect([len(item["embedding"]) for item in found.data] == [32, 32])


run("litellm", {f.__name__: f for f in (plain, stream, tools, structured, embeddings)})
