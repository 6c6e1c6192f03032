"""Measure training tokens per second on a GPU: Finetale and transformers.Trainer (bf16, SDPA, fused AdamW).

    python benchmarks/train_gpu.py [--shapes gpt2 gpt2-medium gpt2-large llama-135m] [--contenders NAME …] [--profile]

The models have random weights, a context of 1024, the vocabularies of GPT-2 and SmolLM2, and no dropout. The shape
`gpt2-dropout` has the dropout rates of GPT-2's config. The models train on the bundled tales, repeated, with the
bundled tokenizer and 64 sequences per step. Both use the micro-batch `--micro-batch`, or half of it, and so on, until
it fits. Every contender runs in a new process. The first steps, which compile, are not counted. The time of a step is
the median over the others, measured with events on the GPU. So a short program beside it does not change it. With the
name of a file in GPU_LOCK, several benchmarks can compile at once and take turns to measure.

MFU counts 6 FLOP per token and matrix parameter, plus the products of the attention, relative to the GPU's dense bf16
peak. Finetale's attention sees the tokens of a document only, and only these products count. `--profile` adds the share
of each kernel. Without a GPU, a tiny shape runs on the CPU to test the script. Prints a table, and one JSON object as
its last line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import contenders

CONTEXT, STEP, SKIPPED = 1024, 64, 5
CONTENDERS = ("trainer", "trainer compiled", "finetale", "finetale compiled", "finetale max-autotune")
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, **NO_DROPOUT},
    "gpt2-dropout": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16, **NO_DROPOUT},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20, **NO_DROPOUT},
    "llama-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 1024,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "tiny": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": 8192, **NO_DROPOUT},
    "tiny-llama": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "vocab_size": 8192,
        "tie_word_embeddings": True,
    },
}
DEFAULT = ("gpt2", "gpt2-medium", "gpt2-large", "llama-135m")
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}
"""Dense bf16 FLOP per second, from the vendors' data sheets."""


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS[:4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--profile", action="store_true", help="add the share of each kernel in Finetale's steps")
    parser.add_argument("--micro-batch", type=int, default=STEP, help="the largest micro-batch to try")
    parser.add_argument("--contender", nargs=2, metavar=("SHAPE", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        shape, name = arguments.contender
        run = run_finetale if name.startswith("finetale") else run_trainer
        print(json.dumps(run(shape, name, arguments)))
        return
    from finetale.environment import hardware, versions

    on_gpu = torch.cuda.is_available()
    steps = arguments.steps if on_gpu else 2
    results = {}
    for shape in arguments.shapes or (DEFAULT if on_gpu else ["tiny"]):
        results[shape] = compare(shape, steps, arguments)
    print(json.dumps({"on_gpu": on_gpu, "shapes": results, "hardware": hardware(), "versions": versions()}))


def compare(shape: str, steps: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the contenders on one shape; print and return their figures."""
    rows: dict[str, Any] = {}
    print(f"\n{shape}\n{'':<22}{'tokens/s':>12}{'MFU':>8}{'memory':>14}{'micro-batch':>13}")
    for name in arguments.contenders:
        rows[name] = row = largest_that_fits(shape, name, steps, arguments)
        if "error" in row:
            print(f"{name:<22}{row['error']}")
            continue
        row["tokens_per_second"] = row["tokens_per_step"] / row["step_seconds"]
        row["mfu"] = row["tokens_per_second"] * row["flop_per_token"] / row["peak_flops"] if row["peak_flops"] else None
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        memory = f"{row['peak_bytes'] / 2**20:,.0f} MiB"
        print(f"{name:<22}{row['tokens_per_second']:>12,.0f}{mfu:>8}{memory:>14}{row['micro_batch_size']:>13}")
        for kernel in row.get("profile", ()):
            print(f"    {kernel['share']:>6.1%}  {kernel['name']}")
    return rows


def largest_that_fits(shape: str, name: str, steps: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a contender with the largest micro-batch that fits; return its figures."""
    import subprocess

    extra = ("--profile",) if arguments.profile else ()
    for size in (64, 32, 16, 8, 4):
        if size > arguments.micro_batch:
            continue
        words = ("--contender", shape, name, "--steps", str(steps), "--micro-batch", str(size), *extra)
        try:
            return contenders.in_process(__file__, *words)
        except subprocess.CalledProcessError as error:
            print(f"{shape} {name} with micro-batches of {size}: exit code {error.returncode}", file=sys.stderr)
    return {"error": "failed"}


class Steps:
    """The times of steps: on a GPU the device's, from events that nothing waits for. Takes the turn on the GPU.

    Attributes:
        number: steps to measure after the skipped ones.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._marks: list[Any] = []
        self._turn = contextlib.ExitStack()

    def step_done(self) -> None:
        """Record the end of a step. The first step, which compiles, needs no turn."""
        import torch

        if not self._marks:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._turn.enter_context(contenders.turn())
        if torch.cuda.is_available():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def is_last(self) -> bool:
        """Return whether the step that was recorded last is the last one to measure."""
        return len(self._marks) == self.number + SKIPPED

    def figures(self) -> dict[str, Any]:
        """Give the turn back; return the median seconds of a step, those of each step, and the peak memory."""
        import torch

        from finetale.environment import peak_memory

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._turn.close()
        pairs = pairwise(self._marks[SKIPPED - 1 :])
        seconds = [one.elapsed_time(other) / 1e3 if torch.cuda.is_available() else other - one for one, other in pairs]
        return {
            "step_seconds": statistics.median(seconds),
            "each_step": [round(value, 4) for value in seconds],
            "peak_bytes": peak_memory(),
        }


def network_of(shape: str) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    sizes = SHAPES[shape] | {"bos_token_id": 0, "eos_token_id": 0}
    if "hidden_size" in sizes:
        return LlamaForCausalLM(LlamaConfig(**sizes))
    return GPT2LMHeadModel(GPT2Config(**sizes))


def store_of(folder: Path, tokenizer: Any) -> Any:
    from finetale import tokens
    from finetale.config import TextSettings
    from finetale.text import read_parts

    settings = TextSettings(validation_fraction=0, test_fraction=0)
    parts, report = read_parts(("bundled:tales",), settings)
    return tokens.build_store(parts, tokenizer, folder / "store", report=report.to_dict)


def facts_of(network: Any, micro_batch_size: int, seen: float) -> dict[str, Any]:
    """Return what the rates are computed with.

    Args:
        seen: mean number of tokens of a token's document; half of them are visible in the attention.
    """
    import torch

    config = network.config
    matrices = sum(p.numel() for n, p in network.named_parameters() if p.ndim == 2 and "wpe" not in n)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "flop_per_token": 6 * matrices + 6 * config.num_hidden_layers * config.hidden_size * seen,
        "peak_flops": next((peak for part, peak in PEAKS.items() if part in name), None),
        "micro_batch_size": micro_batch_size,
    }


@contextlib.contextmanager
def kernel_shares(found: list[dict[str, Any]], number: int = 25) -> Iterator[None]:
    """Append the kernels that take most of the device's time inside the context, with their shares of it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        yield
        if on_gpu:
            torch.cuda.synchronize()
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, field))
    total = sum(getattr(row, field) for row in rows) or 1
    print(f"{total / 1e6:.3f} s in all kernels of a step", file=sys.stderr)
    found += [{"name": row.key[:90], "share": round(getattr(row, field) / total, 4)} for row in rows[:number]]


def run_finetale(shape: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from finetale import models, speed
    from finetale.blocks import pack
    from finetale.config import Config
    from finetale.environment import resolve_precision
    from finetale.pipeline.prepare import step_budget
    from finetale.pipeline.tuning import estimate_memory, tune
    from finetale.rundir import RunDirectory
    from finetale.training import Training

    if name.endswith("max-autotune"):
        import torch._inductor.config

        torch._inductor.config.max_autotune = True
    tokenizer = models.load_tokenizer("bundled")
    network = network_of(shape)
    size = min(CONTEXT, network.config.max_position_embeddings)
    with tempfile.TemporaryDirectory() as folder:
        blocks = pack(store_of(Path(folder), tokenizer), "train", size, fill=True)
        on_gpu = torch.cuda.is_available()
        settings: dict[str, Any] = {
            "batch_size": STEP,
            "max_steps": arguments.steps + SKIPPED,
            "epochs": 10_000,
            "learning_rate": 5e-5,
            "compile": "off" if name == "finetale" or not on_gpu else "on",
            "eval_every": 1_000_000,
            "save_every": 1_000_000,
            "micro_batch_size": arguments.micro_batch,
            "log_every": 1_000_000,
            "probe": False,
        }
        config = Config.resolve(settings)
        network.to("cuda" if on_gpu else "cpu")
        precision = resolve_precision(config.precision)
        speed.set_up(network, enabled=True, attention=config.attention, precision=precision, training=True)
        budget = step_budget(config, blocks)
        tuned = tune(config, network, blocks, budget, lambda event: None)
        memory = estimate_memory(config.model_copy(update={"precision": precision}), network, blocks)
        steps = Steps(arguments.steps)
        tokens: list[int] = []
        figures: dict[str, Any] = {}
        shares: list[dict[str, Any]] = []

        class Timed(Training):
            def _update(self, *, skip: bool) -> float:
                rate = super()._update(skip=skip)
                tokens.append(self.train_blocks.targets_in(self.budget.blocks_of(self.state.step, 0)))
                steps.step_done()
                if steps.is_last():
                    figures.update(steps.figures())
                if steps.is_last() and arguments.profile:
                    with kernel_shares(shares):
                        self._gradients()
                        super()._update(skip=False)
                return rate

        lengths = blocks.segments["targets"].astype(float)
        seen = float((lengths**2).sum() / lengths.sum())
        started = time.perf_counter()
        Timed(
            model=network,
            tokenizer=tokenizer,
            train_blocks=blocks,
            validation_blocks=None,
            settings=config,
            evaluation=config,
            directory=RunDirectory(Path(folder) / "run"),
            budget=budget,
            precision=tuned.choice.precision,
            compiled=tuned.choice.compile == "on",
        ).run()
    extra = {"profile": shares} if arguments.profile else {}
    return (
        figures
        | {
            "tokens_per_step": sum(tokens[SKIPPED:]) / arguments.steps,
            "attention": tuned.choice.attention,
            "expected_bytes": memory.expected_bytes(tuned.choice.micro_batch_size),
            "seconds_in_all": time.perf_counter() - started,
        }
        | facts_of(network, tuned.choice.micro_batch_size, seen)
        | extra
    )


def run_trainer(shape: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    from finetale import models
    from finetale.environment import resolve_precision

    contenders.quiet_transformers()
    network = network_of(shape)
    size = min(CONTEXT, network.config.max_position_embeddings)
    rows = contenders.blocks_of(contenders.lines_of("bundled:tales"), models.load_tokenizer("bundled"), size)
    wanted = STEP * (arguments.steps + SKIPPED)  # one epoch, so that no step is smaller and compiled again
    rows = (rows * (wanted // len(rows) + 1))[:wanted]
    on_gpu = torch.cuda.is_available()
    steps = Steps(arguments.steps)
    contenders.train_with_trainer(
        network,
        rows,
        transformers.default_data_collator,
        steps.step_done,
        batch_size=arguments.micro_batch,
        steps=arguments.steps + SKIPPED,
        gradient_accumulation_steps=STEP // arguments.micro_batch,
        bf16=resolve_precision("auto") == "bf16",
        torch_compile=on_gpu and name.endswith("compiled"),
        optim="adamw_torch_fused",
        use_cpu=not on_gpu,
    )
    figures = steps.figures() | {"tokens_per_step": STEP * (size - 1)}
    return figures | facts_of(network, arguments.micro_batch, size)


if __name__ == "__main__":
    main()
