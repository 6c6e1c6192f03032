"""The real command in processes that can be signalled and killed: each forked from one that has loaded the libraries already."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["finetale.pipeline", "finetale.cli", "tiny", "children"])
Hook = Callable[[], None]


def start(folder: Path, words: Sequence[str], hook: Hook | None = None) -> BaseProcess:
    """`finetale WORDS` in a folder, with its cache there; what it prints goes to folder/printed.

    Args:
        hook: called in the process before the command; a function of a test module.
    """
    process = CONTEXT.Process(target=_run, args=(str(folder), tuple(words), hook))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """Exit code of a process; it is killed if it takes too long."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"still running after {seconds} s")
    return process.exitcode


def call(folder: Path, *words: str, hook: Hook | None = None) -> tuple[int, str]:
    """Exit code and output of `finetale WORDS`."""
    code = finish(start(folder, words, hook))
    return code, printed(folder)


def printed(folder: Path) -> str:
    """What the last command in a folder printed."""
    return (folder / "printed").read_text(encoding="utf-8")


def _run(folder: str, words: tuple[str, ...], hook: Hook | None) -> None:
    os.chdir(folder)
    os.environ |= {"FINETALE_CACHE": "cache", "COLUMNS": "300"}
    descriptor = os.open("printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    if hook is not None:
        hook()
    code = importlib.import_module("finetale.cli").run(list(words))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as quickly as a process of its own would
