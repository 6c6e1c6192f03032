"""Run a function in several processes that form one group, as torchrun would start them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import CONTEXT, finish
from finetale.ranks import Ranks, joined

Work = Callable[[Ranks, Path], Any]


def together(world: int, work: Work, folder: Path, seconds: float = 120) -> list[int]:
    """Run `work(ranks, folder)` in `world` processes; return their exit codes.

    A process whose work raises prints nothing: it writes type and message of the exception into folder/failed-RANK and
    exits with 1.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [CONTEXT.Process(target=_run, args=(rank, world, port, work, folder)) for rank in range(world)]
    for process in started:
        process.start()
    return [finish(process, seconds) for process in started]


def failures(folder: Path, world: int) -> list[str]:
    """Return type and message of what each process raised; empty for none."""
    files = [folder / f"failed-{rank}" for rank in range(world)]
    return [file.read_text() if file.exists() else "" for file in files]


def _run(rank: int, world: int, port: int, work: Work, folder: Path) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    import torch

    torch.set_num_threads(1)
    try:
        with joined() as ranks:
            work(ranks, folder)
    except BaseException as error:
        (folder / f"failed-{rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)
