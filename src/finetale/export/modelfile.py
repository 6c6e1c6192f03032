"""Write the Modelfile of Ollama: the chat template in Go's notation, stop strings and sampling settings of a model.

The template is read off the texts that the model's own chat template gives, and must give the same texts again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetale import models
from finetale.chat import conversation_prompt
from finetale.config import SamplingSettings
from finetale.errors import FinetaleError
from finetale.models import LoadedModel
from finetale.text.conversations import Message

_MARKS = {"system": "Qsystemq", "user": "Quserq", "assistant": "Qassistantq"}
"""Contents of messages that no template changes or contains."""
Roles = Sequence[str]


@dataclass(frozen=True)
class _Pieces:
    """The texts around the contents of messages.

    Attributes:
        opening: before a user's message that begins a conversation, in addition to `user`.
        system, after_system: around the content of a system message; None if the template refuses such messages.
        user: before the content of a user's message.
        assistant, after_assistant: around the content of an answer.
        ask: at the end, to ask for an answer.
    """

    opening: str
    system: str | None
    after_system: str
    user: str
    assistant: str
    after_assistant: str
    ask: str

    def render(self, roles: Roles) -> str:
        """Return the text of a conversation as the template in Go's notation gives it."""
        text = ""
        for number, role in enumerate(roles):
            content = _MARKS[role]
            if role == "system":
                text += f"{self.system}{content}{self.after_system}"
            elif role == "user":
                text += f"{'' if number else self.opening}{self.user}{content}"
            else:
                text += f"{self.assistant}{content}{self.after_assistant}"
        return text + self.ask

    def in_go(self) -> str:
        """Return the template in Go's notation."""
        opening = f"{{{{ if eq $number 0 }}}}{_quoted(self.opening)}{{{{ end }}}}" if self.opening else ""
        branches = [
            ("user", f"{opening}{_quoted(self.user)}{{{{ $each.Content }}}}"),
            ("assistant", f"{_quoted(self.assistant)}{{{{ $each.Content }}}}{_quoted(self.after_assistant)}"),
        ]
        if self.system is not None:
            branches.insert(0, ("system", f"{_quoted(self.system)}{{{{ $each.Content }}}}{_quoted(self.after_system)}"))
        cases = "{{ else ".join(f'if eq $each.Role "{role}" }}}}{body}' for role, body in branches)
        return f"{{{{ range $number, $each := .Messages }}}}{{{{ {cases}{{{{ end }}}}{{{{ end }}}}{_quoted(self.ask)}"


def modelfile(file: str, loaded: LoadedModel) -> str:
    """Return the content of a Modelfile for a GGUF file in the same folder."""
    settings = SamplingSettings()
    context = models.positions_of(loaded.model.config.get_text_config().to_dict())
    lines = [f"FROM ./{file}"]
    template = "{{ .Prompt }}" if not loaded.tokenizer.chat_template else go_template(loaded)
    if template is None:
        lines.append("# The chat template of this model can't be expressed here. Ollama takes that of the GGUF file.")
    else:
        lines.append(f'TEMPLATE """{template}"""')
    for end in models.end_ids(loaded.model, loaded.tokenizer):
        lines.append(f"PARAMETER stop {json.dumps(loaded.tokenizer.convert_ids_to_tokens(end), ensure_ascii=False)}")
    lines += [
        f"PARAMETER temperature {settings.temperature}",
        f"PARAMETER top_p {settings.top_p}",
        f"PARAMETER top_k {settings.top_k}",
        f"PARAMETER repeat_penalty {settings.repetition_penalty}",
    ]
    if context is not None:
        lines.append(f"PARAMETER num_ctx {min(context, 8192)}")
    return "\n".join(lines) + "\n"


def go_template(loaded: LoadedModel) -> str | None:
    """Return the chat template of a model in Go's notation, as Ollama takes it; None if it can't be expressed."""

    def render(roles: Roles) -> str:
        messages = [Message(role, _MARKS[role], False) for role in roles]
        return conversation_prompt(loaded.tokenizer, messages, loaded.provenance.name)

    try:
        has_system = _renders(render, ["system", "user"])
        pieces = _pieces(render, has_system)
        conversations = [["user"], ["user", "assistant", "user"], ["user", "assistant", "user", "assistant", "user"]]
        if has_system:
            conversations += [["system", *each] for each in conversations]
        if all(pieces.render(each) == render(each) for each in conversations):
            return pieces.in_go()
    except (FinetaleError, ValueError):
        pass
    return None


def _pieces(render: Callable[[Roles], str], has_system: bool) -> _Pieces:
    """Return the texts around contents in what a chat template gives.

    Raises:
        ValueError: a content is not in the text.
    """
    first, after_user, between, ask = _split(render(["user", "assistant", "user"]), ["user", "assistant", "user"])
    befores = [first, between]
    system, after = None, ""
    if has_system:
        system, after, _ = _split(render(["system", "user"]), ["system", "user"])
        befores.append(after)
    user = _common_ending(befores)
    return _Pieces(
        opening=first.removesuffix(user),
        system=system,
        after_system=after.removesuffix(user),
        user=user,
        assistant=after_user,
        after_assistant=between.removesuffix(user),
        ask=ask,
    )


def _split(text: str, roles: Roles) -> list[str]:
    """Return the parts of a text before, between and after the contents of messages."""
    parts = []
    for role in roles:
        before, mark, text = text.partition(_MARKS[role])
        if not mark:
            raise ValueError(f"the content of a {role} message is not in the text")
        parts.append(before)
    return [*parts, text]


def _common_ending(texts: Sequence[str]) -> str:
    """Return the longest text that all texts end with."""
    shortest = min(texts, key=len)
    starts = range(len(shortest) + 1)
    return next(shortest[start:] for start in starts if all(text.endswith(shortest[start:]) for text in texts))


def _renders(render: Callable[[Roles], str], roles: Roles) -> bool:
    try:
        return _MARKS[roles[0]] in render(roles)
    except FinetaleError:
        return False


def _quoted(text: str) -> str:
    """Return text as an action of Go's templates that prints it."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
