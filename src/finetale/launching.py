"""Start a command in several processes of this machine, and start it again if one of them is killed."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from finetale.errors import ConfigError, RankError
from finetale.ranks import LAUNCHER, has_launcher, world_size
from finetale.signals import handling

_RUN_FILE = "FINETALE_RUN_FILE"
"""Variable with the path of a file into which the main process writes the directory of its run."""
_KEPT_FLAGS = ("--quiet", "--json")
"""Flags of `train` that `resume` has too, and that a restart keeps."""


class _Killed(Exception):
    """One of the processes was ended by a signal.

    Attributes:
        rank: its number, from 0.
        name: the name of the signal.
    """

    def __init__(self, rank: int, number: int) -> None:
        super().__init__()
        self.rank = rank
        self.name = signal.Signals(number).name


def launch(processes: str, words: Sequence[str], max_restarts: int, say: Callable[[str], None]) -> int | None:
    """Start a command in several processes.

    Args:
        processes: a number, or "auto" for one process per accelerator.
        words: the command and its arguments.
        max_restarts: how often the run is resumed after one of its processes was killed.
        say: receives a sentence at each restart.

    Returns:
        exit code of the main process; None if one process is enough or a launcher has started this one.

    Raises:
        ConfigError: `processes` is neither, or `max_restarts` is negative.
        RankError: one of the processes was killed, and no restart is left.
    """
    if world_size() > 1 or has_launcher():
        return None
    number = _number_of(processes)
    if max_restarts < 0:
        raise ConfigError(f"--max-restarts is {max_restarts}, and must be at least 0.")
    if number == 1 and not max_restarts:
        return None
    with tempfile.TemporaryDirectory(prefix="finetale-") as folder:
        run_file = Path(folder) / "run"
        os.environ[_RUN_FILE] = str(run_file)
        try:
            for restart in range(max_restarts + 1):
                try:
                    return _start(number, words, folder)
                except _Killed as killed:
                    said = f"Process {killed.rank + 1} of {number} was ended by {killed.name}"
                    if restart == max_restarts:
                        raise RankError(
                            f"{said}, so the run was stopped.",
                            "Continue with `finetale resume`. If the system ended it for lack of memory, use fewer "
                            "processes.",
                        ) from None
                if run_file.exists() and words[0] != "resume":
                    words = ["resume", run_file.read_text("utf-8"), *(word for word in words if word in _KEPT_FLAGS)]
                goes_on = "continues from its last checkpoint" if words[0] == "resume" else "begins again"
                say(f"{said}. The run {goes_on} (restart {restart + 1} of {max_restarts}).")
        finally:
            del os.environ[_RUN_FILE]
    raise AssertionError  # the last restart returns or raises


def announce(run: Path) -> None:
    """Tell the command that has started this process which run it may resume."""
    if _RUN_FILE in os.environ:
        Path(os.environ[_RUN_FILE]).write_text(str(run), "utf-8")


def _start(number: int, words: Sequence[str], folder: str) -> int:
    """Run a command in processes of its own; return its exit code.

    Args:
        folder: for the launcher's own files, of which it would leave an empty folder otherwise.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes say themselves what is wrong
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ[LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id="finetale",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        max_restarts=0,  # it would repeat the command after every failure
        signals_to_handle="",  # it would end them without waiting for their exit codes
    )
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    with handling(dict.fromkeys(names, _pass_on)):
        try:
            elastic_launch(config, sys.executable)("-m", "finetale", *words)
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
            killed = {rank: -code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
            for rank, cause in killed.items():  # it could not say anything; the launcher ends the others by SIGTERM
                raise _Killed(rank, cause) from None
            return codes[min(codes, key=lambda rank: (codes[rank] < 0, rank))]
    return 0


def _number_of(processes: str) -> int:
    if processes == "auto":
        import torch

        return max(1, torch.accelerator.device_count())
    if not processes.isdecimal() or int(processes) < 1:
        raise ConfigError(
            f"--processes is {processes!r}, and must be a number of at least 1, or auto.",
            "auto starts one process per GPU.",
        )
    return int(processes)


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Send a signal to the processes of the run. They save, and leave with their exit code."""
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            child.send_signal(number)
