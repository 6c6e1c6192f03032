"""The end of a run in the terminal: the verdict, the numbers, samples, and what to do next."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from finetale.cli.output import stdout
from finetale.rundir import RunDirectory, read_json


def print_outcome(run: RunDirectory, *then: str) -> None:
    """Verdict, table, one prompt's samples, and the next commands (`then` after the usual one), on stdout."""
    console = stdout()
    comparison = read_json(run.comparison)
    print_comparison(comparison, console)
    console.print()
    lines = [
        f"Model    {run.model}",
        f"Report   {run.report}",
        f'Next     finetale generate {run.root} "{comparison["prompts"][0]}"',
        *(f"         {command}" for command in then),
    ]
    for line in lines:
        console.print(escape(line), soft_wrap=True, highlight=False)


def print_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """The verdict first, then the numbers, then before and after side by side."""
    from finetale.report.table import table_rows
    from finetale.report.views import COPY_WARNING_WORDS, memory_view

    console = console or stdout()
    console.print()
    colour = {True: "green", False: "yellow", None: "white"}[comparison["improved"]]
    console.print(Panel(Text(comparison["verdict"], style="bold"), border_style=colour))
    wide = console.width >= 72
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", min_width=16)
    for title in ("before", "after", "change", "95% interval")[: 4 if wide else 3]:
        table.add_column(title, justify="right", no_wrap=wide)
    group = ""
    for row in table_rows(comparison):
        if row.group != group:
            group = row.group
            table.add_row(f"[bold]{group}[/]")
        cells = (f"  {row.what}", row.before, row.after, row.change, row.intervals[2])
        table.add_row(*(escape(cell) for cell in cells[: 5 if wide else 4]))
    console.print(table)
    before, after = comparison["before"], comparison["after"]
    if before["samples"] and after["samples"]:
        console.print()
        samples = Table(
            expand=True, show_lines=True, title_justify="left", title=f"“{escape(after['samples'][0]['prompt'])} …”"
        )
        samples.add_column(f"before ({escape(before['name'])})", ratio=1)
        samples.add_column(f"after ({escape(after['name'])})", ratio=1)
        samples.add_row(Text(before["samples"][0]["text"].strip()), Text(after["samples"][0]["text"].strip()))
        console.print(samples)
    copy = after["sample_metrics"].get("longest_match")
    if copy and copy["words"] >= COPY_WARNING_WORDS:
        console.print(
            f"[yellow]A sample repeats {copy['words']} words of the training text: “{escape(copy['text'])}”[/]"
        )
    memory = memory_view(comparison)
    if memory is not None:
        style = "yellow" if memory["warn"] else ""
        console.print(Text(f"{memory['what']} {memory['contrast']}", style=style))
