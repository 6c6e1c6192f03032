"""Compare the methods of training: all weights, LoRA of several ranks, DoRA, and frozen layers.

    python benchmarks/methods.py OWN [--watch OTHER …] [--model bundled] [--ranks 4 16 64] [--freeze 3]
        [--only NAME …] [--set NAME=VALUE …]

Each run trains the model on OWN in a process of its own. The table has the trained parameters, the peak memory of
training, target tokens per second of training, the size of a checkpoint, and the perplexity per token on the held-out
part of OWN and on each watched text, before and after with the 95% interval of the change. Prints each row to standard
error when it is done, then a table in Markdown, and one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from finetale.environment import hardware, versions
from finetale.formatting import size
from finetale.rundir import RunDirectory


def methods(ranks: list[int], freeze: str) -> dict[str, dict[str, Any]]:
    """Return the settings of each run, by its name."""
    lora = {f"LoRA {rank}": {"method": "lora", "lora_rank": rank} for rank in ranks}
    dora = {"DoRA 16": {"method": "dora", "lora_rank": 16}}
    return {"full": {"method": "full"}, **lora, **dora, f"frozen: {freeze}": {"freeze": freeze}}


def train(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train in a process of its own, so that its peak memory is its own; return the figures of the run."""
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    words = [sys.executable, "-m", "finetale", "train", "--config", str(file), "--out", str(out), "--quiet"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    run = RunDirectory(out)
    manifest, content = run.read_manifest(), run.read_comparison()
    assert manifest.trained is not None
    assert content.before.test is not None
    assert content.after.test is not None
    newest = next(folder for _, folder in run.saved_checkpoints())
    return {
        "trained": manifest.trained.parameters,
        "peak_bytes": manifest.peak_memory_bytes,
        "tokens_per_second": manifest.tokens_per_second,
        "checkpoint_bytes": sum(part.stat().st_size for part in newest.iterdir()),
        "steps": manifest.steps,
        "best_step": manifest.best_step,
        "own": [content.before.test.perplexity, content.after.test.perplexity],
        "own_change": content.change.test.to_dict() if content.change.test else None,
        "watched": [[each.before.perplexity, each.after.perplexity] for each in content.watched],
        "watched_change": [each.change.to_dict() if each.change else None for each in content.watched],
    }


def cell(figures: list[float], change: dict[str, Any] | None) -> str:
    """Return perplexities before and after, with the change in percent and its interval."""
    text = f"{figures[0]:.1f} → {figures[1]:.1f}"
    if change is None:
        return text
    span = change["interval"]
    interval = f", {span[0]:+.1f} to {span[1]:+.1f}" if span else ""
    return f"{text} ({change['percent']:+.1f}%{interval})".replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("own")
    parser.add_argument("--watch", action="append", default=[])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--freeze", default="3")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these rows, such as 'LoRA 64'")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    more = {name: yaml.safe_load(value) for name, _, value in (item.partition("=") for item in arguments.set)}
    common = {"sources": [arguments.own], "watch": arguments.watch, "model": arguments.model, "audit_tokens": 0}
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, settings) in enumerate(methods(arguments.ranks, arguments.freeze).items()):
            if arguments.only and name not in arguments.only:
                continue
            rows[name] = train(Path(folder) / str(number), {**common, **settings, **more})
            print(json.dumps({name: rows[name]}), file=sys.stderr, flush=True)
    titles = ["method", "trained parameters", "peak memory", "tokens/s", "checkpoint", "held-out text"]
    titles += [f"watched: {source}" for source in arguments.watch]
    print("| " + " | ".join(titles) + " |")
    print("|:--|" + "--:|" * (len(titles) - 1))
    for name, row in rows.items():
        cells = [name, f"{row['trained']:,}", size(row["peak_bytes"]), f"{row['tokens_per_second']:,.0f}"]
        cells += [size(row["checkpoint_bytes"]), cell(row["own"], row["own_change"])]
        cells += [cell(*pair) for pair in zip(row["watched"], row["watched_change"], strict=True)]
        print("| " + " | ".join(cells) + " |")
    machine = {"hardware": hardware(), "versions": versions(), "settings": more}
    print(json.dumps({"methods": rows, **machine}))


if __name__ == "__main__":
    main()
