"""Examples: pairs of prompt and answer, and conversations. Recognise them in records, and turn a record into messages.

Knows no files, tokenizers or chat templates.

    {"messages": [{"role": "user", "content": "…"}, …]}       OpenAI's form
    {"conversations": [{"from": "human", "value": "…"}, …]}   ShareGPT's form
    {"prompt": "…", "completion": "…"}                         a pair; also two lists of messages, as TRL writes them
    {"instruction": "…", "input": "…", "output": "…"}          Alpaca's form
    {"mapping": {…}}, {"chat_messages": […]}                   exports of ChatGPT and Claude
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetale.text.assistant_exports import export_turns, find_export
from finetale.text.documents import FileError, one_line
from finetale.text.record_values import kind_of_value, text_of_value

if TYPE_CHECKING:
    from finetale.text.account import FileAccount

Span = tuple[int, int]

ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "bing": "assistant", "bard": "assistant",
    "system": "system", "developer": "system", "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
"""Names of speakers in data sets → roles of chat templates."""

MESSAGE_LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue")
PAIRS = (
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "completion"),
    ("prompt", "answer"),
    ("input", "output"),
    ("problem", "solution"),
    ("user", "assistant"),
    ("human", "assistant"),
)
"""Names of the two columns of a pair. The first that a source has are taken. Case does not matter."""
SYSTEM_COLUMNS = ("system", "system_prompt")
MORE_OF_THE_PROMPT = ("input", "context")
"""Columns that follow an `instruction` or `question` in the prompt."""
NOT_READ = {
    "tool_calls": "call of a tool",
    "function_call": "call of a tool",
    "reasoning_content": "thought of the assistant",
    "reasoning": "thought of the assistant",
    "thinking": "thought of the assistant",
    "refusal": "refusal of the assistant",
}
"""Fields of a message that are left out → what the report calls them."""
PAIR_HINT = "Name the columns of prompt and answer with --prompt-column and --completion-column."
_FORM_HINT = 'Write {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}.'


@dataclass(slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        content: its text.
        is_answer: whether the model may learn it.
    """

    role: str
    content: str
    is_answer: bool


@dataclass(slots=True)
class Conversation:
    """An example. Its answers are learned; the other messages are context.

    Attributes:
        messages: its messages.
        is_joined: whether the messages are the pieces of one text. Otherwise a chat template joins them.
    """

    messages: list[Message]
    is_joined: bool = False


@dataclass(frozen=True)
class Rendered:
    """A conversation as one text.

    Attributes:
        text: its characters.
        context: (start, stop) of the characters that are read and not learned, ascending and apart.
        answers: number of answers that are learned.
        unanswered: number of messages after the last answer, which are left out.
        changed: role of each message whose text is not in `text` as it is, because a chat template changes it.
    """

    text: str
    context: tuple[Span, ...]
    answers: int
    unanswered: int = 0
    changed: tuple[str, ...] = ()


class UnusableExample(Exception):
    """An example that can't be rendered. Its message ends the sentence "dropped: …"."""


Renderer = Callable[[Sequence[Message]], Rendered]
"""Turns messages into text. Raises UnusableExample."""


def joined_text(messages: Sequence[Message], loss: str) -> Rendered:
    """Return the text of a conversation whose messages are the pieces of one text, without white space at its ends.

    Args:
        messages: the pieces.
        loss: the setting of this name.

    Raises:
        UnusableExample: no answer has text.
    """
    answers = [number for number, each in enumerate(messages) if each.is_answer and each.content.strip()]
    if not answers:
        raise UnusableExample("no answer")
    learned = set(answers[-1:] if loss == "last" else answers)
    text = "".join(each.content for each in messages)
    start, stop = len(text) - len(text.lstrip()), len(text.rstrip())
    context: list[Span] = []
    at = 0
    for number, each in enumerate(messages):
        span = max(at, start) - start, min(at + len(each.content), stop) - start
        at += len(each.content)
        if loss == "all" or number in learned or span[0] >= span[1]:
            continue
        if context and context[-1][1] == span[0]:
            span = context.pop()[0], span[1]
        context.append(span)
    return Rendered(text[start:stop], tuple(context), len(learned))


@dataclass(frozen=True)
class Shape:
    """Where a source of records has its prompts and answers.

    Attributes:
        messages: the column with a list of messages, None for pairs.
        prompt: columns whose texts make up the prompt, in order.
        completion: the column with the answer.
        system: the column with the system message, if there is one.
        export: name of the assistant whose export the records are, such as "ChatGPT".
    """

    messages: str | None = None
    prompt: tuple[str, ...] = ()
    completion: str | None = None
    system: str | None = None
    export: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        names = (self.system, self.messages, *self.prompt, self.completion)
        return tuple(name for name in names if name is not None)

    @property
    def title(self) -> str:
        """The columns as the report shows them: `messages`, or `instruction + input → output`."""
        if self.messages is not None:
            return " + ".join(name for name in (self.system, self.messages) if name)
        return f"{' + '.join(name for name in (self.system, *self.prompt) if name)} → {self.completion}"


