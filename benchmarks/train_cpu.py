"""Measure training tokens per CPU-second: Finetale and transformers.Trainer, on the same text, model and optimizer.

    python benchmarks/train_cpu.py [--text FILE] [--tokenizer FOLDER] [--model FOLDER] [--quick]

The contenders are

    tutorial      the recipe of most tutorials, corrected so that it runs: transformers.Trainer in fp32, one example per
                  line, truncated and padded to 128 tokens, 4 examples per step
    packed fp32   transformers.Trainer on blocks of 512 tokens of the joined text, 4 per step
    packed bf16   the same in bf16
    finetale      Finetale with its defaults, 4 blocks of 512 tokens per step

The shapes are GPT-2 (124M) and the bundled base, both with the dropout of their config. --model measures the model of a
folder instead, of any type, with one block of 1,024 tokens per step. The contenders take turns, each in a new process.
The first step is not timed, and the figures are medians over the turns. Useful tokens are targets that are text, not
padding. Memory is the peak of the process. The default text is the bundled tales. --tokenizer sets the tokenizer of the
GPT-2 shape. The top-level keys hold the worse value of all shapes. Prints tables, and one JSON object as its last line.
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

BLOCK, BATCH, CUT = 512, 4, 128
FOLDER = "folder"
"""Name of the shape of --model."""
FOLDER_BLOCK, FOLDER_BATCH = 1024, 1
SHAPES = {"gpt2": "new:gpt2", "bundled": "bundled"}
CONTENDERS = ("tutorial", "packed fp32", "packed bf16", "finetale")
STEPS = {"gpt2": {"tutorial": 6, "packed fp32": 2, "packed bf16": 2, "finetale": 4}}
"""Timed steps per turn. The bundled base runs ten times as many, and a model of --model one and a half times."""
FACTORS = {"gpt2": 1, "bundled": 10, FOLDER: 1.5}
MATRIX_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::addbmm", "aten::baddbmm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="bundled:tales")
    parser.add_argument("--tokenizer", default="bundled")
    parser.add_argument("--quick", action="store_true", help="one turn with few steps")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--model", help="folder of a model to measure instead of the shapes")
    parser.add_argument("--contender", nargs=2, metavar=("SHAPE", "NAME"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        shape, name = arguments.contender
        if name == "finetale":
            calm_threads()  # as the command does
        libraries = contenders.library_bytes()
        print(json.dumps(run_contender(shape, name, arguments) | {"library_bytes": libraries}))
        return
    from finetale.environment import hardware, versions

    wanted = [FOLDER] if arguments.model else arguments.shapes
    shapes = {shape: compare(shape, arguments) for shape in wanted}
    keys = ("ratio_vs_tutorial", "ratio_vs_packed", "peak_memory_ratio")
    worst = {key: (max if "memory" in key else min)(shapes[shape][key] for shape in shapes) for key in keys}
    print(
        json.dumps(
            worst
            | {"shapes": shapes, "text": Path(arguments.text).name, "hardware": hardware(), "versions": versions()}
        )
    )


def compare(shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders in turns; return their figures and the ratios between them."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in range(1 if arguments.quick else arguments.turns):
        for name in CONTENDERS:
            steps = int(STEPS["gpt2"][name] // (2 if arguments.quick else 1) * FACTORS[shape])
            words: tuple[str, ...] = ("--contender", shape, name, "--steps", str(max(1, steps)))
            words += ("--model", arguments.model) if arguments.model else ()
            words += ("--text", arguments.text, "--tokenizer", arguments.tokenizer)
            turns[name].append(contenders.in_process(__file__, *words))
            rate = turns[name][-1]["tokens"] / turns[name][-1]["cpu_seconds"]
            print(f"{shape} {name}: {rate:,.0f} tokens/CPU-s", file=sys.stderr)
    rows = {name: contenders.median(turns[name]) for name in CONTENDERS}
    ours = rows["finetale"]
    packed = max(rows["packed fp32"], rows["packed bf16"], key=lambda row: row["tokens_per_cpu_second"])
    limit = 1e9 * ours["matmul_gflops"] / ours["flop_per_token"]
    print(f"\n{shape}: useful tokens per CPU-second; matrix products alone would allow {limit:,.0f}")
    print(f"{'':<14}{'tokens/CPU-s':>14}{'tokens/s':>12}{'peak memory':>14}")
    for name, row in rows.items():
        print(
            f"{name:<14}{row['tokens_per_cpu_second']:>14,.0f}{row['tokens_per_second']:>12,.0f}"
            f"{row['peak_bytes'] / 2**20:>10,.0f} MiB"
        )
    print("where Finetale's time goes: " + ", ".join(f"{name} {share:.0%}" for name, share in ours["profile"].items()))
    return {
        "ratio_vs_tutorial": ours["tokens_per_cpu_second"] / rows["tutorial"]["tokens_per_cpu_second"],
        "ratio_vs_packed": ours["tokens_per_cpu_second"] / packed["tokens_per_cpu_second"],
        "peak_memory_ratio": ours["peak_bytes"] / packed["peak_bytes"],
        "peak_memory_ratio_without_libraries": above_libraries(ours) / above_libraries(packed),
        "share_of_matmul_limit": ours["tokens_per_cpu_second"] / limit,
        "contenders": rows,
    }


def above_libraries(row: dict[str, Any]) -> float:
    return float(row["peak_bytes"] - row["library_bytes"])


def run_contender(shape: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    tokenizer = {"gpt2": arguments.tokenizer, FOLDER: arguments.model}.get(shape, "bundled")
    model = SHAPES.get(shape, arguments.model)
    sizes = (FOLDER_BLOCK, FOLDER_BATCH) if shape == FOLDER else (BLOCK, BATCH)
    if name == "finetale":
        return run_finetale(model, tokenizer, sizes, arguments)
    return run_packed_or_tutorial(model, tokenizer, sizes, name, arguments)


def run_finetale(model: str, tokenizer: str, sizes: tuple[int, int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `finetale train` without held-out text, timed from the end of the first step to the last."""
    from finetale.config import Config
    from finetale.pipeline import train_run
    from finetale.schema import Event, TrainEvent

    clock = contenders.Clock()
    tokens: list[int] = []

    def notify(event: Event) -> None:
        if isinstance(event, TrainEvent):
            clock.step_done()
            tokens.append(event.tokens)

    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "sources": (arguments.text,),
            "model": model,
            "tokenizer": tokenizer,
            "block_size": sizes[0],
            "batch_size": sizes[1],
            "max_steps": arguments.steps + 1,
            "validation_fraction": 0,
            "test_fraction": 0,
            "epochs": 100,
            "num_samples": 1,
            "max_new_tokens": 1,
            "tensorboard": False,
            "cache_dir": Path(folder) / "cache",
            "out": Path(folder) / "run",
        }
        train_run(Config.resolve(settings), notify)
    return clock.figures | {"tokens": tokens[-1] - tokens[0]} | profile(model, tokenizer, sizes)


