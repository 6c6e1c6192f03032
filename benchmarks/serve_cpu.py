"""Measure tokens per second of a service: Finetale, `transformers serve` and `transformers` generate, on this CPU.

    python benchmarks/serve_cpu.py [--quick] [--only finetale genai]

The model has the shape of GPT-2 124M, random weights and a synthetic vocabulary of the same size. Each request has a
prompt of 64 tokens and generates 64 more, greedily. 1, 8 or 16 clients send requests at the same time. Each load runs
twice, and the faster run counts. The baselines compute in bf16: `transformers serve` with its defaults,
`transformers serve --continuous-batching`, and `generate` with all prompts in one batch. The contenders take turns.
Each runs alone, after a warm-up request. `genai` is the ContinuousBatchingPipeline of OpenVINO GenAI in one process,
with int8 weights of `finetale export --to openvino`. If openvino_genai is not installed, it is left out with a message.

Time to first token is the time from sending a request to the first event of its stream. Separate requests measure it.
The table also shows the bundled model. `ratio_vs_transformers_serve` compares with the defaults of the command,
`ratio_vs_transformers_serve_batching` with continuous batching. Each ratio is the worse of those at 8 and 16 clients.
Prints a table, and one JSON object as its last line. `--quick` runs one turn with fewer requests in under four minutes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import contenders

CLIENTS = (1, 8, 16)
PROMPT, NEW = 64, 64
OURS, GENERATE, GENAI = "finetale", "generate", "genai"
SERVES = {"transformers serve": (), "transformers serve, batching": ("--continuous-batching",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one turn of fewer requests")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these contenders only")
    parser.add_argument("--generate", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--genai", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.generate or arguments.genai:
        run, of = (run_generate, arguments.generate) if arguments.generate else (run_genai, arguments.genai)
        print(json.dumps(run(Path(of))))
        return
    from finetale.environment import hardware, versions

    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "gpt2-shape")
        os.environ["FINETALE_CACHE"] = str(Path(scratch) / "cache")
        found: dict[str, list[dict[str, Any]]] = {}
        names = [OURS, GENERATE, *SERVES, GENAI, "bundled"]
        if unknown := set(arguments.only or ()) - set(names):
            parser.error(f"unknown: {', '.join(sorted(unknown))}. The contenders are {', '.join(names)}")
        names = arguments.only or names
        if GENAI in names and find_spec("openvino_genai") is None:
            print(f"{GENAI} is left out: openvino_genai is not installed", file=sys.stderr)
            names = [name for name in names if name != GENAI]
        for turn in range(1 if arguments.quick else arguments.turns):
            for name in names:
                figures = measure(name, folder, quick=arguments.quick)
                found.setdefault(name, []).append(figures)
                rates = ", ".join(f"{figures[str(number)]['tokens_per_second']:,.0f}" for number in CLIENTS)
                print(f"turn {turn + 1}, {name}: {rates} tokens/s", file=sys.stderr)
    rows = {name: {str(number): middle(turns, str(number)) for number in CLIENTS} for name, turns in found.items()}
    print_table(rows)

    def ratio(name: str) -> float:
        return min(
            rows[OURS][number]["tokens_per_second"] / rows[name][number]["tokens_per_second"] for number in ("8", "16")
        )

    compared = {
        "ratio_vs_generate": GENERATE,
        "ratio_vs_transformers_serve": "transformers serve",
        "ratio_vs_transformers_serve_batching": "transformers serve, batching",
        "ratio_vs_genai": GENAI,
    }
    print(
        json.dumps(
            {key: ratio(name) for key, name in compared.items() if {OURS, name} <= rows.keys()}
            | {
                "contenders": rows,
                "hardware": hardware(),
                "versions": versions() | versions("openvino", "nncf", "fastapi"),
            }
        )
    )


def middle(turns: list[dict[str, Any]], number: str) -> dict[str, float]:
    """Return the medians over the turns for one number of clients."""
    return {key: statistics.median(turn[number][key] for turn in turns) for key in turns[0][number]}


def print_table(rows: dict[str, Any]) -> None:
    """Print tokens per second, and the time to first token of services."""
    print(f"\n{'':<34}" + "".join(f"{number:>24} clients" for number in CLIENTS))
    for name, row in rows.items():
        cells = []
        for number in CLIENTS:
            of = row[str(number)]
            first = f" ({of['first_p50'] * 1e3:,.0f}/{of['first_p95'] * 1e3:,.0f} ms)" if "first_p50" in of else ""
            cells.append(f"{of['tokens_per_second']:,.0f} tokens/s{first}")
        print(f"{name:<34}" + "".join(f"{cell:>32}" for cell in cells))
    print("in brackets: time to first token, median and 95th percentile")


def make_model(folder: Path) -> Path:
    """Write a model of GPT-2's shape with random weights, and a tokenizer whose 50,000 merges are pairs of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    contenders.quiet_transformers()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(first, second) for first in letters for second in letters][:50_000]
    words = [*letters, *("".join(pair) for pair in merges), "<|endoftext|>"]
    made = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token=end, eos_token=end, unk_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words)))
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def prompts(folder: Path, number: int, seed: int) -> list[str]:
    """Return random texts of exactly PROMPT tokens."""
    from finetale.models import load_tokenizer

    tokenizer = load_tokenizer(folder if folder.is_dir() else str(folder))
    drawn = random.Random(seed)
    found: list[str] = []
    while len(found) < number:
        text = "".join(drawn.choice("abcdefghij") for _ in range(400))
        while len(tokenizer(text)["input_ids"]) > PROMPT:
            text = text[:-1]
        if len(tokenizer(text)["input_ids"]) == PROMPT:
            found.append(text)
    return found


