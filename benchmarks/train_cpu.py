"""How much text a CPU-second trains on: Finetale against transformers.Trainer, on the same text, model and optimizer.

    python benchmarks/train_cpu.py [--text FILE] [--tokenizer FOLDER] [--quick]

The others: "tutorial" is the recipe most tutorials give, repaired to run (fp32, a line an example, cut and padded to 128 tokens,
4 examples a step); "packed" is the same Trainer on blocks of 512 tokens of the joined text, 4 a step, in fp32 and in bf16. Finetale
trains on the same text with its defaults, 4 blocks of 512 tokens a step. Shapes: GPT-2 (124M) and the bundled base, both with the
dropout of their config.

Each contender runs in a process of its own, in turns, and is timed over its steps after the first (the median of the turns).
Useful tokens are targets that are text: no padding, nothing cut off. Memory is the process's peak. Without --text it is the
tales of the package; --tokenizer gives that of the GPT-2 shape. Prints tables, and one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BLOCK, BATCH, CUT = 512, 4, 128
SHAPES = {"gpt2": "new:gpt2", "bundled": "bundled"}
CONTENDERS = ("tutorial", "packed fp32", "packed bf16", "finetale")
STEPS = {"gpt2": {"tutorial": 6, "packed fp32": 2, "packed bf16": 2, "finetale": 4}}
"""Steps timed in a turn. The bundled base takes ten times as many."""
MATRIX_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::addbmm", "aten::baddbmm"}


class Clock:
    """CPU and wall seconds since the first step ended, and the process's peak memory."""

    def __init__(self) -> None:
        self.started: tuple[float, float] | None = None
        self.figures: dict[str, float] = {}

    def step_done(self) -> None:
        now = (time.process_time(), time.perf_counter())
        if self.started is None:
            self.started = now
            return
        from finetale.environment import peak_memory

        self.figures = {
            "cpu_seconds": now[0] - self.started[0],
            "wall_seconds": now[1] - self.started[1],
            "peak_bytes": peak_memory(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="bundled:tales")
    parser.add_argument("--tokenizer", default="bundled")
    parser.add_argument("--quick", action="store_true", help="one turn of a few steps")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--contender", nargs=2, metavar=("SHAPE", "NAME"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        shape, name = arguments.contender
        print(json.dumps(run_contender(shape, name, arguments)))
        return
    from finetale.environment import hardware, versions

    shapes = {shape: compare(shape, arguments) for shape in arguments.shapes}
    keys = ("ratio_vs_tutorial", "ratio_vs_packed", "peak_memory_ratio")
    worst = {key: (max if "memory" in key else min)(shapes[shape][key] for shape in shapes) for key in keys}
    print(
        json.dumps(
            worst
            | {"shapes": shapes, "text": Path(arguments.text).name, "hardware": hardware(), "versions": versions()}
        )
    )


def compare(shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All contenders in turns; their figures and the ratios between them."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in range(1 if arguments.quick else arguments.turns):
        for name in CONTENDERS:
            steps = STEPS["gpt2"][name] // (2 if arguments.quick else 1) * (1 if shape == "gpt2" else 10)
            turns[name].append(in_process(shape, name, max(1, steps), arguments))
    rows = {name: median(turns[name]) for name in CONTENDERS}
    ours = rows["finetale"]
    packed = max(rows["packed fp32"], rows["packed bf16"], key=lambda row: row["tokens_per_cpu_second"])
    limit = 1e9 * ours["matmul_gflops"] / ours["flop_per_token"]
    print(f"\n{shape}: useful tokens a CPU-second; the processor's matrix products alone would allow {limit:,.0f}")
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
        "share_of_matmul_limit": ours["tokens_per_cpu_second"] / limit,
        "contenders": rows,
    }


def in_process(shape: str, name: str, steps: int, arguments: argparse.Namespace) -> dict[str, Any]:
    words = [sys.executable, __file__, "--contender", shape, name, "--steps", str(steps)]
    words += ["--text", arguments.text, "--tokenizer", arguments.tokenizer]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{shape} {name}: {figures['tokens'] / figures['cpu_seconds']:,.0f} tokens/CPU-s", file=sys.stderr)
    return figures


def median(turns: list[dict[str, Any]]) -> dict[str, Any]:
    return turns[-1] | {
        "tokens_per_cpu_second": statistics.median(turn["tokens"] / turn["cpu_seconds"] for turn in turns),
        "tokens_per_second": statistics.median(turn["tokens"] / turn["wall_seconds"] for turn in turns),
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
    }


def run_contender(shape: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    tokenizer = arguments.tokenizer if shape == "gpt2" else "bundled"
    if name == "finetale":
        return run_finetale(SHAPES[shape], tokenizer, arguments)
    return run_trainer(SHAPES[shape], tokenizer, name, arguments)


def run_finetale(model: str, tokenizer: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole path of `finetale train` without held-out text, timed from the first step to the last."""
    from finetale.config import Config
    from finetale.pipeline import train_run

    clock, tokens = Clock(), []

    def notify(event: dict[str, Any]) -> None:
        if event["event"] == "train":
            clock.step_done()
            tokens.append(event["tokens"])

    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "sources": (arguments.text,),
            "model": model,
            "tokenizer": tokenizer,
            "block_size": BLOCK,
            "batch_size": BATCH,
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
    return clock.figures | {"tokens": tokens[-1] - tokens[0]} | profile(model, tokenizer)


def run_trainer(model: str, tokenizer: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """`transformers.Trainer` on a data set made as tutorials (or run_clm) make it."""
    import transformers

    from finetale import models

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    read = models.load_tokenizer(tokenizer)
    network = plain_model(model, read)
    lines = [line for line in text_of(arguments.text).split("\n") if line.strip()]
    if name == "tutorial":
        read.pad_token = read.eos_token
        encoded = read(lines, truncation=True, max_length=CUT, padding="max_length")
        rows = [
            {"input_ids": ids, "attention_mask": mask}
            for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]
        collate: Any = transformers.DataCollatorForLanguageModeling(read, mlm=False)
    else:
        joined = [token for ids in read(lines, verbose=False)["input_ids"] for token in ids]
        rows = [
            {"input_ids": joined[at : at + BLOCK], "labels": joined[at : at + BLOCK]}
            for at in range(0, len(joined) - BLOCK + 1, BLOCK)
        ]
        collate = transformers.default_data_collator
    clock, tokens = Clock(), []

    class Counted(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            tokens.append(int((inputs["labels"][:, 1:] != -100).sum()))
            return super().training_step(model, inputs, *rest)

    class Timed(transformers.TrainerCallback):
        def on_step_end(self, *rest: Any, **more: Any) -> None:
            clock.step_done()

    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=arguments.steps + 1,
            learning_rate=5e-5,
            bf16=name.endswith("bf16"),
            use_cpu=True,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Counted(model=network, args=settings, train_dataset=rows, data_collator=collate, callbacks=[Timed()]).train()
    return clock.figures | {"tokens": sum(tokens[1:])}


def plain_model(model: str, tokenizer: Any) -> Any:
    """The model as transformers makes it."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    from finetale import models

    if model == "bundled":
        return AutoModelForCausalLM.from_pretrained(models.locate("bundled").folder, dtype=torch.float32)
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer)))


