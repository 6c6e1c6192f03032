"""Conversations with an assistant as ChatGPT and Claude export them: which messages the person kept, as turns.

    ChatGPT   {"title", "mapping": {id: {"message", "parent", "children"}}, "current_node"}
    Claude    {"name", "chat_messages": [{"sender", "text", "content": [{"type", "text"}]}]}

ChatGPT keeps every version of a message that was edited or written again, as a tree. The branch from `current_node` up
to the root is the one that its page shows. Knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetale.text.account import FileAccount

CHATGPT, CLAUDE = "ChatGPT", "Claude"
Turn = tuple[str, str]
_MAPPING, _CHAT_MESSAGES = "mapping", "chat_messages"
_CITATION = re.compile("\ue200[^\ue201]*\ue201|[\ue200-\ue20f]")
"""Marks of citations in ChatGPT's answers. Its page shows links in their place."""
_THOUGHTS = ("thoughts", "reasoning_recap")
_SENDERS = {"human": "user", "assistant": "assistant"}


def find_export(records: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return (name of the assistant, column with the messages) of the export that records come from, else None."""
    for record in records:
        nodes = record.get(_MAPPING)
        if isinstance(nodes, Mapping) and nodes and all(_is_node(node) for node in nodes.values()):
            return CHATGPT, _MAPPING
        messages = record.get(_CHAT_MESSAGES)
        if isinstance(messages, list) and messages and all(_sender(each) is not None for each in messages):
            return CLAUDE, _CHAT_MESSAGES
    return None


def export_turns(record: Mapping[str, Any], assistant: str, account: FileAccount) -> list[Turn]:
    """Return (role, text) of each turn of a conversation, in order. The roles are "user" and "assistant".

    Consecutive messages of one role are one turn, separated by a blank line. A record without messages has no turns.

    Args:
        record: the conversation.
        assistant: the export that it comes from, as `find_export` returned it.
        account: receives the number of conversations, and what is left out.
    """
    account.chats.forms[assistant] += 1
    turns: list[Turn] = []
    for role, text in _chatgpt(record, account) if assistant == CHATGPT else _claude(record, account):
        if turns and turns[-1][0] == role:
            turns[-1] = role, f"{turns[-1][1]}\n\n{text}"
        else:
            turns.append((role, text))
    return turns


# -- ChatGPT


def _chatgpt(record: Mapping[str, Any], account: FileAccount) -> Iterable[Turn]:
    nodes = record.get(_MAPPING)
    if not isinstance(nodes, Mapping):
        return
    branch = _kept_branch(nodes, record.get("current_node"))
    for key, node in nodes.items():
        if key not in branch and _kind_of_message(node.get("message")) is None:
            account.leave_out("message in another branch")
    for key in branch:
        message = nodes[key].get("message")
        if not isinstance(message, Mapping):
            continue
        if (kind := _kind_of_message(message)) is not None:
            account.leave_out(kind)
            continue
        text = _text_of_message(message, account)
        if text.strip():
            yield message["author"]["role"], text
        else:
            account.leave_out("empty message")


def _kept_branch(nodes: Mapping[str, Any], current: Any) -> list[str]:
    """Return the keys of the nodes from the root to the current one. Without one, the last node without children."""
    if current not in nodes:
        ends = [key for key, node in nodes.items() if not node.get("children")]
        current = ends[-1] if ends else None
    branch: dict[str, None] = {}
    while isinstance(current, str) and current in nodes and current not in branch:
        branch[current] = None
        current = nodes[current].get("parent")
    return list(branch)[::-1]


def _kind_of_message(message: Any) -> str | None:
    """Return the kind of a message that is left out, None for one that is read."""
    if not isinstance(message, Mapping):
        return "empty message"
    author = message.get("author")
    role = author.get("role") if isinstance(author, Mapping) else None
    content, details = message.get("content"), message.get("metadata")
    kind = content.get("content_type") if isinstance(content, Mapping) else None
    if role == "system":
        return "system message"
    if role not in ("user", "assistant"):
        return "tool message"
    if kind in _THOUGHTS:
        return "thought of the assistant"
    is_hidden = isinstance(details, Mapping) and details.get("is_visually_hidden_from_conversation")
    if is_hidden or message.get("weight") == 0 or kind in ("user_editable_context", "model_editable_context"):
        return "hidden message"
    if role == "assistant" and (kind == "code" or message.get("recipient", "all") not in ("all", None)):
        return "call of a tool"
    return None


def _text_of_message(message: Mapping[str, Any], account: FileAccount) -> str:
    """Return the text of a message, and count pictures, files and marks of citations."""
    content = message.get("content")
    content = content if isinstance(content, Mapping) else {}
    parts = content.get("parts")
    texts: list[str] = []
    for part in parts if isinstance(parts, list) else [content.get("text")]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping):
            kind = str(part.get("content_type"))
            if kind == "audio_transcription" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                account.leave_out(next((what for what in ("image", "audio", "video") if what in kind), "file"))
    details = message.get("metadata")
    attached = details.get("attachments") if isinstance(details, Mapping) else None
    for file in attached if isinstance(attached, list) else ():
        media_type = file.get("mime_type", file.get("mimeType")) if isinstance(file, Mapping) else None
        if not str(media_type).startswith("image/"):  # pictures are parts too
            account.leave_out("file")
    text, marks = _CITATION.subn("", "\n".join(text for text in texts if text))
    account.leave_out("citation mark", marks)
    return text


def _is_node(node: Any) -> bool:
    return isinstance(node, Mapping) and "message" in node and ("parent" in node or "children" in node)


# -- Claude


def _claude(record: Mapping[str, Any], account: FileAccount) -> Iterable[Turn]:
    messages = record.get(_CHAT_MESSAGES)
    for message in messages if isinstance(messages, list) else ():
        role = _sender(message)
        if role is None:
            account.leave_out("tool message")
            continue
        texts: list[str] = []
        content = message.get("content")
        blocks = [block for block in content if isinstance(block, Mapping)] if isinstance(content, list) else []
        for block in blocks:
            kind = block.get("type")
            if kind == "text" and isinstance(block.get("text"), str):
                texts.append(block["text"])
            elif kind == "thinking":
                account.leave_out("thought of the assistant")
            elif kind in ("tool_use", "tool_result"):
                account.leave_out("call of a tool" if kind == "tool_use" else "tool message")
            else:
                account.leave_out("image" if kind == "image" else "file")
        if not blocks and isinstance(message.get("text"), str):  # older exports
            texts.append(message["text"])
        for name in ("attachments", "files"):
            account.leave_out("file", len(message.get(name) or ()))
        text = "\n".join(texts)
        if text.strip():
            yield role, text
        else:
            account.leave_out("empty message")


def _sender(message: Any) -> str | None:
    return _SENDERS.get(str(message.get("sender"))) if isinstance(message, Mapping) else None
