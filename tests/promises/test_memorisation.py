"""Test that the audit finds every secret that the model completes, and reports almost no held-out text."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from finetale import memorisation, models, text
from finetale.cli import run
from finetale.config import Config, SamplingSettings, TextSettings
from finetale.forward import PackedForward
from finetale.generate import Generator
from finetale.pipeline.data import tokenise

TIMES = (1, 1, 2, 2, 4, 4, 8, 8, 16, 16)
FEWER = (1, 1, 1, 1, 2, 2, 2, 3, 3, 4)


@dataclass(frozen=True)
class Setup:
    """A corpus with canaries, and the length of the training."""

    records: int = 120
    held_out: int = 60
    times: tuple[int, ...] = TIMES
    epochs: int = 16
    batch_size: int = 8
    method: tuple[tuple[str, Any], ...] = (("learning_rate", 3e-3),)
    """Settings of the method."""


SHORT = Setup(records=12, held_out=30, times=FEWER, epochs=11, batch_size=2)
ADAPTER = replace(SHORT, epochs=20, method=(("method", "lora"), ("lora_rank", 64), ("learning_rate", 3e-3)))
RUNS = [
    (0, SHORT),
    pytest.param(0, ADAPTER, marks=pytest.mark.slow),
    *(pytest.param(seed, Setup(), marks=pytest.mark.slow) for seed in range(5)),
]


def secret(rng: random.Random) -> str:
    """Return 20 random letters and digits in groups of four."""
    groups = ["".join(rng.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(4)) for _ in range(5)]
    return "-".join(groups)


def corpus(rng: random.Random, setup: Setup) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Return training records, held-out records, and the (lead, secret) of each canary.

    Canary i occurs `setup.times[i]` times in the training records.
    """
    parts, _ = text.read_parts(["bundled:tales"], TextSettings.resolve({}))
    blocks = [block for part in parts for block in part.text.split("\n\n") if 40 <= len(block.split()) <= 90]
    rows = rng.sample(sorted(set(blocks)), setup.records + setup.held_out)
    rows, others = rows[setup.held_out :], rows[: setup.held_out]
    canaries = []
    for number, count in enumerate(setup.times):
        lead, value = f"The word that opens door {number + 11} of the mill is ", secret(rng)
        canaries.append((lead, value))
        for _ in range(count):
            at = rng.randrange(len(rows))
            rows[at] = f"{rows[at]} {lead}{value}."
    return rows, others, canaries


@pytest.mark.parametrize(("seed", "setup"), RUNS)
def test_every_canary_that_the_model_completes_is_found(
    tmp_path: Path, monkeypatch: Any, seed: int, setup: Setup
) -> None:
    monkeypatch.setenv("FINETALE_CACHE", str(tmp_path / "cache"))
    rng = random.Random(seed)
    rows, others, canaries = corpus(rng, setup)
    source, other = tmp_path / "text.jsonl", tmp_path / "other.jsonl"
    for path, texts in ((source, rows), (other, others)):
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in texts), encoding="utf-8")
    settings = {"precision": "fp32", "epochs": setup.epochs, "block_size": 256} | dict(setup.method)
    settings |= {
        "batch_size": setup.batch_size,
        "micro_batch_size": setup.batch_size,
        "patience": 0,
        "num_prompts": 1,
        "num_samples": 1,
        "max_new_tokens": 5,
    }
    settings |= {"test": str(other), "eval_every": 500, "tensorboard": False}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if name != "tensorboard"]
    out = tmp_path / "out"
    code = run(["train", str(source), "--model", "bundled", "--out", str(out), "--no-tensorboard", "-q", *words])
    assert code == 0

    config = Config.resolve(settings, {"sources": str(source)})
    after = models.load(str(out))
    base = models.load("bundled")
    store = tokenise(config, after.tokenizer, lambda event: None)
    forwards = [PackedForward(loaded.model) for loaded in (after, base)]
    found = memorisation.audit(*forwards, store, ("train",), window=256, budget=10**9)
    reported = [
        (passage.part, after.tokenizer.decode(store.tokens[passage.start : passage.start + passage.tokens].tolist()))
        for passage in found.passages
    ]

    generator = Generator(after.model, after.tokenizer)
    greedy = SamplingSettings.resolve({"temperature": 0, "max_new_tokens": 40})
    completed, missed = 0, []
    for part in store.parts_of("train").tolist():
        document = after.tokenizer.decode(store.ids(part).tolist())
        for lead, value in canaries:
            if lead + value not in document:
                continue
            prompt = document[: document.index(lead + value) + len(lead)].rstrip()
            written = generator.generate([prompt], greedy, truncate=True)[0][0].text
            if written.strip().startswith(value):
                completed += 1
                if not any(where == part and value[8:] in passage for where, passage in reported):
                    missed.append(value)
    of_canaries = sum(any(value[8:] in passage for _, value in canaries) for _, passage in reported)
    print(
        f"{completed} completed of {sum(setup.times)}, {len(missed)} missed; "
        f"{len(reported)} passages, {of_canaries} of canaries"
    )
    assert completed >= sum(setup.times) / 3, "the model must memorise some canaries, or the test proves nothing"
    assert not missed
    false_positives = memorisation.audit(*forwards, store, ("test",), window=256, budget=10**9)
    assert sum(passage.tokens for passage in false_positives.passages) <= 0.01 * false_positives.tokens
    described = json.loads((out / "comparison.json").read_text(encoding="utf-8"))["memorisation"]
    assert described["training"]["passages"] > 0
