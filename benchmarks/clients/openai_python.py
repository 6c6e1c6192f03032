import openai
from checks import ASKED, LONG, MODEL, SCHEMA, URL, WEATHER, expect, expect_arguments, expect_idle, expect_pieces, run

client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
FORMAT = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}


def plain():
    text = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=20).choices[0].message.content
    expect(text)
    expect(client.completions.create(model=MODEL, prompt="The lamp", max_tokens=20).choices[0].text)
    expect(client.responses.create(model=MODEL, input="Who?", max_output_tokens=20).output_text)


def stream():
    with client.chat.completions.stream(model=MODEL, messages=ASKED, max_tokens=20, temperature=0) as events:
        kinds = [event.type for event in events]
    expect(kinds.count("content.delta") > 3, kinds)
    with client.responses.stream(model=MODEL, input="Who?", max_output_tokens=20, temperature=0) as events:
        kinds = [event.type for event in events]
    expect(kinds.count("response.output_text.delta") > 3, kinds)


def tools():
    asked = {"model": MODEL, "messages": ASKED, "tools": [WEATHER], "tool_choice": "required", "seed": 1}
    asked |= {"parallel_tool_calls": False, "max_tokens": 200}
    (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls
    expect_arguments(call.function.arguments)
    with client.chat.completions.stream(**asked) as events:
        (streamed,) = events.get_final_completion().choices[0].message.tool_calls
    expect(streamed.function.arguments == call.function.arguments, streamed)
    tool = {"type": "function", **WEATHER["function"]}
    (item,) = client.responses.create(
        model=MODEL, input="Who?", tools=[tool], tool_choice="required", parallel_tool_calls=False
    ).output
    expect_arguments(item.arguments)


def structured():
    found = client.chat.completions.create(model=MODEL, messages=ASKED, response_format=FORMAT, max_tokens=200)
    expect_arguments(found.choices[0].message.content)
    text = {"format": {"type": "json_schema", "name": "trip", "schema": SCHEMA, "strict": True}}
    expect_arguments(client.responses.create(model=MODEL, input="Who?", text=text, max_output_tokens=200).output_text)


def embeddings():
    found = client.embeddings.create(model=MODEL, input=["The lamp", "A heron"])
    expect([len(item.embedding) for item in found.data] == [32, 32])


def cancel():
    stream = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=LONG, temperature=0, stream=True)
    expect_pieces(stream)
    stream.close()
    expect_idle()


run("openai", {f.__name__: f for f in (plain, stream, tools, structured, embeddings, cancel)})
