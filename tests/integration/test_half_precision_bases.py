"""Runs from a base in fp16 or bf16: they compute, save and resume as from the same weights in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from children import call
from finetale.rundir import RunDirectory
from finetale.tokens import begin_and_end
from scene import command_of, digest_of, stop_after_step_3
from tiny import model, story, tokenizer, write_stories


def plain_loss(folder: Path, text: str) -> float:
    """Return the loss of transformers' own code in fp32 on a document, in nats per token."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    begin, end = begin_and_end(tokenizer())
    ids = torch.tensor([[begin, *tokenizer().encode(text), end]])
    assert ids.shape[1] <= 64  # one block
    with torch.inference_mode():
        logits = network(input_ids=ids[:, :-1], use_cache=False).logits
    return float(torch.nn.functional.cross_entropy(logits[0].double(), ids[0, 1:]))


@pytest.mark.parametrize(
    ("dtype", "method", "shards"),
    [(torch.float16, "full", 1), (torch.bfloat16, "full", 2), (torch.float16, "lora", 2), (torch.bfloat16, "lora", 1)],
)
def test_a_run_from_half_precision_is_that_from_the_same_weights_in_fp32(
    dtype: torch.dtype, method: str, shards: int, tmp_path: Path
) -> None:
    half = model(0, dropout=0.1).to(dtype)
    for name, network in (("base", half), ("whole-base", model(0, dropout=0.1).to(dtype).float())):
        network.save_pretrained(tmp_path / name, max_shard_size="50KB" if shards > 1 and name == "base" else "5GB")
        tokenizer().save_pretrained(tmp_path / name)
    assert len(list((tmp_path / "base").glob("*.safetensors"))) == shards
    stored = {key: v for file in (tmp_path / "base").glob("*.safetensors") for key, v in load_file(file).items()}
    assert {value.dtype for value in stored.values()} == {dtype}
    write_stories(tmp_path / "stories", 30, words=60)
    (tmp_path / "held-out.txt").write_text(story(77, 20), encoding="utf-8")
    train = (*command_of(method), "--test", "held-out.txt", "--no-strip", "--audit-tokens", "0")
    for out, base in (("run", "base"), ("fp32", "whole-base")):
        code, output = call(tmp_path, *[base if word == "base" else word for word in train], "--out", out)
        assert code == 0, output
    run, other = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "fp32")
    assert digest_of(run.root) == digest_of(other.root) or method == "lora"  # an adapter holds the hash of its base
    saved = load_file(run.model / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(run.model).dtype == torch.float32
    assert all(torch.equal(value, load_file(other.model / "model.safetensors")[name]) for name, value in saved.items())
    unchanged = [name for name, value in saved.items() if torch.equal(value, stored[name].float())]
    assert len(unchanged) == (0 if method == "full" else 20)  # all but the eight adapted matrices
    before = run.read_comparison().before
    assert before.test is not None
    assert before.test.loss == pytest.approx(plain_loss(tmp_path / "base", story(77, 20)), abs=1e-5)
    code, output = call(tmp_path, *train, "--out", "stopped", hook=stop_after_step_3)
    assert code == 75, output
    code, output = call(tmp_path, "resume", "stopped")
    assert code == 0, output
    assert digest_of(tmp_path / "stopped") == digest_of(run.root)
