"""Measure generated tokens per second at 1, 16 and 64 clients: Finetale's PyTorch engine, or transformers' batching.

    python benchmarks/gpu/serve.py finetale|transformers [--tiny]

The model has GPT-2's shape (124M) and random weights, in bf16 on a GPU. Each client sends a prompt of 64 tokens and
generates 128 more, greedily, in the same process and without HTTP. The contender from transformers is
`generate_batch`, its continuous batching. The best of two rounds after the first counts. Prints one JSON object as its
last line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import contenders

CLIENTS = (1, 16, 64)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", choices=["finetale", "transformers"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few tokens, to test the script")
    arguments = parser.parse_args()
    prompt, new = (8, 4) if arguments.tiny else (64, 128)
    network = network_of(tiny=arguments.tiny)
    if torch.cuda.is_available():
        network.to("cuda", torch.bfloat16)
    serve = ours(network) if arguments.contender == "finetale" else theirs(network)
    rates: dict[str, float] = {}
    for clients in CLIENTS:
        prompts = [[(7 * client + 3 * at + 1) % 1000 for at in range(prompt)] for client in range(clients)]
        serve(prompts, new)
        for _ in range(2):
            with contenders.turn():
                began = time.perf_counter()
                number = serve(prompts, new)
                rate = number / (time.perf_counter() - began)
            rates[str(clients)] = max(rate, rates.get(str(clients), 0.0))
        assert number == clients * new, f"{number} tokens instead of {clients * new}"
        print(f"{clients} clients: {rates[str(clients)]:,.0f} tokens/s", flush=True)
    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
    print(json.dumps({"served_tokens_per_second": rates, "peak_bytes": peak}))


def network_of(*, tiny: bool) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 1000} if tiny else {}
    # No token ends a text, so that all contenders generate the same number of tokens.
    return GPT2LMHeadModel(GPT2Config(n_positions=1024, bos_token_id=0, eos_token_id=None, **sizes)).eval()


def ours(network: Any) -> Callable[[list[list[int]], int], int]:
    """Return a function that generates with the engine of `finetale serve`."""
    from finetale.config import SamplingSettings
    from finetale.models import LoadedModel, Provenance
    from finetale.server.engines import Job, selection

    settings = SamplingSettings.resolve({"temperature": 0})
    facts = selection.Facts(network.config.vocab_size, (), network.config.n_positions)
    provenance = Provenance("benchmark", "local", None, "0" * 64, network.num_parameters())
    loaded = LoadedModel(network, None, provenance)  # the engine needs no tokenizer
    engine = selection.torch_engine(loaded, facts, max(CLIENTS), network.dtype)

    def serve(prompts: list[list[int]], new: int) -> int:
        jobs = [Job(ids, settings) for ids in prompts]
        engine.start([[job] for job in jobs])
        for _ in range(new):
            engine.step()
        for job in jobs:
            engine.drop(job)
        return sum(len(job.tokens) for job in jobs)

    return serve


def theirs(network: Any) -> Callable[[list[list[int]], int], int]:
    """Return a function that generates with transformers' continuous batching."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    # Its default takes most of the memory, which belongs to other processes too. This is enough for 64 clients.
    tokens = 4096 if torch.cuda.is_available() else 256
    limits = ContinuousBatchingConfig(num_blocks=128, max_batch_tokens=tokens)
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, bos_token_id=0, max_new_tokens=1)

    def serve(prompts: list[list[int]], new: int) -> int:
        config.max_new_tokens = new
        found = network.generate_batch(prompts, generation_config=config, continuous_batching_config=limits)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return sum(len(output.generated_tokens) for output in found.values())

    return serve


if __name__ == "__main__":
    main()