def text_of(source: str) -> str:
    if source != "bundled:tales":
        return Path(source).read_text(encoding="utf-8")
    from finetale.config import TextSettings
    from finetale.text import read_parts

    parts, _ = read_parts((source,), TextSettings())
    return "\n".join(part.text for part in parts)


def profile(model: str, tokenizer: str) -> dict[str, Any]:
    """Where the time of a pass goes, by kind of operation, and what the processor's matrix products reach."""
    import numpy as np
    import torch
    from torch.profiler import ProfilerActivity

    from finetale import models
    from finetale.blocks import Batch
    from finetale.forward import PackedForward
    from finetale.pipeline.prepare import resolve_precision

    loaded = models.load(model, tokenizer=models.load_tokenizer(tokenizer))
    network, precision = loaded.model.train(), resolve_precision("auto")
    forward = PackedForward(network, precision=precision)
    rng, shape = np.random.default_rng(0), (BATCH, BLOCK)
    ids = rng.integers(0, len(loaded.tokenizer), shape)
    batch = Batch(ids, ids, np.tile(np.arange(BLOCK), (BATCH, 1)), np.zeros(shape, np.int64), np.zeros(shape, np.int64))
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
        6 * network.config.num_hidden_layers * width * BLOCK
    )  # half of all pairs, 2 products, forward and twice backward
    return {
        "profile": {name: share / total for name, share in sorted(spent.items(), key=lambda item: -item[1])},
        "precision": precision,
        "flop_per_token": 6 * matrices + attention,
        "matmul_gflops": matmul_gflops(width, precision),
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


def matmul_gflops(width: int, precision: str) -> float:
    """GFLOP a CPU-second in the largest matrix products of the model's layers; the best of ten."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(BATCH * BLOCK, width).to(dtype), torch.randn(width, 4 * width).to(dtype)
    times = []
    for _ in range(10):
        started = time.process_time()
        for _ in range(5):
            left @ right
        times.append((time.process_time() - started) / 5)
    return 2 * left.numel() * right.shape[1] / min(times) / 1e9


if __name__ == "__main__":
    main()
