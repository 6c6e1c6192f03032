"""Measure the time until a model is as good as one trained with the recipe of most tutorials.

    python benchmarks/time_to_quality.py [--text FILE] [--epochs N] [--quick]

Both start from the bundled base and train on the same lines of the text. One line in twenty is held out. The recipe of
the tutorials is transformers.Trainer in fp32 with one example per line, truncated and padded to 128 tokens, 4 examples
per step, and a learning rate that falls from 5e-5 to 0. It runs for all epochs. Finetale runs with its defaults and one
document per line, for at most as many epochs, until its held-out loss is no higher than the final one of the tutorial.

One function measures the loss of both: nats per token over the held-out lines, truncated at 128 tokens, without a
begin-of-text token. Finetale trains with that token and the tutorial does not, so this favours the tutorial. Time is
wall time of training, without evaluations.

`ratio_time_to_quality` compares with the recipe as published. `ratio_tuned` compares with a tuned one: the tutorial
with ten times its learning rate, and Finetale with that rate and one block per step. Prints one JSON object as its last
line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import contenders

from finetale.environment import calm_threads

CUT, BATCH, RATE, EVALUATIONS = 128, 4, 5e-5, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="bundled:tales")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="a quarter of the text, without the tuned pair")
    parser.add_argument("--contender", choices=("tutorial", "finetale"), help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--goal", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    lines = contenders.lines_of(arguments.text)
    if arguments.quick:
        lines = lines[: len(lines) // 4]
    held_out, train = lines[::20], [line for number, line in enumerate(lines) if number % 20]
    if arguments.contender:
        run = run_tutorial if arguments.contender == "tutorial" else run_finetale
        if run is run_finetale:
            calm_threads()  # as the command does
        print(json.dumps(run(train, held_out, arguments)))
        return
    from finetale.environment import hardware, versions

    words = ["--text", arguments.text, "--epochs", str(arguments.epochs), *(["--quick"] if arguments.quick else [])]
    default = race(words, RATE, [])
    tuned = None if arguments.quick else race(words, 10 * RATE, ["--rate", str(10 * RATE)])
    print(
        json.dumps(
            {
                "ratio_time_to_quality": default["ratio"],
                "ratio_tuned": tuned and tuned["ratio"],
                "default": default,
                "tuned": tuned,
                "lines": len(train),
                "text": Path(arguments.text).name,
                "hardware": hardware(),
                "versions": versions(),
            }
        )
    )


def race(words: list[str], rate: float, ours: list[str]) -> dict[str, Any]:
    """Train with the tutorial at a learning rate, then with Finetale until it reaches the same loss."""
    tutorial = contenders.in_process(__file__, *words, "--contender", "tutorial", "--rate", str(rate))
    print(f"tutorial at {rate:g}: loss {tutorial['loss']:.4f} after {tutorial['seconds']:.1f} s", file=sys.stderr)
    words = [*words, "--contender", "finetale", "--goal", str(tutorial["loss"]), *ours]
    finetale = contenders.in_process(__file__, *words)
    print(f"Finetale: {finetale}", file=sys.stderr)
    ratio = None if finetale["seconds"] is None else finetale["seconds"] / tutorial["seconds"]
    return {"ratio": ratio, "tutorial": tutorial | {"learning_rate": rate}, "finetale": finetale}


def loss_of(network: Any, examples: list[list[int]]) -> float:
    """Return the loss in nats per token over lines, in fp32. Calls the network directly, without packing."""
    import torch

    total, count = 0.0, 0
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        for ids in examples:
            row = torch.tensor([ids])
            logits = network(input_ids=row[:, :-1]).logits[0].float()
            total += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
            count += len(ids) - 1
    network.train(was_training)
    return total / count


def examples_of(lines: list[str], tokenizer: Any) -> list[list[int]]:
    return [ids for ids in tokenizer(lines, truncation=True, max_length=CUT)["input_ids"] if len(ids) > 1]


def run_tutorial(train: list[str], held_out: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from finetale import models

    contenders.quiet_transformers()
    tokenizer = models.load_tokenizer("bundled")
    network = AutoModelForCausalLM.from_pretrained(models.locate("bundled").folder, dtype=torch.float32)
    rows, collate = contenders.padded_lines(train, tokenizer, CUT)
    steps = max(2, round(arguments.epochs * len(rows) / BATCH))
    first = loss_of(network, examples_of(held_out, tokenizer))
    figures = contenders.run_trainer(
        network, rows, collate, batch_size=BATCH, steps=steps - 1, use_cpu=True, learning_rate=arguments.rate
    )
    seconds = figures["wall_seconds"] * steps / (steps - 1)
    return {
        "first_loss": first,
        "loss": loss_of(network, examples_of(held_out, tokenizer)),
        "steps": steps,
        "seconds": seconds,
    }


def run_finetale(train: list[str], held_out: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train until the loss reaches the goal. The clock stops while the loss is measured."""
    from finetale.config import Config
    from finetale.pipeline.prepare import prepare
    from finetale.rundir import RunDirectory
    from finetale.schema import Event, TrainEvent
    from finetale.training import Training

    class Reached(Exception):
        pass

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "train.txt"
        text.write_text("\n".join(train), encoding="utf-8")
        settings: dict[str, Any] = {
            "sources": (str(text),),
            "documents": "line",
            "model": "bundled",
            "epochs": arguments.epochs,
            "validation_fraction": 0,
            "test_fraction": 0,
            "cache_dir": Path(folder) / "cache",
        }
        if arguments.rate is not None:
            settings |= {"learning_rate": arguments.rate, "batch_size": 1}
        prepared = prepare(Config.resolve(settings), lambda event: None)
        config, budget, loaded = prepared.config, prepared.budget, prepared.loaded
        examples = examples_of(held_out, loaded.tokenizer)
        every = max(1, budget.total_steps // EVALUATIONS)
        found: dict[str, Any] = {"seconds": None, "steps": budget.total_steps, "losses": []}
        spent, began = 0.0, time.perf_counter()

        def listen(event: Event) -> None:
            nonlocal spent, began
            if not isinstance(event, TrainEvent) or event.step % every:
                return
            spent += time.perf_counter() - began
            loss = loss_of(loaded.model, examples)
            found["losses"].append([event.step, round(spent, 2), round(loss, 4)])
            if loss <= arguments.goal:
                found.update(seconds=spent, reached_at=event.step, loss=loss)
                raise Reached
            began = time.perf_counter()

        loop = Training(
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            train_blocks=prepared.train,
            validation_blocks=None,
            settings=config,
            evaluation=config,
            directory=RunDirectory(Path(folder) / "run"),
            budget=budget,
            precision=config.precision,
            listeners=[listen],
        )
        try:
            began = time.perf_counter()
            loop.run()
        except Reached:
            pass
        return found


if __name__ == "__main__":
    main()
