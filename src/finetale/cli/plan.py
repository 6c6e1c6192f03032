"""`finetale plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from finetale.cli.output import Json, Quiet, Source, print_json, progress, stdout
from finetale.cli.settings import with_settings
from finetale.formatting import duration, size

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
_COLUMNS = ("precision", "attention", "micro_batch_size", "compile", "threads")


@with_settings()
def command(
    *source: Source,
    config: Annotated[Path | None, Parameter(help="Settings file (YAML); flags win over it.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    **settings: object,
) -> int:
    """What training on SOURCE would take on this machine: memory, tokens/s and time, measured by a few real steps.

    Takes the settings of `finetale train`. Nothing is trained, and no run directory is written.
    """
    from finetale import library, pipeline

    resolved = library.resolve(source, config, settings)
    with progress(quiet=quiet, as_json=as_json) as display:
        result = pipeline.plan_run(resolved, display).to_dict()
    if as_json:
        print_json(result)
        return 0
    _show(result)
    return 0


def _show(plan: dict[str, Any]) -> None:
    console = stdout()
    model, tokens, memory, settings = plan["model"], plan["data"]["tokens"], plan["memory"], plan["config"]
    machine = plan["hardware"]
    where = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, {machine['cores']} cores"
    console.print(f"Model     {model['name']}, {model['parameters'] / 1e6:,.1f} M parameters")
    console.print(f"Machine   {where}")
    console.print(
        f"Tokens    {tokens['read']:,} read = {tokens['trained']:,} trained + {tokens['validation']:,} validation "
        f"+ {tokens['test']:,} test + {tokens['dropped']:,} dropped",
        soft_wrap=True,
    )
    console.print(
        f"Steps     {plan['steps']:,} ({plan['steps_per_epoch']:,} an epoch), {plan['targets']:,} tokens in all"
    )
    console.print(
        f"Speed     {plan['tokens_per_second']:,.0f} tokens/s training, {plan['evaluation_tokens_per_second']:,.0f} evaluating (measured)"
    )
    console.print(f"Memory    about {size(memory['expected_bytes'])} of {size(memory['available_bytes'])} free")
    disk = plan["disk"]
    console.print(f"Disk      {size(disk['peak_bytes'])} of {size(disk['free_bytes'])} free")
    parts = [
        f"{duration(plan[f'{name}_seconds'])} {name.replace('train', 'training')}"
        for name in ("train", "evaluation", "comparison")
    ]
    console.print(f"Time      about {duration(plan['total_seconds'])}, of it {', '.join(parts)}")
    console.print("Settings  " + ", ".join(f"{name} {settings[name]}" for name in _SHOWN), soft_wrap=True)
    _show_probe(console, plan["probe"])


def _show_probe(console: Console, probe: dict[str, Any]) -> None:
    """What was tried for a few passes; the chosen one is marked."""
    if probe["skipped"]:
        console.print(f"Probe     nothing was tried: {probe['skipped']}")
        return
    later = f", no time for {probe['left_out']} more" if probe["left_out"] else ""
    console.print(f"Probe     {len(probe['trials'])} ways tried in {duration(probe['seconds'])}{later}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in (*_COLUMNS, "tokens/s"):
        table.add_column(
            name.replace("_size", ""), justify="right" if name in ("micro_batch_size", "tokens/s") else "left"
        )
    for trial in probe["trials"]:
        chosen = all(trial[name] == probe["chosen"][name] for name in _COLUMNS)
        speed = trial.get("error") or f"{trial['tokens_per_second']:,.0f}"
        table.add_row(
            "       ->" if chosen else "",
            *("-" if trial[name] is None else str(trial[name]) for name in _COLUMNS),
            speed,
        )
    console.print(table)
