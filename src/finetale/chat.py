"""Render conversations with a chat template, and know which characters are answers. Knows no files and no models.

A template that marks answers with `{% generation %}` says so itself. For another one, an answer is what the text gains
when its message is added to the conversation before it, which ends with the prompt for an answer. That is exact only if
each text begins with the one before; a template for which it does not is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetale.errors import GenerationError, TokenizerError
from finetale.text.conversations import Message, Rendered, Span, UnusableExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKED_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ 'Assistant:\n' }}{% generation %}{{ message['content'] + (eos_token or '') }}{% endgeneration %}"
    "{%- elif message['role'] == 'system' -%}"
    "{{ message['content'] }}"
    "{%- else -%}"
    "{{ message['role'][:1] | upper + message['role'][1:] + ':\n' + message['content'] }}"
    "{%- endif -%}"
    "{%- if not loop.last or add_generation_prompt -%}{{ '\n\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:\n' }}{%- endif -%}"
)
PLAIN_TEMPLATE = _MARKED_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
"""The template for a tokenizer without one: `User:`, a line with the text, a blank line, `Assistant:`, the answer.

A model is saved with it. It has no marks of answers, which only transformers knows."""

_HINT = "Set --loss last, or --loss all to learn the whole text; or use a model with another chat template."


class ChatRenderer:
    """Turns messages into text, and marks what is learned.

    Args:
        template: a chat template in Jinja, as tokenizers have it.
        special_tokens: text of the special tokens by name, such as `eos_token`.
        loss: the setting of this name: "answers", "last" or "all".
        name: name of the model or tokenizer, for messages.
    """

    def __init__(self, template: str, special_tokens: Mapping[str, str], loss: str, name: str) -> None:
        self._template = _MARKED_TEMPLATE if template == PLAIN_TEMPLATE else template
        self._special = dict(special_tokens)
        self._loss = loss
        self._name = name
        self._marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", self._template) is not None

    def __call__(self, messages: Sequence[Message]) -> Rendered:
        """Return the text of a conversation. Messages after the last answer are left out.

        Beginning-of-text at its start and end-of-text at its end are left out, because the token store adds them.

        Raises:
            UnusableExample: the conversation has no answer, or the template refuses it.
            TokenizerError: the template can't be masked exactly.
        """
        last = max((i for i, each in enumerate(messages) if each.is_answer and each.content), default=-1)
        if last < 0:
            raise UnusableExample("no answer")
        used = [{"role": each.role, "content": each.content} for each in messages[: last + 1]]
        answers = [i for i, each in enumerate(messages[: last + 1]) if each.is_answer and each.content]
        if self._loss == "last":
            answers = answers[-1:]
        if self._loss == "all":
            text, learned = self._render(used)[0], None
        elif self._marks_answers:
            text, marked = self._render(used)
            turns = [i for i, each in enumerate(used) if each["role"] == "assistant"]
            if len(marked) != len(turns):
                raise self._inexact("it marks another number of answers than there are")
            learned = [span for turn, span in zip(turns, marked, strict=True) if turn in answers]
        else:
            text, learned = self._by_difference(used, answers)
        changed = tuple(each["role"] for each in used if each["content"].strip() not in text)
        context = [] if learned is None else _gaps(learned, len(text))
        text, context = self._without_ends(text, context)
        num_answers = len(answers if learned is None else learned)
        return Rendered(text, tuple(context), num_answers, len(messages) - last - 1, changed)

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the text of a conversation up to the beginning of the next answer.

        Raises:
            UnusableExample: the template refuses the conversation.
        """
        return self._render([{"role": each.role, "content": each.content} for each in messages], ask=True)[0]

    def writes_begin(self) -> bool:
        """Return whether the template writes beginning-of-text before a conversation."""
        begin = self._special.get("bos_token")
        try:
            return bool(begin) and self.prompt([Message("user", "a", False)]).startswith(str(begin))
        except UnusableExample:
            return False

    def _by_difference(self, messages: list[dict[str, str]], answers: Sequence[int]) -> tuple[str, list[Span]]:
        text, _ = self._render(messages)
        learned = []
        for number in answers:
            before = self._render(messages[:number], ask=True)[0] if number else self._before_first(messages, text)
            if before is None:
                continue
            after = self._render(messages[: number + 1])[0].rstrip()
            if not after.startswith(before):
                raise self._inexact("the text with an answer does not begin with the text of its prompt")
            if not text.startswith(after):  # some templates write end-of-text at the end of a conversation only
                after = after.removesuffix(self._special.get("eos_token") or "").rstrip()
            if not text.startswith(after):
                raise self._inexact("it changes earlier messages when others follow")
            learned.append((len(before), len(after)))
        if not learned:
            raise UnusableExample("no answer to a prompt")
        return text, learned

    def _before_first(self, messages: list[dict[str, str]], text: str) -> str | None:
        """Return the text up to an answer that begins a conversation.

        It ends with what the template writes to ask for an answer. None if that is not found: the template can't ask
        for the first message.
        """
        try:
            before, _ = self._render([], ask=True)
        except UnusableExample:
            before = None
        if before is not None and text.startswith(before):
            return before
        told, asked = self._render(messages[:1])[0], self._render(messages[:1], ask=True)[0]
        question = asked[len(told) :] if asked.startswith(told) else ""
        start = text.find(question) + len(question)
        is_found = question and question in text and text.startswith(messages[0]["content"].strip(), start)
        return text[:start] if is_found else None

    def _render(self, messages: list[dict[str, str]], *, ask: bool = False) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marked = render_jinja_template(
                conversations=[messages],
                chat_template=self._template,
                return_assistant_tokens_mask=self._marks_answers,
                add_generation_prompt=ask,
                **self._special,
            )
        except TemplateSyntaxError as error:
            what = f"The chat template of {self._name} is invalid: {error} (line {error.lineno})."
            raise TokenizerError(what, "Correct it, or use a model with another chat template.") from None
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UnusableExample(f"the chat template refuses it ({reason})") from None
        return texts[0], list(marked[0]) if self._marks_answers else []

    def _without_ends(self, text: str, context: list[Span]) -> tuple[str, list[Span]]:
        start, stop = 0, len(text.rstrip())
        bos, eos = self._special.get("bos_token"), self._special.get("eos_token")
        if bos and text.startswith(bos):
            start = len(bos)
        if eos and text[:stop].endswith(eos):
            stop -= len(eos)
        moved = [(max(a, start) - start, min(b, stop) - start) for a, b in context if a < stop and b > start]
        return text[start:stop], moved

    def _inexact(self, why: str) -> TokenizerError:
        return TokenizerError(f"The chat template of {self._name} can't be masked exactly: {why}.", _HINT)


