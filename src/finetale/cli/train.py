"""`finetale train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from finetale import ranks
from finetale.cli.launch import MaxRestarts, Processes, in_processes
from finetale.cli.output import Json, Quiet, Source, print_json, progress
from finetale.cli.settings import with_settings


@with_settings()
def command(
    *source: Source,
    config: Annotated[Path | None, Parameter(help="Settings file (YAML). Flags override it.")] = None,
    processes: Processes = None,
    max_restarts: MaxRestarts = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    **settings: object,
) -> int:
    """Fine-tune a model on text, compare it with its base, write a report.

    SOURCE is a file, a folder, - for standard input, bundled:tales, or hf:DATASET[/CONFIG][:SPLIT].
    """
    if (code := in_processes(processes, max_restarts)) is not None:
        return code
    from finetale import library, pipeline
    from finetale.cli.outcome import print_outcome

    resolved = library.resolve(source, config, settings)
    with progress(quiet=quiet or not ranks.is_main(), as_json=as_json) as display:
        run = pipeline.train_run(resolved, display)
    if not ranks.is_main():
        return 0
    if as_json:
        print_json(run.read_comparison().to_dict())
    else:
        print_outcome(run)
    return 0
