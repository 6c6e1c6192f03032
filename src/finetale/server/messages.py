"""Messages of a conversation, and the tools that a model may call, as requests have them. Knows no templates."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from finetale.server.forms import Text

MAX_TOOLS = 128
Name = Annotated[str, Field(strict=True, pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(BaseModel):
    """A part of a message. Only text is supported."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: Text


# With a discriminator, errors name the part that is wrong.
_Content = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag("parts")],
    Discriminator(lambda value: "parts" if isinstance(value, list) else "text"),
]


class CalledFunction(BaseModel):
    """The function of a tool call."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    arguments: Text = Field(description="The arguments as JSON.")


class ToolCall(BaseModel):
    """A call of a tool by the model."""

    model_config = ConfigDict(extra="ignore")

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction

    def plain(self) -> dict[str, Any]:
        """Return the call as chat templates take it: with the arguments as an object."""
        arguments: Any = self.function.arguments
        with contextlib.suppress(ValueError, RecursionError):  # a model wrote them; a template gets what it wrote
            arguments = json.loads(arguments)
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.function.name, "arguments": arguments},
        }


class Message(BaseModel):
    """A message of a conversation.

    Clients send a model's own messages back with all the fields of the response, such as `refusal` and `annotations`.
    Unknown fields are ignored, as in OpenAI's API.
    """

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="developer: the same as system. tool: the result of a tool call."
    )
    content: _Content | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_TOOLS, description="Of the role assistant.")
    tool_call_id: Text | None = Field(None, description="Of the role tool: the call that this is the result of.")

    @model_validator(mode="after")
    def _has_text(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError("content: is required")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls: are for the role assistant")
        return self

    def plain(self) -> dict[str, Any]:
        """Return the message as chat templates take it."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        plain: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            plain["tool_calls"] = [call.plain() for call in self.tool_calls]
        named = {"name": self.name, "tool_call_id": self.tool_call_id}
        return plain | {name: value for name, value in named.items() if value is not None}


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments. Default: none.")
    strict: Annotated[bool, Field(strict=True)] | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"]
    function: Function

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        return self.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}

    def plain(self) -> dict[str, Any]:
        """Return the tool as chat templates take it."""
        return {
            "type": "function",
            "function": {
                "name": self.function.name,
                "description": self.function.description or "",
                "parameters": self.schema_of_arguments,
            },
        }


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="ignore")

    name: Name


class NamedTool(BaseModel):
    """The tool that the model must call."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"]
    function: NamedFunction


class ToolParameters(BaseModel):
    """Parameters of a chat request for tools."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="required: at least one tool. Default: auto if there are tools."
    )
    parallel_tool_calls: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="false: at most one call. Only for required."
    )

    def check_tools(self) -> None:
        """Check that the parameters belong together.

        Raises:
            ValueError: they do not. The message begins with the name of the parameter.
        """
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools: two of them have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice: there is no tool {self.tool_choice.function.name}")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: required needs tools")