def run_packed_or_tutorial(
    model: str, tokenizer: str, sizes: tuple[int, int], name: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run `transformers.Trainer` on a data set built as in tutorials, or as in run_clm."""
    import transformers

    from finetale import models

    contenders.quiet_transformers()
    read = models.load_tokenizer(tokenizer)
    network = plain_model(model, read)
    lines = contenders.lines_of(arguments.text)
    if name == "tutorial":
        rows, collate = contenders.padded_lines(lines, read, CUT)
    else:
        rows, collate = contenders.blocks_of(lines, read, sizes[0]), transformers.default_data_collator
    return contenders.run_trainer(
        network,
        rows,
        collate,
        batch_size=BATCH if name == "tutorial" else sizes[1],
        steps=arguments.steps,
        bf16=name.endswith("bf16"),
        use_cpu=True,
    )


def plain_model(model: str, tokenizer: Any) -> Any:
    """Return the model as transformers builds it."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    from finetale import models

    if not model.startswith("new:"):
        return AutoModelForCausalLM.from_pretrained(models.locate(model).folder, dtype=torch.float32)
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer)))


def profile(model: str, tokenizer: str, sizes: tuple[int, int]) -> dict[str, Any]:
    """Profile a training step by kind of operation, and measure the speed of matrix products alone."""
    import numpy as np
    import torch
    from torch.profiler import ProfilerActivity

    from finetale import models, speed
    from finetale.blocks import Batch
    from finetale.environment import resolve_precision
    from finetale.forward import PackedForward

    loaded = models.load(model, tokenizer=models.load_tokenizer(tokenizer))
    network, precision = loaded.model.train(), resolve_precision("auto")
    speed.set_up(network, enabled=True, attention="auto", precision=precision, training=True)
    forward = PackedForward(network, precision=precision)
    rng, shape, block = np.random.default_rng(0), (sizes[1], sizes[0]), sizes[0]
    ids = rng.integers(0, len(loaded.tokenizer), shape)
    batch = Batch(
        ids, ids, np.tile(np.arange(block), (shape[0], 1)), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    )
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        forward.loss(batch, 1 / ids.size).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as traced:
        step()
    spent: dict[str, float] = {}
    for row in traced.key_averages():
        spent[kind_of(row.key)] = spent.get(kind_of(row.key), 0.0) + row.self_cpu_time_total
    total = sum(spent.values())
    width = network.config.hidden_size
    matrices = sum(p.numel() for n, p in network.named_parameters() if p.ndim == 2 and "wpe" not in n)
    attention = (
        6 * network.config.num_hidden_layers * width * block
    )  # half of all pairs, 2 products, forward and twice backward
    return {
        "profile": {name: share / total for name, share in sorted(spent.items(), key=lambda item: -item[1])},
        "precision": precision,
        "flop_per_token": 6 * matrices + attention,
        "matmul_gflops": matmul_gflops(width, precision, shape[0] * block),
    }


def kind_of(operation: str) -> str:
    if operation in MATRIX_PRODUCTS:
        return "matrix products"
    for kind, words in {
        "softmax": ("softmax", "exp", "masked_fill"),
        "activation": ("gelu",),
        "normalisation": ("layer_norm",),
        "copies and casts": ("copy_", "fill_", "cat"),
        "optimizer": ("adam", "vector_norm"),
    }.items():
        if any(word in operation for word in words):
            return kind
    return "everything else"


def matmul_gflops(width: int, precision: str, rows: int) -> float:
    """Return GFLOP per CPU-second of the largest matrix products in the model's layers, the best of ten tries."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(rows, width).to(dtype), torch.randn(width, 4 * width).to(dtype)
    times = []
    for _ in range(10):
        started = time.process_time()
        for _ in range(5):
            left @ right
        times.append((time.process_time() - started) / 5)
    return 2 * left.numel() * right.shape[1] / min(times) / 1e9


if __name__ == "__main__":
    main()
