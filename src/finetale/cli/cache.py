"""`finetale cache`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape
from rich.table import Table

from finetale.cache import LIMIT_VARIABLE, Entry, cache_root, empty, entries, size_limit
from finetale.cli.output import Json, print_json, stdout
from finetale.errors import RunError
from finetale.formatting import size
from finetale.rundir import read_json

_SOURCES = 3


def command(
    *,
    empty_it: Annotated[
        bool, Parameter(name="--empty", negative=(), help="Delete everything that no running process uses.")
    ] = False,
    cache_dir: Annotated[
        Path | None,
        Parameter(
            help="Folder of the cache. auto: FINETALE_CACHE, else ~/.cache/finetale. "
            "Its limit is FINETALE_CACHE_LIMIT, such as 50GB or none, else 10 GiB."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Show what the cache holds, or empty it.

    Finetale recreates deleted entries when it needs them. Runs lose nothing. When the cache exceeds its limit, the
    least recently used entries are deleted. The limit is FINETALE_CACHE_LIMIT (a size or none), else 10 GiB.
    """
    root, limit = cache_root(cache_dir), size_limit()
    deleted: list[Entry] = []
    if empty_it:
        deleted, found = empty(root)
    else:
        found = entries(root)[::-1]
    rows = [_row(entry) for entry in found]
    total = sum(entry.bytes for entry in found)
    if as_json:
        print_json(
            {
                "cache": str(root.absolute()),
                "limit_bytes": limit,
                "bytes": total,
                "entries": rows,
                "deleted": [str(entry.path) for entry in deleted],
                "deleted_bytes": sum(entry.bytes for entry in deleted),
            }
        )
        return 0
    console = stdout()
    if empty_it:
        freed = size(sum(entry.bytes for entry in deleted))
        console.print(f"Deleted {_entries(len(deleted))} ({freed}) from {escape(str(root))}.")
        if found:
            console.print(
                f"{_entries(len(found))} {'is in use and stays' if len(found) == 1 else 'are in use and stay'}:"
            )
    if rows:
        console.print(_table(rows))
    if not empty_it:
        allowed = "no limit" if limit is None else f"limit {size(limit)}"
        what = f"{_entries(len(rows))}, {size(total)}" if rows else "empty"
        console.print(f"{escape(str(root))}: {what} ({allowed}; {LIMIT_VARIABLE} changes it)", soft_wrap=True)
        if rows:
            console.print("`finetale cache --empty` deletes what no running process uses.", soft_wrap=True)
    return 0


def _entries(number: int) -> str:
    return f"{number:,} {'entry' if number == 1 else 'entries'}"


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("what", "of", "size", "last used", "in use"):
        table.add_column(title, justify="right" if title == "size" else "left", overflow="fold")
    for row in rows:
        used = datetime.datetime.fromisoformat(row["last_used"]).astimezone()
        table.add_row(
            row["kind"],
            escape(row["of"]),
            size(row["bytes"]),
            used.strftime("%Y-%m-%d %H:%M"),
            "yes" if row["in_use"] else "",
        )
    return table


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "of": _content(entry),
        "path": str(entry.path),
        "bytes": entry.bytes,
        "last_used": datetime.datetime.fromtimestamp(entry.last_used, datetime.UTC).isoformat(timespec="seconds"),
        "in_use": entry.in_use,
    }


def _content(entry: Entry) -> str:
    """Return the sources of an entry if it records them, else its name."""
    if entry.kind == "tokens":
        try:
            named = read_json(entry.path / "store.json").get("report", {}).get("sources", [])
        except (RunError, AttributeError):
            named = []
        if isinstance(named, list) and named:
            more = f" and {len(named) - _SOURCES:,} more" if len(named) > _SOURCES else ""
            return ", ".join(map(str, named[:_SOURCES])) + more
    return entry.path.name
