import instructor
import openai
from checks import ASKED, MODEL, URL, expect, run
from pydantic import BaseModel, Field


class Trip(BaseModel):
    city: str = Field(pattern="^[a-z]{1,8}$")
    days: int = Field(ge=1, le=99)


def asked(mode):
    client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key="none", max_retries=0), mode=mode)
    return {"model": MODEL, "messages": ASKED, "response_model": Trip, "max_retries": 0, "max_tokens": 200}, client


def structured():
    values, client = asked(instructor.Mode.JSON_SCHEMA)
    expect(isinstance(client.chat.completions.create(**values), Trip))


def tools():
    values, client = asked(instructor.Mode.TOOLS)
    expect(isinstance(client.chat.completions.create(**values), Trip))


def stream():
    values, client = asked(instructor.Mode.JSON_SCHEMA)
    del values["response_model"]
    parts = list(client.chat.completions.create_partial(response_model=Trip, **values))
    expect(len(parts) > 2 and parts[-1].days >= 1, parts)


run("instructor", {f.__name__: f for f in (stream, tools, structured)})
