"""Measure how much a model forgets when it is tuned with different shares of mixed text.

    python benchmarks/forgetting.py OWN --mix GENERAL --watch OTHER [--watch ANOTHER] [--model bundled]
        [--shares 0 0.01 0.05 0.2] [--set NAME=VALUE …]

Each run tunes the model on OWN with one share of GENERAL, and measures the perplexity per token on the held-out part of
OWN and on each watched text. All runs read their own text equally often and have the same learning rate, so a run with
more mixed text has more steps. Prints a table in Markdown, and one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

import finetale as ft
from finetale.environment import hardware, versions


def tune(out: Path, share: float, arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Tune with one share of mixed text; return the figures of the run."""
    mix = [f"{arguments.mix}:{share}"] if share else []
    run = ft.train(
        arguments.own, out=out, model=arguments.model, mix=mix, watch=arguments.watch, quiet=True, **settings
    )
    content, data = run.comparison.content, run.data
    assert data.text is not None
    assert content.before.test is not None
    assert content.after.test is not None
    return {
        "share": share,
        "tokens": data.tokens.trained,
        "mixed": sum(entry.tokens or 0 for entry in data.text.mixed),
        "steps": run.manifest.steps,
        "best_step": run.manifest.best_step,
        "seconds": run.manifest.train_seconds,
        "own": [content.before.test.perplexity, content.after.test.perplexity],
        "own_change": content.change.test.to_dict() if content.change.test else None,
        "watched": [[each.before.perplexity, each.after.perplexity] for each in content.watched],
        "watched_change": [each.change.to_dict() if each.change else None for each in content.watched],
    }


def cell(value: float, change: dict[str, Any] | None) -> str:
    """Return a perplexity with its change in percent and the interval of it."""
    if change is None:
        return f"{value:.1f}"
    span = change["interval"]
    interval = f", {span[0]:+.1f} to {span[1]:+.1f}" if span else ""
    return f"{value:.1f} ({change['percent']:+.1f}%{interval})".replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("own")
    parser.add_argument("--mix", required=True)
    parser.add_argument("--watch", action="append", required=True)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.01, 0.05, 0.2])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting of the runs")
    arguments = parser.parse_args()
    settings = {"num_prompts": 1, "num_samples": 1, "audit_tokens": 0, "tensorboard": False, "probe": False}
    settings |= {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in arguments.set)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for share in arguments.shares:
            rows.append(tune(Path(folder) / f"run-{share}", share, arguments, settings))
            print(json.dumps(rows[-1]), flush=True)
    names = [Path(name).name for name in arguments.watch]
    print(f"| mixed | tokens per epoch | steps | own text | {' | '.join(names)} |")
    print("|--:|--:|--:|--:|" + "--:|" * len(names))
    first = rows[0]
    watched = " | ".join(f"{before:.1f}" for before, _ in first["watched"])
    print(f"| before tuning | | | {first['own'][0]:.1f} | {watched} |")
    for row in rows:
        changes = zip(row["watched"], row["watched_change"], strict=True)
        watched = " | ".join(cell(after, change) for (_, after), change in changes)
        own = cell(row["own"][1], row["own_change"])
        print(f"| {row['share']:.0%} | {row['tokens']:,} | {row['steps']} | {own} | {watched} |")
    print(json.dumps({"rows": rows, "settings": settings, "hardware": hardware(), "versions": versions()}))


if __name__ == "__main__":
    main()
