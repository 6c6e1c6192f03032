"""`finetale demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from finetale.cli.outcome import print_outcome
from finetale.cli.output import Quiet, progress, stdout
from finetale.config import Config
from finetale.errors import RunError

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
TALES: dict[str, Any] = _SHARED | {"epochs": 12, "batch_size": 8, "learning_rate": 2e-3}


def command(
    *,
    out: Annotated[Path, Parameter(help="Where the two runs go.")] = Path("runs"),
    quiet: Quiet = False,
) -> int:
    """The whole path, offline: a small model learns plain English, then the tales of Tarrowside, and is compared.

    Trains a model of about a million parameters on 28 short texts for a minute, then fine-tunes it on 28 tales.
    """
    from finetale import pipeline

    base, tuned = out / "demo-base", out / "demo"
    with progress(quiet=quiet) as display:
        pipeline.train_run(Config.resolve(BASE, {"sources": [str(_folder("primer"))], "out": base}), display)
        run = pipeline.train_run(
            Config.resolve(TALES, {"sources": [str(_folder("tales"))], "out": tuned, "model": str(base)}), display
        )
    print_outcome(run)
    console = stdout()
    console.print(
        f"         finetale train YOUR-FOLDER --model {base}      (or --model gpt2, from the Hub)", soft_wrap=True
    )
    return 0


def _folder(name: str) -> Path:
    folder = TEXTS / name
    if not folder.is_dir():
        raise RunError(f"The texts of the demo are missing: {folder}.", "Install Finetale again.")
    return folder
