"""`finetale demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from finetale.cli.outcome import print_outcome
from finetale.cli.output import Quiet, progress, stdout
from finetale.config import Config
from finetale.errors import RunError
from finetale.rundir import RunDirectory

TEXTS = Path(__file__).parents[1] / "bundled"
_SHARED: dict[str, Any] = {"vocab_size": 2048, "block_size": 256, "tensorboard": False, "overwrite": True}
BASE: dict[str, Any] = _SHARED | {
    "model": "new:1m",
    "epochs": 24,
    "batch_size": 8,
    "test_fraction": 0,
    "num_prompts": 1,
    "num_samples": 1,
}
TALES: dict[str, Any] = _SHARED | {
    "prompts": [
        "The ferry came in late that night, and",
        "Aunt Marrable put down her cup and",
        "On the first day of Candlethaw",
    ],
    "epochs": 12,
    "batch_size": 8,
    "learning_rate": 2e-3,
}


def command(
    *,
    out: Annotated[Path, Parameter(help="Where the two runs go.")] = Path("runs"),
    quiet: Quiet = False,
) -> int:
    """The whole path, offline: a small model learns plain English, then the tales of Tarrowside, and is compared.

    Trains a model of 0.7 million parameters on 28 short texts for about 40 seconds, then fine-tunes it on 28 tales.
    """
    from finetale import pipeline

    primer, tales = _folder("primer"), _folder("tales")
    base, tuned = RunDirectory(out / "demo-base"), RunDirectory(out / "demo")
    _only_own(base, primer)
    _only_own(tuned, tales)
    with progress(quiet=quiet) as display:
        if base.is_run() and base.read_manifest().get("status") == "finished":
            display({"event": "stage", "message": f"Using the base in {base.root}, trained before"})
        else:
            pipeline.train_run(Config.resolve(BASE, {"sources": [str(primer)], "out": base.root}), display)
        run = pipeline.train_run(
            Config.resolve(TALES, {"sources": [str(tales)], "out": tuned.root, "model": str(base.root)}), display
        )
    print_outcome(run)
    console = stdout()
    console.print(
        f"         finetale train YOUR-FOLDER --model {base.root}      (or --model gpt2, from the Hub)", soft_wrap=True
    )
    return 0


def _only_own(run: RunDirectory, source: Path) -> None:
    """Refuse to replace a run of that name that no demo made."""
    if run.is_run() and run.read_manifest().get("config", {}).get("sources") != [str(source)]:
        raise RunError(f"{run.root} holds a run of your own.", "Choose another place for the demo with --out.")


def _folder(name: str) -> Path:
    folder = TEXTS / name
    if not folder.is_dir():
        raise RunError(f"The texts of the demo are missing: {folder}.", "Install Finetale again.")
    return folder
