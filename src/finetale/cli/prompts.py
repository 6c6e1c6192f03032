"""Read the prompts of a command: its words, standard input, or a file of lines."""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from finetale.errors import GenerationError
from finetale.surrogates import describe_surrogates, quoted

_STANDARD_INPUT = "standard input"


def read_prompts(model: str, words: Sequence[str], options: Sequence[str], file: str | None) -> list[str]:
    """Return the prompts of a command; empty if it has none.

    Args:
        model: the command's MODEL, for hints.
        words: the arguments after MODEL; `-` is all of standard input as one prompt.
        options: the values of --prompt.
        file: the value of --prompts-file; `-` is standard input, a prompt per line.

    Raises:
        GenerationError: a prompt is not text, the words look like one prompt without its quotes, or a word is the
            path of a file.
    """
    _check_quotes(model, words)
    _check_not_files(words)
    prompts = []
    for text in (*words, *options):
        if text == "-":
            prompts.append(_decoded(sys.stdin.buffer.read(), _STANDARD_INPUT))
            continue
        if problem := describe_surrogates(text, from_bytes=True):
            raise GenerationError(f"The prompt {quoted(text)} {problem}.", _HINT)
        prompts.append(text)
    if file is not None:
        prompts += _lines_of(file)
    elif not prompts and _is_piped():
        prompts += _prompts_in(sys.stdin.buffer.read(), _STANDARD_INPUT)
    return prompts


_HINT = "Write it in UTF-8, or give it in a file with --prompts-file."


def _check_quotes(model: str, words: Sequence[str]) -> None:
    """Refuse several single words: a prompt that lacks its quotes. Scripts without spaces are accepted."""
    if len(words) > 1 and all(len(word.split()) == 1 and word != "-" for word in words):
        from finetale.text.words import spaces_separate_words

        if spaces_separate_words(words):
            single = " ".join(f"--prompt {shlex.quote(word)}" for word in words[:3])
            raise GenerationError(
                f"The prompt has no quotes: its {len(words)} words would each be a separate prompt.",
                f"Write {shlex.join(['finetale', 'generate', model, ' '.join(words)])}, or {single} …"
                " if single words are meant.",
            )


def _check_not_files(words: Sequence[str]) -> None:
    """Refuse an argument that is the path of a file: the user most likely wants the prompts in the file."""
    for word in words:
        if word != "-" and os.path.isfile(word):  # unlike Path.is_file, False for a long text instead of an error
            name = shlex.quote(word)
            raise GenerationError(
                f"The prompt {quoted(word)} is the path of a file.",
                f"Read a prompt per line from it with --prompts-file {name}, or use the path itself as a prompt with "
                f"--prompt {name}.",
            )


def _is_piped() -> bool:
    """Return whether standard input is a pipe or a file; a terminal, /dev/null and a closed one hold no prompts."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _lines_of(file: str) -> list[str]:
    """Return the prompts in a file, one or more.

    Raises:
        GenerationError: it can't be read, or holds no prompt.
    """
    name = _STANDARD_INPUT if file == "-" else file
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise GenerationError(
            f"The prompts in {file} can't be read: {error.strerror or error}.",
            "Give a UTF-8 text file with a prompt per line.",
        ) from None
    prompts = _prompts_in(data, name, json_lines=file.endswith(".jsonl"))
    if not prompts:
        raise GenerationError(f"{name} holds no prompt.", "Write one prompt per line.")
    return prompts


def _prompts_in(data: bytes, name: str, *, json_lines: bool = False) -> list[str]:
    """Return the prompts of lines; JSON objects have them under `prompt`, if all lines are objects or must be."""
    lines = [line for line in _decoded(data, name).split("\n") if line.strip()]
    if json_lines or (lines and all(_is_object(line) for line in lines)):
        return [_prompt_of(line, f"{name}:{number}") for number, line in _numbered(_decoded(data, name).split("\n"))]
    return [line.removesuffix("\r") for line in lines]


def _numbered(lines: Sequence[str]) -> Iterable[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _prompt_of(line: str, place: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        prompt = None
    if not isinstance(prompt, str):
        raise GenerationError(
            f"{place} is not a JSON object with a text under the key prompt.", 'Write {"prompt": "…"} per line.'
        )
    if problem := describe_surrogates(prompt):
        raise GenerationError(f"{place} {problem}.", "Replace it by the whole character, or leave the line out.")
    return prompt


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise GenerationError(
            f"{name}:{line} is not UTF-8 (byte 0x{data[error.start]:02X}).", "Convert the prompts to UTF-8."
        ) from None
