"""Train a larger base with `finetale train` and write its weights in pieces that fit a small transfer.

    python benchmarks/gpu/base.py [--corpus FILE] [--heldout FILE] [--seconds 480] [--tiny]

The settings are recipes/bundled-base-gpu.yaml. After `--seconds` the run is stopped as by Ctrl-C, which keeps its best
model so far. The weights are rounded to fp16 and written to the folder in OUT as base.safetensors.0, base.safetensors.1
…, at most 15 MB each; `cat base.safetensors.*` joins them. Prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PIECE = 15_000_000
"""Bytes per piece of the weights."""
ROOT = Path(__file__).resolve().parents[2]
TINY = ("--model", "new:64x1", "--max-steps", "4", "--vocab-size", "500", "--block-size", "64", "--batch-size", "4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="corpus/tales.jsonl.gz")
    parser.add_argument("--heldout", default="corpus/heldout.jsonl.gz")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the bundled tales, to test the script")
    arguments = parser.parse_args()
    corpus, heldout = ("bundled:tales",) * 2 if arguments.tiny else (arguments.corpus, arguments.heldout)
    recipe = str(ROOT / "recipes" / "bundled-base-gpu.yaml")
    out = Path(os.environ["OUT"])
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "base"
        extra = (*TINY, "--compile", "off") if arguments.tiny else ()
        train = [sys.executable, "-m", "finetale", "train", corpus, "--config", recipe, "--out", str(run), *extra]
        process = subprocess.Popen(train)
        try:
            process.wait(arguments.seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
        (out / "base-metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
        pieces = write_pieces(run / "model", out)
        words = [sys.executable, "-m", "finetale", "evaluate", str(run), heldout, "--json", "--quiet"]
        if not arguments.tiny:
            words += ["--stride", "512"]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
        figures: dict[str, Any] = json.loads(done.stdout)
    print(json.dumps({"train_exit_code": process.returncode, "pieces": pieces, "heldout": figures}))


def write_pieces(model: Path, out: Path) -> int:
    """Write the weights in fp16, in pieces, and the tokenizer and config; return the number of pieces."""
    from safetensors.torch import load_file, save

    weights = {name: tensor.half().contiguous() for name, tensor in load_file(model / "model.safetensors").items()}
    data = save(weights, metadata={"format": "pt"})
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
    for number, piece in enumerate(pieces):
        (out / f"base.safetensors.{number}").write_bytes(piece)
    files = {name: (model / name).read_text(encoding="utf-8") for name in ("config.json", "tokenizer.json")}
    (out / "base-files.json").write_text(json.dumps(files), encoding="utf-8")
    return len(pieces)


if __name__ == "__main__":
    main()
