"""Chats between people: messages with names and times → conversations, as running text or as examples.

Knows no files. `formats.whatsapp` and `formats.telegram` read the messages.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetale.formatting import count
from finetale.text.conversations import Conversation, Message
from finetale.text.documents import FileError, one_line

if TYPE_CHECKING:
    from finetale.text.account import ChatAccount, FileAccount

SILENCE_HOURS = 6
"""A silence of this length ends a conversation."""
_MAX_NAMED = 20


@dataclass(slots=True)
class ChatMessage:
    """One message of a chat.

    Attributes:
        place: its line in the file, or its number from 1.
        time: when it was sent, in seconds of any clock.
        name: who wrote it.
        text: its text, not empty.
    """

    place: int
    time: float
    name: str
    text: str


def chat_documents(
    messages: Sequence[ChatMessage], form: str, speaker: str | None, account: FileAccount
) -> Iterator[tuple[int, str | Conversation]]:
    """Yield (place, document) of each conversation of a chat. It ends at a silence of SILENCE_HOURS.

    Without a speaker, a document is running text: a line `Name: text` per turn. With one, it is an example whose
    answers are the turns of this person. Consecutive messages of one person are one turn, one message per line. If a
    chat has more than two people, the turns of the others keep their names, and those between two answers are one.

    Args:
        messages: the messages, in the order in which they were sent.
        form: what wrote the chat, such as "WhatsApp".
        speaker: the setting of this name.
        account: receives the numbers of chats, conversations and messages by name.
    """
    chats = account.chats
    chats.forms[form] += 1
    names = Counter(message.name for message in messages)
    chats.speakers.update(names)
    for conversation in conversations(messages):
        chats.conversations += 1
        turns = turns_of(conversation)
        if speaker is None:
            document: str | Conversation = "\n".join(f"{name}: {text}" for name, text in turns)
        else:
            document = _example(turns, speaker, keep_names=len(names) > 2)
        yield conversation[0].place, document


def conversations(messages: Sequence[ChatMessage]) -> Iterator[list[ChatMessage]]:
    """Yield the messages of each conversation."""
    current: list[ChatMessage] = []
    for message in messages:
        if current and message.time - current[-1].time >= SILENCE_HOURS * 3600:
            yield current
            current = []
        current.append(message)
    if current:
        yield current


def turns_of(messages: Sequence[ChatMessage]) -> list[tuple[str, str]]:
    """Return (name, text) of each turn. Consecutive messages of one person are joined by a line break."""
    turns: list[tuple[str, str]] = []
    for message in messages:
        if turns and turns[-1][0] == message.name:
            turns[-1] = message.name, f"{turns[-1][1]}\n{message.text}"
        else:
            turns.append((message.name, message.text))
    return turns


def is_same_name(one: str, other: str) -> bool:
    """Return whether two names differ in case, white space and the composition of letters only."""
    return _plain_name(one) == _plain_name(other)


def unknown_speaker(speaker: str, chats: ChatAccount, sources: str) -> FileError | None:
    """Return the error if nobody in the chats that were read has this name, else None.

    Args:
        speaker: the setting of this name.
        chats: the chats that were read.
        sources: names of the sources, for the message.
    """
    if any(is_same_name(speaker, name) for name in chats.speakers):
        return None
    if not chats.speakers:
        detail = f"has no chat of WhatsApp or Telegram, so there is no speaker {one_line(speaker)!r}"
        return FileError(sources, None, "unknown_speaker", detail, "Remove --speaker.")
    named = [f"{one_line(name)!r} ({count(number)})" for name, number in chats.speakers.most_common(_MAX_NAMED)]
    if (more := len(chats.speakers) - _MAX_NAMED) > 0:
        named.append(f"and {count(more)} more")
    detail = f"has no messages of {one_line(speaker)!r}; the people and their messages are {', '.join(named)}"
    return FileError(sources, None, "unknown_speaker", detail, "Set --speaker to one of these names.")


def _example(turns: Sequence[tuple[str, str]], speaker: str, *, keep_names: bool) -> Conversation:
    found: list[Message] = []
    for name, text in turns:
        if is_same_name(name, speaker):
            found.append(Message("assistant", text, True))
            continue
        content = f"{name}: {text}" if keep_names else text
        if found and not found[-1].is_answer:
            found[-1].content += f"\n{content}"
        else:
            found.append(Message("user", content, False))
    return Conversation(found)


def _plain_name(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
