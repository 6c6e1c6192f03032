"""`finetale compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from finetale.cli.output import Json, Quiet, print_json, progress, stdout
from finetale.cli.settings import with_settings
from finetale.config import CompareSettings
from finetale.errors import ConfigError
from finetale.formatting import shell_command


@with_settings(CompareSettings)
def command(
    model: Annotated[str, Parameter(help="The first model, or a run directory alone to compare it with its base.")],
    after: Annotated[str | None, Parameter(help="The second model.")] = None,
    /,
    *,
    text: Annotated[list[str] | None, Parameter(help="Text that neither model was trained on.", negative=())] = None,
    html: Annotated[Path | None, Parameter(help="Write a report of the comparison to this file.")] = None,
    block_size: Annotated[str | None, Parameter(help="Tokens per block of the evaluation.")] = None,
    offline: Annotated[bool | None, Parameter(negative=(), help="Use only what is on this machine already.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    **settings: Any,
) -> int:
    """Compare two models on the same text, prompts and seeds.

    With one run directory, compare the run with its base again. If AFTER is a run directory and --text is not given,
    use the run's own held-out text.
    """
    from finetale import pipeline
    from finetale.cli.outcome import print_comparison
    from finetale.config import Config, read_settings_file
    from finetale.report import render_report
    from finetale.rundir import RunDirectory, write_bytes

    settings = settings | {"offline": offline, "block_size": block_size}
    with progress(quiet=quiet, as_json=as_json) as display:
        if after is None:
            if text:
                raise ConfigError(
                    "--text needs two models to compare.",
                    f"Use `{shell_command('finetale', 'compare', 'BASE', model, '--text')} SOURCE`.",
                )
            run = RunDirectory.open(model)
            config = Config.resolve(read_settings_file(run.config), settings, {"out": str(run.root)})
            with run.locked():
                pipeline.finish(run, config, display)
            result = run.read_comparison()
        else:
            result = pipeline.compare_on(model, after, text or (), settings, display)
    if html is not None:
        write_bytes(html, render_report(result).encode())
    if as_json:
        print_json(result.to_dict())
    else:
        print_comparison(result)
        if html is not None:
            stdout().print(f"Report   {html}", soft_wrap=True)
    return 0
