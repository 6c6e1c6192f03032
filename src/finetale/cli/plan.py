"""`finetale plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from finetale.cli.output import Json, Quiet, Source, print_json, progress, stdout
from finetale.cli.settings import with_settings
from finetale.display import duration, size

_SHOWN = ("block_size", "batch_size", "micro_batch_size", "learning_rate", "schedule", "epochs", "precision")


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
        result = pipeline.plan_run(resolved, display)
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
    total = plan["train_seconds"] + plan["evaluation_seconds"]
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
    console.print(f"Time      about {duration(total)}, of it {duration(plan['evaluation_seconds'])} evaluation")
    console.print("Settings  " + ", ".join(f"{name} {settings[name]}" for name in _SHOWN), soft_wrap=True)
