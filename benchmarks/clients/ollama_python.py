import ollama
from checks import ASKED, LONG, MODEL, ROOT, SCHEMA, WEATHER, expect, expect_arguments, expect_idle, expect_pieces, run

client = ollama.Client(host=ROOT)
FEW = {"num_predict": 20}


def plain():
    expect(client.chat(model=MODEL, messages=ASKED, options=FEW).message.content)
    expect(client.generate(model=MODEL, prompt="The lamp", options=FEW).response)
    expect(client.list().models[0].model == MODEL)


def stream():
    expect(len(list(client.chat(model=MODEL, messages=ASKED, options=FEW, stream=True))) > 4)


def tools():
    expect(client.chat(model=MODEL, messages=ASKED, tools=[WEATHER], options=FEW).message.content)


def structured():
    found = client.chat(model=MODEL, messages=ASKED, format=SCHEMA, options={"num_predict": 200})
    expect_arguments(found.message.content)


def cancel():
    parts = client.chat(model=MODEL, messages=ASKED, options={"num_predict": LONG, "temperature": 0}, stream=True)
    expect_pieces(parts)
    parts.close()
    expect_idle()


def embeddings():
    found = client.embed(model=MODEL, input=["The lamp", "A heron"])
    expect([len(row) for row in found.embeddings] == [32, 32])


run("ollama", {f.__name__: f for f in (plain, stream, tools, structured, embeddings, cancel)})
