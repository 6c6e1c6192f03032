"""`finetale report`."""

from __future__ import annotations

import sys

from finetale.cli.output import RunFolder
from finetale.rundir import RunDirectory


def command(directory: RunFolder, /) -> int:
    """Write report.html of a run again. Only the files in the run directory are needed."""
    from finetale.report import write_report

    run = RunDirectory.open(directory)
    with run.locked():
        path = write_report(run)
    sys.stdout.write(f"{path}\n")
    return 0
