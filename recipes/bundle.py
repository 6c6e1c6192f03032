"""Turn a finished run into the bundled model: round its weights to fp16, measure them, and write the model card.

    python recipes/bundle.py RUN TRAIN HELDOUT --out src/finetale/bundled/model

RUN is the run directory of `finetale train --config recipes/bundled-base.yaml TRAIN`. This script measures every number
of the card or reads it from the run. The samples are the first ten of seed 0, unselected.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import re
from pathlib import Path
from typing import Any

import torch
from baselines import baselines, texts_of
from jinja2 import Template

import finetale as ft
from finetale import models
from finetale.config import read_settings_file
from finetale.rundir import RunDirectory, write_folder
from finetale.schema import EvaluationEvent

LIMIT = 24 * 2**20
SAMPLES = 10
CARD = Path(__file__).with_name("bundled-card.md.jinja")


def half(model: torch.nn.Module) -> None:
    """Store weights in fp16. It has three more bits of precision than bf16, and weights are far below its maximum."""
    largest = max(float(tensor.abs().max()) for tensor in model.state_dict().values())
    if largest > torch.finfo(torch.float16).max / 4:
        raise SystemExit(f"A weight of {largest:g} is too large for fp16.")
    model.half()


def facts_of(run: RunDirectory) -> dict[str, Any]:
    """Return the facts about the training that the card states, from the run directory."""
    manifest = run.read_manifest()
    if manifest.status != "finished":
        raise SystemExit(f"The run {run.root} is not finished.")
    evaluated = {event.step: event for event in run.read_events() if isinstance(event, EvaluationEvent)}
    tokens = run.read_data().tokens
    assert manifest.best_step is not None
    return {
        "manifest": manifest,
        "config": read_settings_file(run.config),
        "best_tokens": evaluated[manifest.best_step].tokens,
        "trained_tokens": tokens.trained,
        "validation_share": tokens.validation / tokens.read,
    }


def books_of(source: str) -> list[str]:
    """Return title, author and year of each book in a .jsonl.gz file with these keys, sorted by title."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return sorted({f"{record['book']} ({record['author']}, {record['year']})" for record in records})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("train", help="text the run was trained on: .jsonl.gz with the keys text, book, author, year")
    parser.add_argument("heldout", help="text of other books, in the same form")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundled model; replaced")
    arguments = parser.parse_args()

    run = RunDirectory.open(arguments.run)
    facts = facts_of(run)
    texts = {"train": texts_of(arguments.train), "heldout": texts_of(arguments.heldout)}
    books = {"train": books_of(arguments.train), "heldout": books_of(arguments.heldout)}
    if set(books["train"]) & set(books["heldout"]) or set(texts["train"]) & set(texts["heldout"]):
        raise SystemExit("Some of the held-out text is also in the training text. Remove it from one of the files.")
    loaded = models.load(models.name_of_folder(run.root))
    figures = {"fp32": ft.evaluate(run.root, arguments.heldout, precision="fp32")}
    half(loaded.model)

    def fill(folder: Path) -> None:
        models.save(loaded.model, loaded.tokenizer, folder)
        figures["fp16"] = ft.evaluate(folder, arguments.heldout, precision="fp32")
        view = facts | {
            "shape": loaded.model.config,
            "parameters": loaded.model.num_parameters(),
            "vocabulary": len(loaded.tokenizer),
            "figures": figures,
            "baselines": baselines(texts["train"], texts["heldout"], loaded.tokenizer),
            "samples": ft.load(folder).generate(n=SAMPLES, seed=0),
            "documents": {key: len(value) for key, value in texts.items()},
            "bytes": {key: sum(len(item.encode()) for item in value) for key, value in texts.items()},
            "books": books,
            "years": sorted(int(year) for book in books["train"] for year in re.findall(r"\b1[0-9]{3}\b", book)),
            "today": datetime.date.today().isoformat(),
        }
        template = Template(CARD.read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True)
        (folder / "README.md").write_text(template.render(view) + "\n", encoding="utf-8")

    write_folder(arguments.out, fill)
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(json.dumps({"bytes": size, "bits_per_byte": {key: value.bits_per_byte for key, value in figures.items()}}))
    if size > LIMIT:
        raise SystemExit(f"{arguments.out} takes {size:,} bytes, but the limit is {LIMIT:,}. Train a smaller model.")


if __name__ == "__main__":
    main()
