"""Run functions and commands in several processes that form one group, as torchrun would start them."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import children
from children import CONTEXT, Hook, finish
from finetale.ranks import Ranks, joined

Work = Callable[[Ranks, Path], Any]


def together(world: int, work: Work, folder: Path, seconds: float = 120, *, join: bool = True) -> list[int]:
    """Run `work(ranks, folder)` in `world` processes; return their exit codes. Without `join` it joins them itself.

    A process whose work raises writes type and message of the exception into folder/failed-RANK and exits with 1.
    """
    return _codes(world, functools.partial(_work, work, folder, join), seconds)


def failures(folder: Path, world: int) -> list[str]:
    """Return type and message of what each process raised; empty for none."""
    files = [folder / f"failed-{rank}" for rank in range(world)]
    return [file.read_text() if file.exists() else "" for file in files]


def command(
    folder: Path,
    world: int,
    words: Sequence[str],
    hook: Hook | None = None,
    *,
    kill: tuple[int, float] | None = None,
) -> tuple[list[int], list[str]]:
    """Run `finetale WORDS` in `world` processes; return the exit code and the output of each.

    Args:
        kill: rank of a process, and seconds after which it is killed.
    """
    codes = _codes(world, functools.partial(_command, folder, tuple(words), hook), 120, kill)
    return codes, [(folder / f"printed-{rank}").read_text(encoding="utf-8") for rank in range(world)]


def _codes(world: int, work: Callable[[int], None], seconds: float, kill: tuple[int, float] | None = None) -> list[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [CONTEXT.Process(target=_run, args=(rank, world, port, work)) for rank in range(world)]
    for process in started:
        process.start()
    if kill is not None:
        time.sleep(kill[1])
        started[kill[0]].kill()
        for process in started:  # a launcher ends the others, which may still wait for the first meeting
            process.join(10)
            process.kill()
    return [finish(process, seconds) for process in started]


def _run(rank: int, world: int, port: int, work: Callable[[int], None]) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    work(rank)


def _work(work: Work, folder: Path, join: bool, rank: int) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        with joined() if join else contextlib.nullcontext(Ranks(rank)) as ranks:
            work(ranks, folder)
    except BaseException as error:
        (folder / f"failed-{rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def _command(folder: Path, words: tuple[str, ...], hook: Hook | None, rank: int) -> None:
    children.run(str(folder), words, hook, printed=f"printed-{rank}")
