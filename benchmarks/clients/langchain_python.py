import functools
import operator

from checks import LONG, MODEL, SCHEMA, URL, WEATHER, expect, expect_arguments, expect_idle, expect_pieces, run
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

chat = ChatOpenAI(model=MODEL, base_url=URL, api_key="none", max_tokens=200, max_retries=0)
TOOLS = {"tool_choice": "required", "parallel_tool_calls": False}


def plain():
    expect(chat.invoke("Who?").content)
    responses = ChatOpenAI(model=MODEL, base_url=URL, api_key="none", max_retries=0, use_responses_api=True)
    expect(responses.invoke("Who?", max_output_tokens=20).text)


def stream():
    expect(len(list(chat.stream("Who?"))) > 4)


def tools():
    (call,) = chat.bind_tools([WEATHER], **TOOLS).invoke("Who?").tool_calls
    expect_arguments(call["args"])
    (call,) = functools.reduce(operator.add, chat.bind_tools([WEATHER], **TOOLS).stream("Who?")).tool_calls
    expect_arguments(call["args"])


def structured():
    schema = SCHEMA | {"title": "trip"}
    expect_arguments(chat.with_structured_output(schema, method="json_schema").invoke("Who?"))
    expect_arguments(chat.with_structured_output(schema, method="function_calling").invoke("Who?"))


def embeddings():
    # Otherwise it sends the token ids of OpenAI's own tokenizer.
    model = OpenAIEmbeddings(model=MODEL, base_url=URL, api_key="none", check_embedding_ctx_length=False)
    expect([len(row) for row in model.embed_documents(["The lamp", "A heron"])] == [32, 32])


def cancel():
    parts = chat.stream("Who?", max_tokens=LONG, temperature=0)
    expect_pieces(parts)
    parts.close()
    expect_idle()


run("langchain-openai", {f.__name__: f for f in (plain, stream, tools, structured, embeddings, cancel)})
