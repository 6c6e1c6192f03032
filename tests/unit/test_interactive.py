"""Test an interactive session: the prompt of the model at each turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from finetale.cli.interactive import Talk, converse
from finetale.config import SamplingSettings
from finetale.errors import GenerationError
from finetale.text.conversations import Message


def shown(messages: list[Message]) -> str:
    return " ".join(f"{each.role}:{each.content}" for each in messages)


def test_a_conversation_is_remembered_until_an_empty_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[str] = []

    def proceed(prompt: str, settings: SamplingSettings) -> Iterator[str]:
        read.append(prompt)
        if "refuse" in prompt.rpartition(":")[2]:
            raise GenerationError("Refused.", "Ask again.")
        yield " an"
        if "stop" in prompt.rpartition(":")[2]:
            raise KeyboardInterrupt
        yield "swer "

    lines = iter(["/help", "one", "refuse", "stop", "two", "", "three"])

    def next_line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", next_line)
    converse("tiny", SamplingSettings(), Talk(shown, proceed), echo=False)
    assert read == [
        "user:one",
        "user:one assistant:answer user:refuse",
        "user:one assistant:answer user:stop",
        "user:one assistant:answer user:stop assistant:an user:two",
        "user:three",
    ]
    out = capsys.readouterr().out
    assert "Type a message and press Enter; an empty line begins a new conversation." in out
    assert "error: Refused." in out
