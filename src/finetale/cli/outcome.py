"""Print the result of a run: the verdict, the figures, samples, and the next commands."""

from __future__ import annotations

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from finetale.cli.output import stdout
from finetale.formatting import plural, shell_command
from finetale.report.table import Row, copied_unit, table_rows
from finetale.report.views import COPY_WARNING_WORDS, forgetting, memory_view
from finetale.rundir import RunDirectory
from finetale.schema import ComparisonFile, Sample

_WIDE = 72
"""Minimum width of the terminal, in columns, for a separate column of intervals."""
_SIDE_BY_SIDE = 56
"""Minimum width of the terminal, in columns, to print samples beside each other."""


def print_outcome(run: RunDirectory, *then: str) -> None:
    """Print verdict, table, one prompt's samples, and the next commands to stdout.

    Args:
        run: a finished run.
        then: further commands to print after the usual one.
    """
    console = stdout()
    comparison = run.read_comparison()
    print_comparison(comparison, console)
    console.print()
    prompt = next(iter(comparison.prompts), "")
    words: tuple[object, ...] = ("finetale", "generate", run.root, prompt)
    text = run.read_data().text if run.data.is_file() else None
    if text is not None and text.examples is not None and text.examples.has_messages:
        words = ("finetale", "generate", run.root, "--chat")
    lines = [
        f"Model    {run.model}",
        f"Report   {run.report}",
        f"Next     {shell_command(*words)}",
        *(f"         {command}" for command in then),
    ]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def print_comparison(comparison: ComparisonFile, console: Console | None = None) -> None:
    """Print the verdict, then the figures, then samples before and after."""
    console = console or stdout()
    console.print()
    colour = {True: "green", False: "yellow", None: "white"}[comparison.improved]
    console.print(Panel(Text(comparison.verdict, style="bold", overflow="fold"), border_style=colour))
    for watched in comparison.watched:
        if sentence := forgetting(watched):
            console.print(Text(sentence, style="yellow", overflow="fold"))
    console.print(_figures(table_rows(comparison), wide=console.width >= _WIDE))
    _print_samples(comparison, console)
    copy = comparison.after.sample_metrics.longest_match
    if copy is not None and copy.words >= COPY_WARNING_WORDS:
        length = plural(copy.words, copied_unit(comparison.after))
        repeated = f"A sample repeats {length} of the training text: “{copy.text}”"
        console.print(Text(repeated, style="yellow", overflow="fold"))
    memory = memory_view(comparison)
    if memory is not None:
        style = "yellow" if memory["warn"] else ""
        console.print(Text(f"{memory['what']} {memory['contrast']}".strip(), style=style, overflow="fold"))


def _figures(rows: list[Row], *, wide: bool) -> Table:
    """Return the table of figures. A narrow one has intervals below their values, so that it loses nothing."""
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    table.add_column("", overflow="fold")
    for title in ("before", "after", "change", *(["95% interval"] if wide else [])):
        table.add_column(title, justify="right", no_wrap=wide, overflow="fold")
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            table.add_row(Text(group, style="bold"))
        change, interval = row.change, row.intervals[2]
        if not wide and interval:
            change, interval = f"{change}\n{interval}", ""
        cells = (f"  {row.what}" if wide else row.what, row.before, row.after, change, interval)
        table.add_row(*(Text(cell) for cell in cells[: 5 if wide else 4]))
    return table


def _print_samples(comparison: ComparisonFile, console: Console) -> None:
    """Print the first sample of each model: beside each other, or one below the other in a narrow terminal."""
    before, after = comparison.before, comparison.after
    if not before.samples or not after.samples:
        return
    console.print()
    console.print(Text(f"“{after.samples[0].prompt} …”", style="italic", overflow="fold"))
    titles = (f"before ({before.name})", f"after ({after.name})")
    texts = [Text(side.samples[0].text.strip(), overflow="fold") for side in (before, after)]
    if console.width < _SIDE_BY_SIDE:
        for title, text in zip(titles, texts, strict=True):
            console.print(Text(title, style="bold", overflow="fold"))  # a panel would cut its title
            console.print(Panel(text))
        _print_reference(after.samples[0], console)
        return
    table = Table(expand=True, show_lines=True)
    for title in titles:
        table.add_column(Text(title), ratio=1, overflow="fold")
    table.add_row(*texts)
    console.print(table)
    _print_reference(after.samples[0], console)


def _print_reference(sample: Sample, console: Console) -> None:
    """Print the answer that the held-out text has for the prompt of a sample."""
    if sample.reference is not None:
        console.print(Text(f"The answer in the text: {sample.reference.strip()}", overflow="fold"))
