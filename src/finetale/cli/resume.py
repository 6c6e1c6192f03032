"""`finetale resume`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from finetale import ranks
from finetale.cli.launch import MaxRestarts, Processes, in_processes
from finetale.cli.output import Json, Quiet, RunFolder, print_json, progress


def command(
    directory: RunFolder,
    /,
    *,
    accept_changes: Annotated[
        bool,
        Parameter(negative=(), help="Resume although the text or config.yaml has changed since the run began."),
    ] = False,
    epochs: Annotated[
        float | None,
        Parameter(help="Train on until this many passes over the text, counted from the beginning of the run."),
    ] = None,
    max_steps: Annotated[
        int | None, Parameter(help="Train on until this many steps, counted from the beginning of the run.")
    ] = None,
    processes: Processes = None,
    max_restarts: MaxRestarts = 0,
    shard: Annotated[
        bool | None,
        Parameter(help="Divide weights, gradients and moments among the processes, or not. Default: as before."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Resume a run from its newest valid checkpoint. The result is the same as without the interruption.

    A finished run stays unchanged, with exit code 0, unless --epochs or --max-steps asks for more training. The
    learning-rate schedule then spans all steps of the longer run.
    """
    if (code := in_processes(processes, max_restarts)) is not None:
        return code
    from finetale import pipeline
    from finetale.cli.outcome import print_outcome

    with progress(quiet=quiet or not ranks.is_main(), as_json=as_json) as display:
        budget = {"epochs": epochs, "max_steps": max_steps}
        run = pipeline.resume_run(directory, display, accept_changes=accept_changes, budget=budget, shard=shard)
    if not ranks.is_main():
        return 0
    if as_json:
        print_json(run.read_comparison().to_dict())
    else:
        print_outcome(run)
    return 0
