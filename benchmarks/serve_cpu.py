"""Measure tokens per second of a service: Finetale, `transformers serve` and `transformers` generate, on this CPU.

    python benchmarks/serve_cpu.py [--quick]

The model has the shape of GPT-2 124M, with random weights and a made-up vocabulary of the same size. Each request has a
prompt of 64 tokens and asks for 64 more, greedily; 1, 8 or 16 clients ask at the same time. Of two such turns the
faster counts. The others compute in bf16. `transformers serve` runs as it starts by itself, and with
--continuous-batching; generate gets all prompts as one batch. Every contender runs alone, after a request to warm up,
and the contenders in turns.

Time to first token is from sending a request to the first event of its stream, in requests of their own. The bundled
model's figures stand beside it. `ratio_vs_transformers_serve` is against the command as it starts by itself,
`ratio_vs_transformers_serve_batching` against the other; each ratio is the worse of those at 8 and 16 clients. Prints
tables, and one JSON object as its last line. `--quick` takes one turn of fewer requests, and under four minutes.
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
from pathlib import Path
from typing import Any

import contenders

CLIENTS = (1, 8, 16)
PROMPT, NEW = 64, 64
OURS, GENERATE = "finetale", "generate"
SERVES = {"transformers serve": (), "transformers serve, batching": ("--continuous-batching",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one turn of fewer requests")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--generate", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.generate:
        print(json.dumps(run_generate(Path(arguments.generate))))
        return
    from finetale.environment import hardware, versions

    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "gpt2-shape")
        os.environ["FINETALE_CACHE"] = str(Path(scratch) / "cache")
        found: dict[str, list[dict[str, Any]]] = {}
        names = [OURS, GENERATE, *SERVES, "bundled"]
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

    print(
        json.dumps(
            {
                "ratio_vs_generate": ratio(GENERATE),
                "ratio_vs_transformers_serve": ratio("transformers serve"),
                "ratio_vs_transformers_serve_batching": ratio("transformers serve, batching"),
                "contenders": rows,
                "hardware": hardware(),
                "versions": versions() | versions("openvino", "nncf", "fastapi"),
            }
        )
    )


def middle(turns: list[dict[str, Any]], number: str) -> dict[str, float]:
    """Medians over the turns."""
    return {key: statistics.median(turn[number][key] for turn in turns) for key in turns[0][number]}


def print_table(rows: dict[str, Any]) -> None:
    """Tokens a second, and of services the time to first token."""
    print(f"\n{'':<34}" + "".join(f"{number:>24} at once" for number in CLIENTS))
    for name, row in rows.items():
        cells = []
        for number in CLIENTS:
            of = row[str(number)]
            first = f" ({of['first_p50'] * 1e3:,.0f}/{of['first_p95'] * 1e3:,.0f} ms)" if "first_p50" in of else ""
            cells.append(f"{of['tokens_per_second']:,.0f} tokens/s{first}")
        print(f"{name:<34}" + "".join(f"{cell:>32}" for cell in cells))
    print("in brackets: time to first token, median and 95th percentile")


def make_model(folder: Path) -> Path:
    """GPT-2's shape with random weights, and a tokenizer whose 50,000 merges are pairs of bytes."""
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
    """Texts of exactly PROMPT tokens."""
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
    """One contender's figures, by the number of clients."""
    if name == GENERATE:
        return contenders.in_process(__file__, "--generate", str(folder))
    model = Path("bundled") if name == "bundled" else folder
    with service(name, model) as (port, called):
        ask(port, called, prompts(model, 1, seed=99)[0], stream=True)
        return {str(number): load(port, called, model, number, quick, name in SERVES) for number in CLIENTS}


@contextmanager
def service(name: str, model: Path) -> Iterator[tuple[int, str]]:
    """A service that has come up; its port, and the model's name there."""
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
    """Return once a service answers that it is there.

    Raises:
        RuntimeError: the service has ended, or does not answer within three minutes.
    """
    for _ in range(1800):
        if process.poll() is not None:
            raise RuntimeError("the service ended")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status < 500:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the service does not answer")


def load(port: int, called: str, model: Path, clients: int, quick: bool, slow: bool) -> dict[str, float]:
    """Tokens a second of whole answers to some clients at once, and then of streams the time to first token.

    Where it has to be quick, the slow ones' streams serve for both.
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
    """Send each list of prompts from its own client. Return the seconds in all, and to each first event, sorted.

    Raises:
        RuntimeError: an answer is not what was asked for.
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
    """One request; seconds until its first event, or the whole answer."""
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
    """`transformers` generate in bf16: all prompts as one batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    contenders.quiet_transformers()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    with torch.inference_mode():
        for number in (1, *CLIENTS):  # the first to warm up
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


if __name__ == "__main__":
    main()
