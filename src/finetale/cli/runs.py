"""`finetale runs`."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any

import psutil
from cyclopts import Parameter
from rich.table import Table

from finetale.cli.output import Json, number, print_json, stdout
from finetale.display import duration
from finetale.errors import RunError
from finetale.rundir import RunDirectory, read_json


def command(
    folder: Annotated[Path, Parameter(help="Where to look.")] = Path(),
    /,
    *,
    as_json: Json = False,
) -> int:
    """A table of the runs in FOLDER and in FOLDER/runs, newest last."""
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder.", "Give a folder that holds runs.")
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
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("run", "status", "base", "steps", "before", "after", "time"):
        table.add_column(title, justify="left" if title in ("run", "status", "base") else "right", overflow="fold")
    for row in rows:
        table.add_row(
            row["run"],
            row["status"],
            row["base"],
            str(row["steps"]),
            number(row["before"]),
            number(row["after"]),
            duration(row["seconds"]) if row["seconds"] else "–",
        )
    console.print(table)
    console.print("before and after: perplexity on held-out text")
    return 0


def _row(run: RunDirectory) -> dict[str, Any]:
    manifest: dict[str, Any] = {}
    figures: dict[str, float | None] = {"before": None, "after": None}
    try:
        manifest = run.read_manifest()
        if run.comparison.is_file():
            comparison = read_json(run.comparison)
            for side in figures:
                held_out = comparison[side]["test"] or comparison[side]["validation"]
                figures[side] = held_out["perplexity"] if held_out else None
        status = "interrupted" if _was_killed(manifest) else manifest.get("status", "unknown")
    except (RunError, KeyError, TypeError):
        status = "damaged"
    return {
        "run": str(run.root),
        "status": status,
        "base": (manifest.get("base") or {}).get("name", "–"),
        "steps": manifest.get("steps", 0),
        "seconds": manifest.get("seconds"),
        "created": manifest.get("created"),
        **figures,
    }


def _was_killed(manifest: dict[str, Any]) -> bool:
    """Whether a run that calls itself running has no process on this machine any more."""
    process = manifest.get("process") or {}
    here = process.get("host") == platform.node()
    return manifest.get("status") == "running" and here and not psutil.pid_exists(process.get("pid", -1))
