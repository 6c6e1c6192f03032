"""`finetale plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from finetale.cli.output import Json, Quiet, Source, print_json, progress, stdout, sum_of_tokens
from finetale.cli.settings import with_settings
from finetale.formatting import duration, plural, size

if TYPE_CHECKING:
    from finetale.schema import PlanResult, ProbeResult

_SHOWN = (
    "block_size",
    "batch_size",
    "micro_batch_size",
    "learning_rate",
    "schedule",
    "epochs",
    "precision",
    "attention",
)
"""Settings that the forecast shows."""
_COLUMNS = ("precision", "attention", "micro_batch_size", "compile", "threads")
"""Columns of the probe's table; all of them are settings."""


@with_settings()
def command(
    *source: Source,
    config: Annotated[Path | None, Parameter(help="Settings file (YAML). Flags override it.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    **settings: object,
) -> int:
    """Forecast what training on SOURCE takes on this machine: memory, tokens/s and time, measured by a few real steps.

    Takes the settings of `finetale train`. Nothing is trained, and no run directory is written.
    """
    from finetale import library, pipeline

    resolved = library.resolve(source, config, settings)
    with progress(quiet=quiet, as_json=as_json) as display:
        result = pipeline.plan_run(resolved, display)
    if as_json:
        print_json(result.to_dict())
    else:
        _show(result)
    return 0


def _show(plan: PlanResult) -> None:
    from finetale.text.findings import mixed_notes

    console = stdout()
    machine, model, tokens, memory, disk = plan.hardware, plan.model, plan.data.tokens, plan.memory, plan.disk
    where = machine.gpu.name if machine.gpu else f"{machine.cpu}, {machine.cores} cores"
    console.print(f"Model     {model.name}, {(model.parameters or 0) / 1e6:,.1f} M parameters")
    part = plan.trained
    rank = "" if part.rank is None else f", rank {part.rank}"
    console.print(f"Method    {part.method}{rank}: {plural(part.parameters, 'parameter')} trained")
    console.print(f"Machine   {where}")
    console.print(
        f"Tokens    {tokens.read:,} read = {sum_of_tokens(tokens)}",
        soft_wrap=True,
    )
    for note in mixed_notes(plan.data.text):
        console.print(f"Beside    {note.what}", soft_wrap=True, markup=False)
    console.print(f"Steps     {plan.steps:,} ({plan.steps_per_epoch:,} per epoch), {plan.targets:,} tokens in all")
    console.print(
        f"Speed     {plan.tokens_per_second:,.0f} tokens/s training, "
        f"{plan.evaluation_tokens_per_second:,.0f} evaluating (measured)"
    )
    saved = f" (frozen matrices in bf16 save {size(memory.saved_bytes)})" if memory.saved_bytes else ""
    console.print(f"Memory    about {size(memory.expected_bytes)} of {size(memory.available_bytes)} free{saved}")
    console.print(f"Disk      {size(disk.peak_bytes)} of {size(disk.free_bytes)} free")
    console.print(
        f"Time      about {duration(plan.total_seconds)}: {duration(plan.train_seconds)} training, "
        f"{duration(plan.evaluation_seconds)} evaluation, {duration(plan.comparison_seconds)} comparison"
    )
    console.print("Settings  " + ", ".join(f"{name} {plan.config[name]}" for name in _SHOWN), soft_wrap=True)
    _show_probe(console, plan.probe)


def _show_probe(console: Console, probe: ProbeResult) -> None:
    """Print the ways to compute the run that were tried, and mark the chosen one."""
    if probe.skipped:
        console.print(f"Probe     nothing was tried: {probe.skipped}")
        return
    later = f", no time for {probe.left_out} more" if probe.left_out else ""
    console.print(f"Probe     {len(probe.trials)} ways tried in {duration(probe.seconds)}{later}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in (*_COLUMNS, "tokens/s"):
        table.add_column(
            name.replace("_size", ""), justify="right" if name in ("micro_batch_size", "tokens/s") else "left"
        )
    for trial in probe.trials:
        values = [getattr(trial, name) for name in _COLUMNS]
        is_chosen = values == [getattr(probe.chosen, name) for name in _COLUMNS]
        table.add_row(
            "       ->" if is_chosen else "",
            *("-" if value is None else str(value) for value in values),
            trial.error or f"{trial.tokens_per_second:,.0f}",
        )
    console.print(table)
