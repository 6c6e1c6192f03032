"""Telegram Desktop's `result.json`: the messages of one chat, or of all chats of an account.

{"name", "type", "id", "messages": [{"id", "type": "message", "date", "from", "text": "…" or ["…", {"text"}]}]}
{"chats": {"list": [{"name", …}]}, "left_chats": {"list": […]}, …}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from finetale.text.account import FileAccount
from finetale.text.chats import ChatMessage, chat_documents
from finetale.text.conversations import Conversation

FORM = "Telegram"
_MEDIA = {
    "sticker": "sticker", "animation": "animation", "video_file": "video", "video_message": "video",
    "voice_message": "voice message", "audio_file": "audio file",
}  # fmt: skip
_OTHER_KINDS = {
    "poll": "poll", "contact_information": "contact", "location_information": "location", "game_title": "game",
    "invoice_information": "invoice", "todo_list": "list of tasks", "giveaway_information": "giveaway",
}  # fmt: skip
_NO_NAME = "Deleted account"
_KIND_OF_CHAT = re.compile(r"saved_messages|(?:personal|bot|private|public|verification)_\w+")
_CHECKED = 20


def find_chats(value: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Return the chats in the object that a file holds. None if it is not an export of Telegram."""
    if _is_chat(value):
        return [value]
    found: list[Mapping[str, Any]] = []
    for key in ("chats", "left_chats"):
        group = value.get(key)
        listed = group.get("list") if isinstance(group, Mapping) else None
        if isinstance(listed, list):
            found += [chat for chat in listed if isinstance(chat, Mapping)]
    return found if any(map(_is_chat, found)) else None


def telegram_documents(
    chats: list[Mapping[str, Any]], speaker: str | None, account: FileAccount
) -> Iterator[tuple[int, str | Conversation]]:
    """Yield (number of the first message in its chat, document) of each conversation of the chats.

    Args:
        chats: the chats, as `find_chats` returned them.
        speaker: the setting of this name.
        account: receives what is left out, and the numbers of chats and messages.
    """
    for chat in chats:
        messages = list(_messages(chat, account))
        if messages:
            yield from chat_documents(messages, FORM, speaker, account)


def _messages(chat: Mapping[str, Any], account: FileAccount) -> Iterator[ChatMessage]:
    listed = chat.get("messages")
    for number, message in enumerate(listed if isinstance(listed, list) else (), 1):
        if not isinstance(message, Mapping) or message.get("type") != "message":
            account.leave_out("system message")
            continue
        kind = _kind_of_media(message)
        if kind is not None:
            account.leave_out(kind)
        text = _text(message.get("text")).strip()
        if message.get("forwarded_from") is not None or message.get("saved_from") is not None:
            account.leave_out("forwarded message", bool(text))
        elif text:
            name = message.get("from") or _NO_NAME
            yield ChatMessage(number, _time(message), " ".join(str(name).split()), text)
        elif kind is None:
            account.leave_out("empty message")


def _kind_of_media(message: Mapping[str, Any]) -> str | None:
    if (media := message.get("media_type")) is not None:
        return _MEDIA.get(str(media), "file")
    if "photo" in message:
        return "picture"
    if "file" in message:
        return "file"
    return next((kind for key, kind in _OTHER_KINDS.items() if key in message), None)


def _text(value: Any) -> str:
    """Return a text that is written as one string, or as a list of strings and objects with a text."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _text(value.get("text"))
    return "".join(map(_text, value)) if isinstance(value, list) else ""


def _time(message: Mapping[str, Any]) -> float:
    try:
        return float(message["date_unixtime"])
    except (KeyError, TypeError, ValueError):
        pass
    try:
        date = datetime.fromisoformat(str(message.get("date")))
    except ValueError:
        return 0.0
    return (date.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()


def _is_chat(value: Mapping[str, Any]) -> bool:
    messages = value.get("messages")
    if not isinstance(value.get("type"), str) or not isinstance(messages, list):
        return False
    if not messages:
        return _KIND_OF_CHAT.fullmatch(value["type"]) is not None
    return all(
        isinstance(each, Mapping) and each.get("type") in ("message", "service", "unsupported") and "date" in each
        for each in messages[:_CHECKED]
    )
