"""`finetale runs`."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any

import psutil
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetale.cli.output import Json, number, print_json, stdout
from finetale.errors import RunError
from finetale.formatting import duration
from finetale.rundir import RunDirectory
from finetale.schema import RunManifest

_TITLES = ("run", "status", "base", "steps", "before", "after", "time")
_WIDE = 72
"""Minimum width of the terminal, in columns, to print a table."""


def command(
    folder: Annotated[Path, Parameter(help="Where to look.")] = Path(),
    /,
    *,
    as_json: Json = False,
) -> int:
    """List the runs in FOLDER and in FOLDER/runs, newest last."""
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder.", "Give a folder that holds runs.")
    found = sorted(
        {path.parent for pattern in ("run.json", "*/run.json", "runs/*/run.json") for path in folder.glob(pattern)}
    )
    rows = sorted((_row(RunDirectory(path)) for path in found), key=lambda row: row["created"] or "")
    if as_json:
        print_json(rows)
        return 0
    console = stdout()
    if not rows:
        console.print("There are no runs here. `finetale train SOURCE` makes one, `finetale demo` shows how.")
        return 0
    if console.width < _WIDE:
        for row in rows:
            _print_below_each_other(console, _cells(row))
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for title in _TITLES:
            table.add_column(title, justify="left" if title in _TITLES[:3] else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in _cells(row)))
        console.print(table)
    console.print("before and after: perplexity per token on held-out text")
    return 0


def _cells(row: dict[str, Any]) -> list[str]:
    figures = [number(row["before"]), number(row["after"])]
    time = duration(row["seconds"]) if row["seconds"] else "–"
    return [row["run"], row["status"], row["base"], f"{row['steps']:,}", *figures, time]


def _print_below_each_other(console: Console, cells: list[str]) -> None:
    """Print a run as lines of title and value, for a terminal that is too narrow for a table."""
    console.print(Text(cells[0], style="bold", overflow="fold"))
    for title, cell in zip(_TITLES[1:], cells[1:], strict=True):
        console.print(Text(f"  {title:<8}{cell}", overflow="fold"))


def _row(run: RunDirectory) -> dict[str, Any]:
    manifest = RunManifest()
    figures: dict[str, float | None] = {"before": None, "after": None}
    try:
        manifest = run.read_manifest()
        if run.comparison.is_file():
            comparison = run.read_comparison()
            for name, side in (("before", comparison.before), ("after", comparison.after)):
                held_out = side.test or side.validation
                figures[name] = held_out.perplexity if held_out else None
        status: str = "interrupted" if _was_killed(manifest) else manifest.status or "unknown"
    except RunError:
        status = "damaged"
    return {
        "run": str(run.root),
        "status": status,
        "base": manifest.base.name if manifest.base else "–",
        "steps": manifest.steps,
        "seconds": manifest.seconds,
        "created": manifest.created,
        **figures,
    }


def _was_killed(manifest: RunManifest) -> bool:
    """Return whether a run has the status `running` although its process on this machine has ended."""
    process = manifest.process
    if manifest.status != "running" or process is None or process.host != platform.node():
        return False
    return not psutil.pid_exists(process.pid)
