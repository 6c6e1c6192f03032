"""The flags that start a command in several processes."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

Processes = Annotated[
    str | None,
    Parameter(help="Number of processes of this machine that train together; auto: one per GPU. Default: one."),
]
MaxRestarts = Annotated[
    int, Parameter(help="How often the run is resumed after one of its processes was killed, as for lack of memory.")
]


def in_processes(processes: str | None, max_restarts: int) -> int | None:
    """Start the present command in the processes that its flags ask for.

    Returns:
        exit code; None if this process is one of them, or the only one.
    """
    if processes is None and not max_restarts:
        return None
    from finetale.launching import launch

    return launch(processes or "1", sys.argv[1:], max_restarts, lambda text: print(text, file=sys.stderr))
