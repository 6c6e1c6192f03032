"""Explain unknown flags: suggest a flag of the same meaning first, then one of similar spelling."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence

from cyclopts import App

from finetale.config import Config
from finetale.trainer_names import find_name, plain_name

_MODEL_FIRST = {"generate": 'MODEL "PROMPT"', "evaluate": "MODEL SOURCE", "compare": "BEFORE AFTER", "serve": "MODEL"}
"""Commands whose first argument is the model, with their arguments."""


def explain_unknown(app: App, command: str, words: Sequence[str]) -> tuple[str, str] | None:
    """Return message and hint for all unknown flags of a command line. None if there is none.

    Args:
        command: the name of the command.
        words: the words after it.
    """
    flags = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
    flags |= {"--help", "-h", "--version"}
    found: list[str] = []
    hints: list[str] = []
    for place, word in enumerate(words):
        if word == "--":
            break
        flag, equals, value = word.partition("=")
        if not flag.startswith("-") or flag in flags or not flag.lstrip("-")[:1].isalpha():
            continue
        if not equals and place + 1 < len(words) and not words[place + 1].startswith("-"):
            value = words[place + 1]
        found.append(flag)
        hints.append(_hint(command, flags, flag, value))
    if not found:
        return None
    message = f"{command} has no flag{'s' if len(found) > 1 else ''} {', '.join(found)}."
    return message, " ".join([*hints, f"See `finetale {command} --help`."])


def _hint(command: str, flags: set[str], flag: str, value: str) -> str:
    """Return one sentence on one unknown flag. It repeats the value with the suggested flag."""
    if flag in ("-m", "--model") and command in _MODEL_FIRST:
        also = "; --also NAME=MODEL serves another one" if command == "serve" else ""
        return f"The model is the first argument: finetale {command} {_MODEL_FIRST[command]}{also}."
    settings = {name[2:].replace("-", "_") for name in flags if name.startswith("--")}
    ours = plain_name(flag)
    if ours in settings:
        return f"{flag} is {_write(ours, value)} here."
    if (name := find_name(flag)) is not None:
        if not name.setting:
            return f"{flag}: {name.note}."
        ours, note = name.among(settings), f" ({name.note})" if name.note else ""
        if ours == "model" and command in _MODEL_FIRST:
            return _hint(command, flags, "--model", value)
        if ours in settings:
            written = _write(ours, name.written(value, ours))
            return f"{flag} is {written} here{note if ours == name.setting else ''}."
        return f"{flag} is {_write(ours)} of `finetale train`{note}."
    if ours in Config.model_fields:
        return f"{_write(ours)} is a flag of `finetale train`."
    # Without the dashes, which all flags share: with them, short names would resemble everything.
    names = sorted(name[2:] for name in flags if name.startswith("--"))
    near = difflib.get_close_matches(flag.lstrip("-"), names, n=1, cutoff=0.6)
    return f"Did you mean {_write(near[0], value)}?" if near else f"No flag has a similar name to {flag}."


def _write(setting: str, value: str = "") -> str:
    flag = f"--{setting.replace('_', '-')}"
    return f"{flag} {shlex.quote(value)}" if value and setting not in _SWITCHES else flag


_SWITCHES = frozenset(name for name, field in Config.model_fields.items() if field.annotation is bool)
