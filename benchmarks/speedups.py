"""Measure what each part of the speed layer contributes: training steps with all parts, then without one at a time.

    python benchmarks/speedups.py [--shapes gpt2 bundled] [--quick]

The models have random weights and the shapes of GPT-2 (124M, dropout 0.1) and of the bundled base (no dropout). A
block has 512 tokens of one document. A step has 2,048 tokens, in micro-batches of the size that Finetale chooses. All
variants take turns in one process. The figure is CPU time per step without the part, divided by CPU time per step with
all parts: above 1, the part helps. It is the median over the turns. Prints a table, and one JSON object as its last
line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from typing import Any, cast
from unittest import mock

from finetale.environment import calm_threads, hardware, versions

calm_threads()  # as the command does; before torch is loaded

import numpy as np  # noqa: E402
import torch  # noqa: E402

from finetale import speed  # noqa: E402
from finetale.blocks import Batch  # noqa: E402
from finetale.environment import resolve_precision  # noqa: E402
from finetale.forward import PackedForward, Route  # noqa: E402

BLOCK, STEP = 512, 4
SHAPES = {
    "gpt2": ({"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}, 0.1, 1),
    "bundled": ({"n_embd": 256, "n_layer": 6, "n_head": 4, "vocab_size": 8192, "n_positions": 512}, 0.0, 4),
}
PARTS = (
    "nothing",
    "attention",
    "activation",
    "dropout",
    "loss",
    "tied gradient",
    "kept memory",
    "loss and kept memory",
    "kept casts",
    "everything",
)
PLAIN_LOSS = {"loss", "loss and kept memory", "everything"}
PLAIN_MEMORY = {"kept memory", "loss and kept memory", "everything"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--quick", action="store_true", help="one turn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    results = {shape: compare(shape, 1 if arguments.quick else arguments.turns) for shape in arguments.shapes}
    print(f"{'CPU time without ...':<24}" + "".join(f"{shape:>12}" for shape in results))
    for part in PARTS:
        print(f"{part:<24}" + "".join(f"{results[shape].get(part, float('nan')):>12.2f}" for shape in results))
    print(json.dumps({"time_without": results, "hardware": hardware(), "versions": versions()}))


def compare(shape: str, turns: int) -> dict[str, Any]:
    """Return CPU time per step without each part over that with all parts: the median, and the ratio of every turn."""
    from transformers import GPT2Config, GPT2LMHeadModel

    values, rate, micro = SHAPES[shape]
    torch.manual_seed(0)
    rates = {"resid_pdrop": rate, "embd_pdrop": rate, "attn_pdrop": rate}
    network = GPT2LMHeadModel(GPT2Config(**values, **rates, bos_token_id=0, eos_token_id=0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    rng = np.random.default_rng(0)
    parts = [part for part in PARTS if part != "dropout" or rate]
    times: dict[str, list[float]] = {part: [] for part in parts}
    warm_up, repeats = (1, 1) if shape == "gpt2" else (2, 8)
    for turn in range(-1, turns):  # turn -1 is the warm-up
        for part in parts[turn % len(parts) :] + parts[: turn % len(parts)]:  # rotate the order
            forward = without(part, network)
            with contextlib.ExitStack() as stack:
                if part in PLAIN_LOSS:
                    stack.enter_context(mock.patch.object(speed, "cross_entropy", plain_cross_entropy))
                if part not in PLAIN_MEMORY:
                    stack.enter_context(speed.kept_memory())
                for number in range(warm_up + repeats):
                    if number == warm_up:
                        started = time.process_time()
                    with contextlib.nullcontext() if part in ("kept casts", "everything") else forward.autocast():
                        for _ in range(STEP // micro):
                            batch = batch_of(rng, micro, values["vocab_size"])
                            loss = forward.loss(batch, 1 / (STEP * BLOCK))
                            with forward.no_autocast():
                                loss.backward()
                    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                if turn >= 0:
                    times[part].append((time.process_time() - started) / repeats)
    ratios = {part: [mine / whole for mine, whole in zip(times[part], times["nothing"], strict=True)] for part in parts}
    rates = {"tokens_per_cpu_second": STEP * BLOCK / statistics.median(times["nothing"])}
    return {part: statistics.median(found) for part, found in ratios.items()} | rates | {"turns": ratios}


def without(part: str, network: Any) -> PackedForward:
    """Return the forward pass of a network with all speed-ups except one part."""
    speed.undo(network).train()
    if part != "everything":
        speed.apply(network)
    if part == "attention":
        speed.use_documents(network, False)
    kind = {"activation": speed.FusedGELU, "dropout": speed.FastDropout}.get(part)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if kind is not None and isinstance(child, kind):
                setattr(parent, name, cast(Any, child).replaced[0].train())
    forward = PackedForward(network, precision=resolve_precision("auto"))
    if part in PLAIN_LOSS:
        forward.route = Route(forward.route.isolation)
    if part == "tied gradient":
        forward.route = Route(forward.route.isolation, head=True)
    return forward


def plain_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
    """Compute the loss like transformers, on an fp32 copy of all logits."""
    return torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=ignore, reduction="none")


def batch_of(rng: np.random.Generator, rows: int, vocabulary: int) -> Batch:
    ids = rng.integers(0, vocabulary, (rows, BLOCK))
    zeros = np.zeros((rows, BLOCK), np.int64)
    return Batch(ids, ids, np.tile(np.arange(BLOCK), (rows, 1)), zeros, zeros)


if __name__ == "__main__":
    main()