def find_shape(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], prompt: str | None, completion: str | None
) -> Shape | None:
    """Return the shape of examples in records. None if they are not examples.

    Args:
        records: the first records.
        names: names of all columns.
        prompt, completion: the settings `prompt_column` and `completion_column`.
    """
    by_name = {name.strip().lower(): name for name in reversed(list(names))}
    system = next((by_name[name] for name in SYSTEM_COLUMNS if name in by_name), None)
    if completion is not None or prompt is not None:
        pair = next((pair for pair in PAIRS if {prompt or pair[0], completion or pair[1]} <= set(names)), None)
        first, last = prompt or (pair and pair[0]), completion or (pair and pair[1])
        if first in names and last in names:
            return Shape(prompt=(str(first),), completion=str(last), system=system)
        return None
    if (found := find_export(records)) is not None:
        return Shape(messages=found[1], export=found[0])
    for name in MESSAGE_LISTS:
        if name in by_name and any(_is_message_list(record.get(by_name[name])) for record in records):
            return Shape(messages=by_name[name], system=system)
    for first, last in PAIRS:
        if first in by_name and last in by_name:
            asked, answer = by_name[first], by_name[last]
            if not any(_is_prompt(record.get(asked)) and _is_answer(record.get(answer)) for record in records):
                continue
            more: tuple[str, ...] = ()
            if first in ("instruction", "question"):
                more = tuple(by_name[name] for name in MORE_OF_THE_PROMPT if name in by_name and name != last)
            return Shape(prompt=(asked, *more), completion=answer, system=system)
    return None


def as_conversation(record: Mapping[str, Any], shape: Shape, account: FileAccount, line: int) -> Conversation:
    """Return the conversation in a record.

    Args:
        record: the record.
        shape: where its messages are.
        account: names the file, and receives what is left out.
        line: line or number of the record.

    Raises:
        FileError: a column is missing, or does not hold what the first records hold there.
    """
    messages: list[Message] = []
    file = account.file
    if shape.export is not None:
        turns = export_turns(record, shape.export, account)
        return Conversation([Message(role, content, role == "assistant") for role, content in turns])
    if shape.system is not None and record.get(shape.system):
        messages.append(Message("system", _text(record, shape.system, file, line), False))
    if shape.messages is not None:
        if shape.messages not in record:
            raise _missing(record, shape.messages, file, line)
        messages += _messages(record[shape.messages] or [], shape.messages, account, line)
        return Conversation(messages)
    assert shape.completion is not None
    prompts: list[str] = []
    for name in shape.prompt:
        if name not in record:
            if name in MORE_OF_THE_PROMPT:
                continue
            raise _missing(record, name, file, line)
        value = record[name]
        if isinstance(value, list):
            messages += [Message(each.role, each.content, False) for each in _messages(value, name, account, line)]
        elif text := _text(record, name, file, line):
            prompts.append(text)
    if prompts:
        messages.append(Message("user", "\n\n".join(prompts), False))
    if shape.completion not in record:
        raise _missing(record, shape.completion, file, line)
    value = record[shape.completion]
    if isinstance(value, list):
        messages += _messages(value, shape.completion, account, line)
    else:
        messages.append(Message("assistant", _text(record, shape.completion, file, line), True))
    return Conversation(messages)


def _messages(values: Any, name: str, account: FileAccount, line: int) -> list[Message]:
    file = account.file
    if not isinstance(values, list):
        raise FileError(file, line, "bad_message", f"column {name!r} is not a list of messages", _FORM_HINT)
    found = []
    for number, value in enumerate(values):
        place = f"{name}[{number}]"
        if not isinstance(value, Mapping):
            raise FileError(file, line, "bad_message", f"{place} is not a message", _FORM_HINT)
        speaker = value.get("role", value.get("from"))
        content = value.get("content", value.get("value"))
        role = ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
        if role is None:
            known = ", ".join(sorted(ROLES))
            what = f"{place} has the role {speaker!r}" if speaker is not None else f"{place} has no role"
            raise FileError(file, line, "bad_message", what, f"The roles are {known}.")
        left_out = [what for key, what in NOT_READ.items() if value.get(key)]
        if isinstance(content, list):
            content, others = _text_of_parts(content)
            left_out += others
        if content is None:
            content = ""
        if not isinstance(content, str):
            raise FileError(file, line, "bad_message", f"the content of {place} is not text", _FORM_HINT)
        for what in left_out:
            account.leave_out(what)
        if left_out and not content.strip():
            continue
        # OpenAI excludes an answer from training by the weight 0.
        found.append(Message(role, content, role == "assistant" and value.get("weight") != 0))
    return found


def _text_of_parts(parts: list[Any]) -> tuple[str, list[str]]:
    """Return the text of OpenAI's parts of a message, and what the parts without text are."""
    texts, others = [], []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            texts.append(text)
        else:
            kind = str(part.get("type")) if isinstance(part, Mapping) else ""
            others.append(next((what for what in ("image", "audio", "video") if what in kind), "part without text"))
    return "".join(texts), others


def _is_message_list(value: Any) -> bool:
    if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
        return False
    return {"role", "content"} <= set(value[0]) or {"from", "value"} <= set(value[0])


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or _is_message_list(value)


def _is_answer(value: Any) -> bool:
    return bool(text_of_value(value)) or _is_message_list(value)


def _text(record: Mapping[str, Any], name: str, file: str, line: int) -> str:
    text = text_of_value(record[name])
    if text is None:
        detail = f"column {name!r} holds {kind_of_value(record[name])}, not text"
        raise FileError(file, line, "not_text", detail, PAIR_HINT)
    return text


def _missing(record: Mapping[str, Any], name: str, file: str, line: int) -> FileError:
    names = ", ".join(map(repr, map(one_line, list(record)[:20]))) or "none"
    detail = f"has no column {name!r}, as the first record has; its columns are {names}"
    return FileError(file, line, "missing_column", detail, PAIR_HINT)


def characters_of(conversation: Conversation) -> int:
    """Return the number of characters of all messages."""
    return sum(len(message.content) for message in conversation.messages)
