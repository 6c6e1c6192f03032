"""A finished run → the bundled model: weights in half precision, measured on held-out text, with its card.

    python recipes/bundle.py RUN TRAIN HELDOUT --out src/finetale/bundled/model

RUN is the run directory of `finetale train --config recipes/bundled-base.yaml TRAIN`. Every number of the card is measured
here or read from the run; the samples are the first ten of seed 0, as they came.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import torch
from baselines import baselines, texts_of
from jinja2 import Template

import finetale as ft
from finetale import models
from finetale.rundir import RunDirectory, write_folder
from finetale.training import read_metrics

LIMIT = 24 * 2**20
SAMPLES = 10
CARD = Path(__file__).with_name("bundled-card.md.jinja")


def half(model: torch.nn.Module) -> None:
    """Store weights in fp16: three more bits of precision than bf16, and weights are far from its limits."""
    largest = max(float(tensor.abs().max()) for tensor in model.state_dict().values())
    if largest > torch.finfo(torch.float16).max / 4:
        raise SystemExit(f"A weight of {largest:g} is too large for fp16.")
    model.half()


def facts_of(run: RunDirectory) -> dict[str, Any]:
    """What the card says of the training, from the run directory."""
    manifest = run.read_manifest()
    best = [event for event in read_metrics(run.metrics) if event["event"] == "evaluation"]
    best = [event for event in best if event["step"] == manifest["best_step"]]
    if manifest["status"] != "finished" or not best:
        raise SystemExit(f"The run {run.root} is not finished.")
    return {
        "manifest": manifest,
        "config": manifest["config"],
        "best_tokens": best[-1]["tokens"],
        "trained_tokens": json.loads(run.data.read_text(encoding="utf-8"))["tokens"]["trained"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("train", help="text the run was trained on")
    parser.add_argument("heldout", help="text it was not")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundled model; replaced")
    arguments = parser.parse_args()

    run = RunDirectory.open(arguments.run)
    loaded = models.load(str(run.root))
    figures = {"fp32": ft.evaluate(run.root, arguments.heldout, precision="fp32")}
    half(loaded.model)
    write_folder(arguments.out, lambda folder: models.save(loaded.model, loaded.tokenizer, folder))
    figures["fp16"] = ft.evaluate(arguments.out, arguments.heldout, precision="fp32")
    known, unseen = texts_of(arguments.train), texts_of(arguments.heldout)
    card = Template(CARD.read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    (arguments.out / "README.md").write_text(
        card.render(
            facts_of(run),
            parameters=loaded.model.num_parameters(),
            shape=loaded.model.config,
            vocabulary=len(loaded.tokenizer),
            figures=figures,
            baselines=baselines(known, unseen, loaded.tokenizer),
            samples=ft.load(arguments.out).generate(n=SAMPLES, seed=0),
            train={"documents": len(known), "bytes": sum(len(item.encode()) for item in known)},
            heldout={"documents": len(unseen), "bytes": sum(len(item.encode()) for item in unseen)},
            today=datetime.date.today().isoformat(),
        ),
        encoding="utf-8",
    )
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(json.dumps({"bytes": size, "bits_per_byte": {key: value["bits_per_byte"] for key, value in figures.items()}}))
    if size > LIMIT:
        raise SystemExit(f"{arguments.out} takes {size:,} bytes, and the package has room for {LIMIT:,}.")


if __name__ == "__main__":
    main()
