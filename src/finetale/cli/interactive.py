"""Run an interactive session in the terminal: read prompts, and print each continuation while it is generated."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from finetale.config import SamplingSettings
from finetale.errors import FinetaleError
from finetale.surrogates import describe_surrogates
from finetale.text.conversations import Message

Continue = Callable[[str, SamplingSettings], Iterator[str]]
"""Continues a prompt: yields pieces of text."""

_HELP = """\
Ctrl-C stops the text that is being written. Ctrl-D or /quit leaves.
/settings shows the sampling settings; /NAME VALUE changes one, as in /temperature 0.9
"""
_TEXT_HELP = "Type the beginning of a text and press Enter; an empty line begins a new text.\n"
_CHAT_HELP = "Type a message and press Enter; an empty line begins a new conversation.\n"


class Talk:
    """Answers messages, and remembers the conversation. An empty message begins a new one.

    Args:
        prompt_of: returns the text that the model continues with its answer to a conversation.
        proceed: continues that text.
    """

    def __init__(self, prompt_of: Callable[[list[Message]], str], proceed: Continue) -> None:
        self._prompt_of = prompt_of
        self._proceed = proceed
        self.history: list[Message] = []

    def __call__(self, text: str, settings: SamplingSettings) -> Iterator[str]:
        """Yield the pieces of the answer. A message without an answer is forgotten."""
        if not text.strip():
            self.history.clear()
            return
        asked = Message("user", text, False)
        pieces: list[str] = []
        try:
            for piece in self._proceed(self._prompt_of([*self.history, asked]), settings):
                pieces.append(piece)
                yield piece
        finally:  # Ctrl-C ends an answer early
            if answer := "".join(pieces).strip():
                self.history += [asked, Message("assistant", answer, True)]


def converse(model: str, settings: SamplingSettings, proceed: Continue, *, echo: bool = True) -> None:
    """Read prompts from the terminal and print their continuations until the user leaves.

    The seed grows by one per text, so that the same prompt gives another text.

    Args:
        echo: print the prompt before its continuation. Off, the continuation is an answer.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() edits lines and keeps a history with it)
    sys.stdout.write(f"{model} {'continues' if echo else 'answers'} what you type. /help shows more.\n")
    turn: SamplingSettings | None = settings
    while turn is not None:
        try:
            turn = _take_turn(turn, proceed, echo)
        except KeyboardInterrupt:
            sys.stdout.write("\n")


def _take_turn(settings: SamplingSettings, proceed: Continue, echo: bool) -> SamplingSettings | None:
    """Read one line and carry it out. Return the settings of the next turn, or None at the end.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed while a line was read. The conversation continues.
    """
    try:
        line = input("> ")
    except EOFError:
        sys.stdout.write("\n")
        return None
    if line.strip() in ("/quit", "/exit"):
        return None
    if line.startswith("/"):
        return _run_command(line, settings, _TEXT_HELP if echo else _CHAT_HELP)
    if problem := describe_surrogates(line, from_bytes=True):
        sys.stdout.write(f"error: The prompt {problem}.\n")
        return settings
    sys.stdout.write(line if echo else "")
    try:
        for piece in proceed(line, settings):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" …")
    except FinetaleError as error:
        sys.stdout.write(f"\nerror: {error.message}")
    sys.stdout.write("\n")
    return settings.model_copy(update={"seed": (settings.seed + 1) % 2**32})


def _run_command(line: str, settings: SamplingSettings, opening: str) -> SamplingSettings:
    """Return the settings after a line that begins with a slash. `opening` is the first line of the help."""
    name, _, value = line[1:].strip().partition(" ")
    if name in ("help", "?", ""):
        sys.stdout.write(opening + _HELP)
    elif name == "settings" or (not value and name.replace("-", "_") in SamplingSettings.model_fields):
        for key, current in settings.model_dump().items():
            if name in ("settings", key, key.replace("_", "-")):
                sys.stdout.write(f"/{key} {current}\n")
    else:
        try:
            return SamplingSettings.resolve(settings.model_dump(), {name: value.strip() or None})
        except FinetaleError as error:
            sys.stdout.write(f"error: {error.message}\nhint: {error.hint}\n")
    return settings
