from checks import LONG, MODEL, URL, expect, expect_idle, expect_pieces, run
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

OPTIONS = {"model": MODEL, "api_base": URL, "api_key": "none", "context_window": 4096, "max_retries": 0}
llm = OpenAILike(**OPTIONS, is_chat_model=True, is_function_calling_model=True, max_tokens=200)
MESSAGES = [ChatMessage(role="user", content="Who?")]


class Trip(BaseModel):
    city: str = Field(pattern="^[a-z]{1,8}$")
    days: int = Field(ge=1, le=99)


def weather(city: str, days: int) -> str:
    """The weather of a city."""
    return "rain"


def plain():
    expect(llm.chat(MESSAGES).message.content)
    expect(OpenAILike(**OPTIONS, max_tokens=20).complete("The lamp").text)


def stream():
    expect(len(list(llm.stream_chat(MESSAGES))) > 4)


def tools():
    tool = FunctionTool.from_defaults(weather, fn_schema=Trip)
    found = llm.chat_with_tools([tool], chat_history=MESSAGES, tool_required=True)
    (call, *_) = llm.get_tool_calls_from_response(found)
    expect(call.tool_name == "weather" and isinstance(call.tool_kwargs["days"], int), call)


def structured():
    expect(isinstance(llm.as_structured_llm(Trip).complete("Who?").raw, Trip))


def embeddings():
    model = OpenAILikeEmbedding(model_name=MODEL, api_base=URL, api_key="none")
    expect([len(row) for row in model.get_text_embedding_batch(["The lamp", "A heron"])] == [32, 32])


def cancel():
    parts = llm.stream_chat(MESSAGES, max_tokens=LONG, temperature=0)
    expect_pieces(parts)
    parts.close()
    expect_idle()


run("llama-index-llms-openai-like", {f.__name__: f for f in (plain, stream, tools, structured, embeddings, cancel)})
