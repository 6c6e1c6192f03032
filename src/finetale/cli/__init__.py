"""Run the command line. Results go to stdout, everything else to stderr; `run` documents the exit codes.

Each command is a small module that parses, calls and prints. It is imported when it is called, so that
`finetale --help` loads neither torch nor transformers.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, UnknownOptionError
from rich.console import Console

import finetale
from finetale.cli.output import print_error
from finetale.cli.streams import accept_all_characters
from finetale.environment import calm_threads
from finetale.errors import ConfigError, FinetaleError
from finetale.out_of_memory import check_address_space, is_out_of_memory, memory_limit_error
from finetale.signals import ending_the_process, leave

COMMANDS = {
    "demo": "Train, compare and report on bundled text, offline, in a few minutes.",
    "check": "Show what would be trained on, and every problem by file and line.",
    "plan": "Measure how much time and memory training would take on this machine.",
    "train": "Fine-tune a model on text, compare it with its base, write a report.",
    "resume": "Continue a run where it stopped.",
    "evaluate": "Measure loss, perplexity and bits per byte of a model on text.",
    "generate": "Continue prompts with a model.",
    "compare": "Compare two models on the same text, prompts and seeds, or a run with its base.",
    "serve": "Serve a model with an OpenAI-compatible API.",
    "export": "Convert a model for another program, and prove that it still writes the same.",
    "push": "Upload a run or a model folder to the Hub, as a private repository.",
    "merge": "Merge an adapter into its base, as a model folder.",
    "report": "Write the report.html of a run again.",
    "runs": "List the runs here.",
    "cache": "Show the cache of tokenised text and converted models, or empty it.",
    "doctor": "Show this machine, and what would make training faster.",
}
_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO})
_DASH = "<standard input>"
USAGE_ERROR, BUG, NOT_RESUMABLE = 2, 70, 130


def build_app() -> App:
    """Return the application with all commands, without importing them."""
    app = App(
        name="finetale",
        help="Fine-tune GPT-2 and similar models on your own text, and see in numbers and samples whether they got "
        "better.",
        version=finetale.__version__,
        help_format="plaintext",
        console=Console(),
        error_console=Console(stderr=True),
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for name, summary in COMMANDS.items():
        app.command(f"finetale.cli.{name}:command", name=name, help=summary)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done · 1 a user error (one `error:` line, one `hint:` line) · 2 bad usage · 70 a bug · 75 interrupted and
    resumable · 130 interrupted before there was anything to resume.
    """
    accept_all_characters()
    calm_threads()
    app = build_app()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _check_working_directory()
        with ending_the_process():
            return _call(app, words or ["--help"])
    except CycloptsError as error:
        print_error(*_usage_error(app, words, error))
        return USAGE_ERROR
    except FinetaleError as error:
        if is_out_of_memory(error):
            return _memory_ran_out(error)
        if not error.told:
            print_error(error.message, error.hint)
        return error.exit_code
    except BrokenPipeError:  # as in `finetale runs | head -1`
        sys.stderr.close()
        return 0
    except OSError as error:
        if is_out_of_memory(error):
            return _memory_ran_out(error)
        if error.errno not in _WRITE_ERRORS:
            return _bug()
        refused = error.errno in (errno.EACCES, errno.EPERM)
        print_error(
            f"{error.filename or 'A file'} can't be {'read or written' if refused else 'written'}: {error.strerror}.",
            "Check who may read and write it." if refused else "Free some disk space, or check the permissions.",
        )
        return 1
    except KeyboardInterrupt:
        print_error("Stopped. Nothing was left half-written.", "Run the command again to start over.")
        return NOT_RESUMABLE
    except Exception as error:
        return _memory_ran_out(error) if is_out_of_memory(error) else _bug()


def _check_working_directory() -> None:
    """Check that the current folder exists: libraries that resolve relative paths fail or abort without it.

    Raises:
        ConfigError: it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError(
            "The current folder was deleted.", "Change to a folder that exists, such as `cd ~`."
        ) from None


def _memory_ran_out(error: Exception) -> int:
    limit = memory_limit_error(error)
    error.__traceback__ = None  # frees the memory of the frames, so that printing succeeds
    try:
        print_error(limit.message, limit.hint)
    except MemoryError:
        os.write(2, f"error: {limit.message}\nhint: {limit.hint}\n".encode(errors="replace"))
    return limit.exit_code


def _bug() -> int:
    Console(stderr=True).print_exception(width=120)
    print_error("This is a bug in Finetale, not a mistake of yours.", "Please report it with the lines above.")
    return BUG


def _call(app: App, words: list[str]) -> int:
    """Parse a command line and call its command. A lone `-` is renamed for the parser, which takes it for an option."""
    command, bound, _ = app.parse_args([_DASH if word == "-" else word for word in words])
    named = {name: _undash(value) for name, value in bound.kwargs.items()}
    if any(word in COMMANDS for word in words):
        check_address_space()
    return int(command(*map(_undash, bound.args), **named) or 0)


def _undash(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_undash(item) for item in value)
    return "-" if value == _DASH else value


def main() -> None:
    """Run the `finetale` command."""
    leave(run())


def _usage_error(app: App, words: Sequence[str], error: CycloptsError) -> tuple[str, str]:
    """Return message and hint for a command line that can't be parsed."""
    place, command = next(((at, word) for at, word in enumerate(words) if word in COMMANDS), (0, ""))
    if command and isinstance(error, UnknownOptionError):
        from finetale.cli.unknown import explain_unknown  # imports the settings, which most commands need later

        if found := explain_unknown(app, command, words[place + 1 :]):
            return found
    return " ".join(str(error).split()), f"See `finetale {command} --help`." if command else "See `finetale --help`."
