"""Parameters that vLLM's API has and OpenAI's does not. Knows no engine."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerBase

from finetale.server.forms import Text

MAX_STOP_TOKENS = 64
MAX_PROMPT_LOGPROBS = 20
_Switch = Annotated[bool, Field(strict=True)]
_Id = Annotated[int, Field(ge=0, strict=True)]
_NO_EFFECT = "Accepted, without effect."


class Extensions(BaseModel):
    """Parameters of both kinds of requests."""

    ignore_eos: _Switch | None = Field(None, description="Extension: go on after end-of-text.")
    min_tokens: int | None = Field(
        None, ge=0, strict=True, description="Extension: no end-of-text and no stop_token_ids before so many tokens."
    )
    stop_token_ids: Annotated[list[_Id], Field(max_length=MAX_STOP_TOKENS, fail_fast=True)] | None = Field(
        None, description="Extension: tokens that end the text."
    )
    include_stop_str_in_output: _Switch | None = Field(None, description="Extension: leave what ended the text in it.")
    skip_special_tokens: _Switch | None = Field(
        None, description="Extension: leave special tokens out of the text. Default: true."
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_PROMPT_LOGPROBS,
        strict=True,
        description="Extension: log-probabilities of the prompt's tokens and of so many likely ones. Not in a stream.",
    )
    return_token_ids: _Switch | None = Field(None, description="Extension: return the ids of prompt and text.")
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        strict=True,
        description="Extension: use the last so many tokens of the prompt. -1: as many as there is room for.",
    )
    use_beam_search: Literal[False] | None = Field(None, description="Not supported.")
    spaces_between_special_tokens: _Switch | None = Field(None, description=_NO_EFFECT)
    priority: int | None = Field(None, strict=True, description=_NO_EFFECT)
    request_id: Text | None = Field(None, description=_NO_EFFECT)

    def check_extensions(self, *, stream: bool | None, echo: bool | None = False) -> None:
        """Check that the parameters belong together.

        Raises:
            ValueError: they do not. The message begins with the name of the parameter.
        """
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens: must be at least 1, or -1")
        if self.truncate_prompt_tokens is not None and echo:
            raise ValueError("truncate_prompt_tokens: can't be combined with echo")
        if self.prompt_logprobs is not None and stream:
            raise ValueError("prompt_logprobs: are not available in a stream")


class TemplateVariables(BaseModel):
    """Variables for the chat template."""

    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extension: variables of the chat template.")


class ChatExtensions(TemplateVariables):
    """Parameters for the chat template."""

    add_generation_prompt: _Switch | None = Field(
        None, description="Extension: begin a message of the assistant. Default: true."
    )
    continue_final_message: _Switch | None = Field(
        None, description="Extension: continue the last message. Requires add_generation_prompt to be false."
    )

    def template_options(self) -> dict[str, Any]:
        """Return the options of `apply_chat_template`.

        Raises:
            ValueError: the parameters contradict each other, or a variable has the name of an option. The message
                begins with the name of the parameter.
        """
        continues = bool(self.continue_final_message)
        begins = not continues if self.add_generation_prompt is None else self.add_generation_prompt
        if begins and continues:
            raise ValueError("continue_final_message: requires add_generation_prompt to be false")
        variables = self.chat_template_kwargs or {}
        for name in variables:
            if not name.isidentifier() or name in _reserved():
                raise ValueError(f"chat_template_kwargs: can't set {name}")
        return variables | {"add_generation_prompt": begins, "continue_final_message": continues}


def _reserved() -> set[str]:
    """Return the names that are not variables of a template."""
    return {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages", "self"}
