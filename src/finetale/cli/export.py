"""`finetale export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from finetale import formatting
from finetale.cli.output import Json, Model, Quiet, print_json, progress, stdout


def command(
    model: Model,
    /,
    *,
    to: Annotated[str, Parameter(help="The format; `list` shows all of them.")] = "list",
    weights: Annotated[
        str | None, Parameter(help="Type of the weights, such as q8_0. Default: the format's first.")
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="Folder to write. Default: exports/ of a run, otherwise the current folder.")
    ] = None,
    accept_loss: Annotated[
        bool, Parameter(negative=(), help="Keep an export that differs more than the format allows.")
    ] = False,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit of a model on the Hub.")] = None,
    offline: Annotated[bool, Parameter(negative=(), help="Use only files that are on this machine.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Convert a model for another program, and prove that it still writes the same.

    The program that the format is for loads the result. It must give held-out text the perplexity that PyTorch gives
    it, within the bound of the format. The README.md of the export has the figures and how to use it.
    """
    from finetale import pipeline

    with progress(quiet=quiet, as_json=as_json) as display:
        if to == "list":
            formats = pipeline.list_formats(model, revision=revision, offline=offline)
        else:
            folder, record = pipeline.export_model(
                model,
                to,
                display,
                weights=weights,
                out=out,
                accept_loss=accept_loss,
                revision=revision,
                offline=offline,
            )
    if to == "list":
        print_json(formats) if as_json else _print_formats(formats)
    elif as_json:
        print_json({"path": str(folder)} | record.to_dict())
    else:
        interval = record.change.interval
        spread = "" if interval is None else f", 95% interval {interval[0]:+.2f}% to {interval[1]:+.2f}%"
        lines = (
            f"Perplexity  {record.original_perplexity:.2f} → {record.perplexity:.2f} "
            f"({record.change.percent:+.2f}%{spread}) on {record.tokens:,} tokens of {record.text}",
            f"Same choice {record.same_choice:.1%} of the next tokens; greedy texts equal {record.greedy_equal:.1%}",
            f"Speed       {record.tokens_per_second:.0f} tokens per second in {record.runtime}",
            f"Export      {folder} ({formatting.size(record.bytes)})",
        )
        for line in lines:
            stdout().print(escape(line), soft_wrap=True)
    return 0


def _print_formats(formats: list[dict[str, Any]]) -> None:
    for each in formats:
        sizes = ", ".join(f"{kind} ({formatting.size(size)})" for kind, size in each["weights"].items())
        sizes = sizes or "for a model with an adapter"
        missing = "" if each["missing"] is None else f"\n    not installed: {each['missing']}"
        stdout().print(escape(f"{each['format']:<12} {each['purpose']}\n    {sizes}{missing}"), soft_wrap=True)