def measure(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Return the figures of one contender by number of clients."""
    if name == GENERATE:
        return contenders.in_process(__file__, "--generate", str(folder))
    if name == GENAI:
        return contenders.in_process(__file__, "--genai", str(folder))
    model = Path("bundled") if name == "bundled" else folder
    with service(name, model) as (port, called):
        ask(port, called, prompts(model, 1, seed=99)[0], stream=True)
        return {str(number): load(port, called, model, number, quick, name in SERVES) for number in CLIENTS}


@contextmanager
def service(name: str, model: Path) -> Iterator[tuple[int, str]]:
    """Start a service and wait until it is ready; yield its port and the name of the model in requests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if name in SERVES:
        command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--host", "127.0.0.1"]
        command += ["--dtype", "bfloat16", "--device", "cpu", *SERVES[name]]
    else:
        command = [sys.executable, "-m", "finetale", "serve", str(model), "--name", "it"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
        try:
            wait_for(port, process, "/health" if name in SERVES else "/ready")
            yield port, str(model) if name in SERVES else "it"
        except Exception:
            log.seek(0)
            print(log.read().decode(errors="replace")[-3000:], file=sys.stderr)
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], path: str) -> None:
    """Wait until a service answers.

    Raises:
        RuntimeError: if the service exits, or does not answer within three minutes.
    """
    for _ in range(1800):
        if process.poll() is not None:
            raise RuntimeError("the service exited")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status < 500:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the service did not answer within three minutes")


def load(port: int, called: str, model: Path, clients: int, quick: bool, slow: bool) -> dict[str, float]:
    """Measure tokens per second of complete answers, then the time to first token of streams.

    With `quick`, one set of streams of a `slow` contender serves for both.
    """
    texts = prompts(model, clients, seed=clients)
    times = []
    for _ in range(1 if quick and slow else 2):
        seconds, firsts = at_once(port, called, [[text] for text in texts], stream=quick and slow)
        times.append(seconds)
    if not (quick and slow):
        _, firsts = at_once(port, called, [[text] for text in texts], stream=True)
    return {
        "tokens_per_second": clients * NEW / min(times),
        "first_p50": firsts[len(firsts) // 2],
        "first_p95": firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))],
    }


def at_once(port: int, called: str, texts: list[list[str]], *, stream: bool) -> tuple[float, list[float]]:
    """Send each list of prompts from its own client; return total seconds, and sorted seconds to each first event.

    Raises:
        RuntimeError: if an answer is incomplete or an error.
    """
    firsts: list[float] = []
    failures: list[BaseException] = []

    def client(mine: list[str]) -> None:
        try:
            firsts.extend([ask(port, called, text, stream=stream) for text in mine])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(mine,)) for mine in texts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failures:
        raise failures[0]
    return seconds, sorted(firsts)


def ask(port: int, called: str, prompt: str, *, stream: bool) -> float:
    """Send one request; return the seconds until its first event, or until the answer if it is not streamed."""
    body = {"model": called, "prompt": prompt, "max_tokens": NEW, "temperature": 0, "stream": stream}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    first = None
    finish = None
    for line in answer:
        if stream and not line.startswith(b"data: {"):
            continue
        first = first or time.perf_counter() - started
        for choice in json.loads(line[6:] if stream else line).get("choices", ()):
            finish = choice.get("finish_reason") or finish
    connection.close()
    if answer.status != 200 or first is None or finish != "length":
        raise RuntimeError(f"status {answer.status}, finish_reason {finish}")
    return first


def run_generate(folder: Path) -> dict[str, Any]:
    """Measure `generate` of transformers in bf16, with all prompts in one batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    contenders.quiet_transformers()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    with torch.inference_mode():
        for number in (1, *CLIENTS):  # the first run is the warm-up
            ids = torch.tensor([tokenizer(text)["input_ids"] for text in prompts(folder, number, seed=number)])
            times = []
            for _ in range(2):
                started = time.perf_counter()
                made = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
                )
                times.append(time.perf_counter() - started)
                assert made.shape[1] == PROMPT + NEW
            found[str(number)] = {"tokens_per_second": number * NEW / min(times)}
    return found


def run_genai(folder: Path) -> dict[str, Any]:
    """Measure OpenVINO GenAI's ContinuousBatchingPipeline with token ids, int8 weights and its default precision."""
    import numpy as np
    import openvino

    from finetale import models
    from finetale.export import openvino as exporter

    contenders.quiet_transformers()
    genai: Any = import_module("openvino_genai")
    loaded = models.load(str(folder))
    converted = folder.parent / "genai"
    if not converted.exists():
        converted.mkdir()
        exporter.write(loaded, converted, "int8")
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_seqs = max(CLIENTS)
    scheduler.cache_size = 1  # GB
    scheduler.enable_prefix_caching = False  # each load runs twice
    pipeline = genai.ContinuousBatchingPipeline(converted, scheduler, "CPU")
    settings = genai.GenerationConfig(max_new_tokens=NEW, min_new_tokens=NEW, ignore_eos=True, do_sample=False)
    found = {}
    for number in (1, *CLIENTS):  # the first run is the warm-up
        ids = [loaded.tokenizer(text)["input_ids"] for text in prompts(folder, number, seed=number)]
        times = []
        for _ in range(2):
            started = time.perf_counter()
            handles = [
                pipeline.add_request(at, openvino.Tensor(np.array([each])), settings) for at, each in enumerate(ids)
            ]
            while pipeline.has_non_finished_requests():
                pipeline.step()
            times.append(time.perf_counter() - started)
            assert all(len(handle.read_all()[0].generated_ids) == NEW for handle in handles)
        found[str(number)] = {"tokens_per_second": number * NEW / min(times)}
    return found


if __name__ == "__main__":
    main()
