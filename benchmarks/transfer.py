"""Compare fine-tuning the bundled base on the tales with training the same architecture from random weights.

    python benchmarks/transfer.py [--quick]

All runs use the same tokens, blocks and order. `bundled` has the settings of the demo. `quarter` has a quarter of its
steps. `scratch` starts from random weights with the tokenizer, dropout, steps and batches of `bundled`. It is the best
of several peak learning rates by validation loss; `--quick` tries one rate. `best_rate_inside` is true if both a lower
and a higher rate were worse. Prints a table, and one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import finetale as ft
from finetale import models
from finetale.cli.demo import SETTINGS
from finetale.config import read_settings_file
from finetale.environment import hardware, versions

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
QUICK_RATES = (1e-3,)


def tune(out: Path, **settings: Any) -> dict[str, Any]:
    """Fine-tune on the tales; return the figures of the run."""
    run = ft.train(out=out, quiet=True, **SETTINGS | settings)
    settings = read_settings_file(run.path / "config.yaml")
    held_out = run.comparison.after
    assert held_out.test is not None
    assert held_out.validation is not None
    assert run.manifest.base is not None
    return {
        "model": run.manifest.base.name,
        "learning_rate": settings["learning_rate"],
        "batch_size": settings["batch_size"],
        "steps": run.manifest.total_steps,
        "best_step": run.manifest.best_step,
        "seconds": run.manifest.train_seconds,
        "before": run.comparison.before.perplexity,
        "validation": held_out.validation.perplexity,
        "test": held_out.test.perplexity,
        "bits_per_byte": held_out.test.bits_per_byte,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one learning rate for the random weights")
    arguments = parser.parse_args()
    shape = models.locate("bundled").config
    scratch = f"new:{shape['n_embd']}x{shape['n_layer']}"
    with tempfile.TemporaryDirectory() as folder:
        bundled = tune(Path(folder) / "bundled")
        steps = bundled["steps"]
        quarter = tune(Path(folder) / "quarter", max_steps=steps // 4)
        tried = [
            tune(
                Path(folder) / f"scratch-{rate}",
                model=scratch,
                tokenizer="bundled",
                max_steps=steps,
                dropout=shape["resid_pdrop"],
                batch_size=bundled["batch_size"],
                learning_rate=rate,
            )
            for rate in (QUICK_RATES if arguments.quick else RATES)
        ]
    best = min(tried, key=lambda row: row["validation"])
    print(f"{'start':<12}{'peak rate':>11}{'steps':>7}{'seconds':>9}{'validation':>12}{'test perplexity':>17}")
    for row in (bundled, quarter, *tried):
        print(
            f"{row['model']:<12}{row['learning_rate']:>11.1e}{row['steps']:>7}{row['seconds']:>9.1f}"
            f"{row['validation']:>12.1f}{row['test']:>17.1f}"
        )
    print(
        json.dumps(
            {
                "bundled": bundled,
                "quarter": quarter,
                "scratch": best,
                "best_rate_inside": min(RATES) < best["learning_rate"] < max(RATES) and not arguments.quick,
                "ratio": bundled["test"] / best["test"],
                "ratio_in_a_quarter": quarter["test"] / best["test"],
                "hardware": hardware(),
                "versions": versions(),
            }
        )
    )


if __name__ == "__main__":
    main()
