"""`finetale demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from finetale.cli.output import Quiet, progress
from finetale.config import Config, read_settings_file
from finetale.errors import ConfigError, RunError
from finetale.formatting import shell_command
from finetale.rundir import RunDirectory
from finetale.schema import StageEvent

SETTINGS: dict[str, Any] = {
    "sources": ["bundled:tales"],
    "model": "bundled",
    "prompts": [
        "The ferry came in late that night, and",
        "Aunt Marrable put down her cup and",
        "On the first day of Candlethaw",
    ],
    "tensorboard": False,
}
"""Settings of the demo's run."""


def command(
    *,
    out: Annotated[Path, Parameter(help="Run directory of the demo.")] = Path("runs/demo"),
    quiet: Quiet = False,
) -> int:
    """Train and compare offline: the bundled model learns the tales of Tarrowside.

    The bundled model is a small GPT-2 that was trained on old children's books. The demo fine-tunes it on 132 tales
    from one invented valley. It measures both models on held-out tales, prints samples of both, and writes a report.
    A second demo replaces the first.
    """
    from finetale import pipeline
    from finetale.cli.outcome import print_outcome

    run = RunDirectory(out)
    if run.is_run() and not _is_demo(run):
        raise RunError(
            f"{out} contains a run that is not the demo's.", "Choose another directory for the demo with --out."
        )
    with progress(quiet=quiet) as display:
        if run.is_run():
            display(StageEvent(message=f"Replacing the demo's earlier run in {out}"))
        run = pipeline.train_run(Config.resolve(SETTINGS, {"out": out, "overwrite": run.is_run()}), display)
    print_outcome(
        run,
        f"{shell_command('finetale', 'generate', 'bundled', SETTINGS['prompts'][0])}      (the base, for comparison)",
        "finetale train YOUR-FOLDER --model bundled      (or --model gpt2, from the Hub)",
    )
    return 0


def _is_demo(run: RunDirectory) -> bool:
    """Return whether a run has the demo's settings. Only such a run may be replaced."""
    try:
        config = read_settings_file(run.config)
    except ConfigError:
        return False
    return all(config.get(key) == value for key, value in SETTINGS.items())