def chat_renderer(tokenizer: PreTrainedTokenizerBase | None, loss: str, name: str = "the tokenizer") -> ChatRenderer:
    """Return the renderer of a tokenizer's chat template, or of PLAIN_TEMPLATE if it has none.

    Args:
        tokenizer: None renders without special tokens.
        loss: the setting of this name.
    """
    if tokenizer is None:
        return ChatRenderer(PLAIN_TEMPLATE, {}, loss, name)
    from finetale.tokens import begin_and_end

    begin, end = begin_and_end(tokenizer)
    special: dict[str, Any] = {
        key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)
    }
    special["bos_token"], special["eos_token"] = tokenizer.convert_ids_to_tokens([begin, end])
    return ChatRenderer(chat_template_of(tokenizer), special, loss, name)


def conversation_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], name: str) -> str:
    """Return the text that a model continues with its answer to a conversation.

    Args:
        name: name of the model, for messages.

    Raises:
        GenerationError: the model has no chat template, or the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise GenerationError(
            f"{name} has no chat template: it was not trained on conversations.",
            "Leave out --chat, or train it on pairs of prompt and answer.",
        )
    try:
        return chat_renderer(tokenizer, "answers", name).prompt(messages)
    except UnusableExample as error:
        raise GenerationError(f"{name} can't continue the conversation: {error}.", "Change the messages.") from None


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the chat template of a tokenizer, the one called `default` if it has several, else PLAIN_TEMPLATE."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else PLAIN_TEMPLATE


def _gaps(spans: Sequence[Span], length: int) -> list[Span]:
    """Return the ranges of a text of this length that lie between spans."""
    found, at = [], 0
    for start, stop in spans:
        if start > at:
            found.append((at, start))
        at = stop
    if at < length:
        found.append((at, length))
    return found
