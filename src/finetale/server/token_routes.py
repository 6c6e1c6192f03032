"""Bodies of vLLM's routes /tokenize and /detokenize. Knows no network."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetale.errors import RequestError
from finetale.server.completion import Vocabulary
from finetale.server.extensions import ChatExtensions
from finetale.server.forms import Text
from finetale.server.messages import Message, Tool

_Switch = Annotated[bool, Field(strict=True)]


class TokenizeRequest(ChatExtensions):
    """Body of POST /tokenize: a prompt or a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None
    tools: list[Tool] | None = Field(None, description="For messages.")
    add_special_tokens: _Switch = Field(True, description="Put the tokens before a prompt that completions put there.")
    return_token_strs: _Switch | None = Field(None, description="Also return the text of each token.")

    @model_validator(mode="after")
    def _together(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: set either prompt or messages")
        self.template_options()
        return self

    def answer(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Return the body of the response.

        Raises:
            RequestError: the text is too long, or the chat template rejects the messages.
        """
        if self.messages is not None:
            tools = [tool.plain() for tool in self.tools] if self.tools else None
            plain = [message.plain() for message in self.messages]
            ids = vocabulary.encode_chat(plain, tools, self.template_options())
        else:
            ids = vocabulary.encode([self.prompt or ""])[0]
            ids = vocabulary.with_lead(ids) if self.add_special_tokens else ids
        names = [vocabulary.name_of(token) for token in ids] if self.return_token_strs else None
        return {"count": len(ids), "max_model_len": vocabulary.context, "tokens": ids, "token_strs": names}


class DetokenizeRequest(BaseModel):
    """Body of POST /detokenize."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text
    tokens: list[Annotated[int, Field(ge=0, strict=True)]]

    def answer(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Return the body of the response.

        Raises:
            RequestError: an id is not in the vocabulary.
        """
        if any(token >= vocabulary.vocab_size for token in self.tokens):
            raise RequestError(f"tokens: token ids must be below {vocabulary.vocab_size}.", "tokens")
        return {"prompt": vocabulary.tokenizer.decode(self.tokens, clean_up_tokenization_spaces=False)}
