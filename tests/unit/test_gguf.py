"""Models in GGUF files: conversion, what is said about them, and files that are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from finetale import models
from finetale.cli import run
from finetale.errors import ModelError
from finetale.models.files import check_files
from finetale.models.gguf_names import ARCHITECTURES
from gguf_files import write_gguf
from tiny import model as tiny_gpt2
from tiny import story, tokenizer, write_stories

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.2,
}
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16, "final_logit_softcapping": 20.0},
    "gemma3": {"sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 6},
    "llama": {},
    "phi3": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {},
}


def tiny(architecture: str, **settings: Any) -> PreTrainedModel:
    """Return a model of an architecture with random weights."""
    if architecture == "gpt2":
        return tiny_gpt2(positions=128)
    kind = ARCHITECTURES[architecture].model_type
    config = CONFIG_MAPPING[kind](**SIZES | {"vocab_size": len(tokenizer())} | OWN[architecture] | settings)
    torch.manual_seed(1)
    found: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    for name, weights in found.named_parameters():  # norms and biases that are all ones and zeros hide errors
        if weights.ndim == 1:
            torch.nn.init.normal_(weights, 0.0 if "bias" in name or "gemma" in kind else 1.0, 0.1)
    return found


def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([tokenizer().encode(story(1))[:40]])
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def refused(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        models.load(str(path))
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_file_gives_the_logits_of_its_model_and_its_tokenizer(architecture: str, tmp_path: Path) -> None:
    original = tiny(architecture)
    pre = "qwen2" if architecture == "qwen2" else "gpt-2"  # transformers loads each tokenizer of Qwen 2 by its class
    path = write_gguf(tmp_path / "model.gguf", original, values={"tokenizer.ggml.pre": pre})
    loaded = models.load(str(path))
    assert torch.allclose(logits(loaded.model), logits(original), atol=2e-5)
    assert loaded.model.config.tie_word_embeddings == original.config.tie_word_embeddings
    text = "The  naïve 12 boats;\n你好 — it's <|endoftext|>!"
    if pre == "gpt-2":
        assert loaded.tokenizer.encode(text) == tokenizer().encode(text)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text
    models.save(loaded.model, loaded.tokenizer, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(loaded.model))
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").encode(text) == loaded.tokenizer.encode(text)


@pytest.mark.parametrize(
    ("quantisation", "bits", "error"), [("Q8_0", 8.5, 0.01), ("Q4_0", 4.5, 0.12), ("F16", 16, 1e-3)]
)
def test_quantised_weights_are_rounded_and_said_to_be(
    quantisation: str, bits: float, error: float, tmp_path: Path
) -> None:
    original = tiny("llama")
    path = write_gguf(tmp_path / "model.gguf", original, quantisation=quantisation)
    loaded = models.load(str(path))
    for name, weights in original.named_parameters():
        found = loaded.model.get_parameter(name)
        assert found.dtype == torch.float32
        assert (found - weights).abs().max() <= error * weights.abs().max()
        assert (name.endswith("norm.weight")) == torch.equal(found, weights)
    assert loaded.provenance.kind == "gguf"
    assert loaded.provenance.weights == f"{quantisation}, {bits:.1f} bits per weight"
    if quantisation == "F16":
        assert loaded.warning is None
    else:
        assert f"holds {bits:.1f}-bit weights ({quantisation}), which are dequantised to fp32" in str(loaded.warning)
        assert "the base is a rounded copy of its model" in str(loaded.warning)


def test_numbers_equal_those_of_transformers(tmp_path: Path) -> None:
    """The conversion is ours, and transformers has one too."""
    path = write_gguf(tmp_path / "model.gguf", tiny("llama"), quantisation="Q4_0")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = models.load(str(path)).model
    assert all(torch.equal(weights, theirs.get_parameter(name)) for name, weights in ours.named_parameters())


def llama3_divisors(factor: float, base: float = 500_000.0, width: int = 16) -> np.ndarray[Any, Any]:
    """Return what llama.cpp's converter writes for the scaling of Llama 3."""
    found = []
    for index in range(0, width, 2):
        wavelength = 2 * np.pi * base ** (index / width)
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def test_scaled_rotary_positions_of_llama_3(tmp_path: Path) -> None:
    """transformers ignores the tensor with the scaling, and gives other logits."""
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    original = tiny("llama", rope_parameters=rope)
    path = write_gguf(tmp_path / "model.gguf", original, tensors={"rope_freqs.weight": llama3_divisors(32.0)})
    loaded = models.load(str(path))
    assert torch.allclose(logits(loaded.model), logits(original), atol=2e-5)
    assert loaded.model.config.rope_parameters == rope
    other = llama3_divisors(32.0)
    other[0] = 2.0
    write_gguf(path, original, tensors={"rope_freqs.weight": other})
    assert "in a way that is not Llama 3's" in refused(path).message


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_other_scaled_rotary_positions(kind: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {"ARCH.rope.scaling.type": kind, "ARCH.rope.scaling.factor": 4.0}
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0}
    if kind == "yarn":
        values["ARCH.rope.scaling.original_context_length"] = rope["original_max_position_embeddings"] = 32
    original = tiny("llama", rope_parameters=rope)
    loaded = models.load(str(write_gguf(tmp_path / "model.gguf", original, values=values)))
    assert torch.allclose(logits(loaded.model), logits(original), atol=2e-5)


def test_incomplete_files(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny("llama"))
    whole = path.read_bytes()
    for length in (4, 12, 24, 40, 1000, len(whole) // 2, len(whole) - 32):
        path.write_bytes(whole[:length])
        assert "is invalid or incomplete" in refused(path).message, length
    path.write_bytes(b"version https://git-lfs")
    assert "is not a GGUF file" in refused(path).message
    path.write_bytes(b"")
    assert "is not a GGUF file" in refused(path).message


def test_invalid_headers(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    huge = struct.pack("<Q", 2**60)
    for data in (
        b"GGUF" + struct.pack(">IQQ", 3, 1, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 2**40, 1),
        start + huge,
        start + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 99),
        start + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**60),
        start + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**60),
        start + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 9, 1),
        start + struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1),
    ):
        path.write_bytes(data + bytes(64))
        assert "is invalid or incomplete" in refused(path).message, data


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"general.type": "adapter"}, "holds a LoRA adapter, not a language model"),
        ({"general.type": "mmproj"}, "holds the image encoder of a model"),
        ({"split.count": 3}, "is one of 3 parts of a model"),
        ({"general.architecture": "rwkv7"}, "of the architecture 'rwkv7' are not supported"),
        ({"ARCH.rope.scaling.type": "longrope"}, "do not describe completely (longrope)"),
        ({"ARCH.attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"ARCH.block_count": 3}, "are not those of its architecture"),
        ({"ARCH.embedding_length": 32}, "do not fit its values"),
    ],
)
def test_files_that_are_refused(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny("llama"), values=values)
    assert said in refused(path).message


def test_tensors_that_are_missing_or_too_many(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, tiny("llama"), leave_out="blk.1.ffn_up.weight")
    assert "such as model.layers.1.mlp.up_proj.weight" in refused(path).message
    write_gguf(path, tiny("llama"), tensors={"blk.0.attn_sinks.weight": np.ones(4, np.float32)})
    assert "the tensor blk.0.attn_sinks.weight, which has no place" in refused(path).message


def test_an_output_layer_equal_to_the_embedding_is_tied(tmp_path: Path) -> None:
    """Converted GPT-2 models can hold the embedding twice."""
    original = tiny("gpt2")
    twice = {"output.weight": original.get_input_embeddings().weight.detach().numpy()}
    loaded = models.load(str(write_gguf(tmp_path / "model.gguf", original, tensors=twice)))
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    assert torch.allclose(logits(loaded.model), logits(original), atol=2e-5)


def test_folders_names_and_files_without_a_suffix(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.Q8_0.gguf", tiny("llama"))
    assert models.locate(str(tmp_path)).file == path
    blob = tmp_path / "ollama" / "sha256-abc"
    blob.parent.mkdir()
    blob.write_bytes(path.read_bytes())
    assert models.load(str(blob)).provenance.kind == "gguf"
    assert f"Did you mean {path}?" in refused(tmp_path / "tiny.Q4_0.gguf").hint
    (tmp_path / "other.gguf").write_bytes(path.read_bytes())
    error = refused(tmp_path)
    assert "holds 2 GGUF files: other.gguf, tiny.Q8_0.gguf" in error.message
    for name in ("someone/tiny-GGUF/tiny.gguf", "hf:someone/tiny-GGUF/tiny.gguf"):
        assert "hf download someone/tiny-GGUF tiny.gguf" in refused(Path(name)).hint


def test_a_repository_with_gguf_files_only_is_refused_before_the_download() -> None:
    with pytest.raises(ModelError, match=r"only as GGUF files, such as tiny\.Q4_0\.gguf") as caught:
        check_files("someone/tiny-GGUF", ["README.md", "config.json", "tiny.Q4_0.gguf", "tiny.Q8_0.gguf"])
    assert "hf download someone/tiny-GGUF tiny.Q4_0.gguf" in caught.value.hint


def test_special_tokens_and_the_ends_of_turns(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny("llama"), values={"tokenizer.ggml.eot_token_id": 5})
    assert models.end_ids(models.load(str(path)).model, tokenizer()) == (0, 5)


@pytest.mark.parametrize(
    ("rule", "is_known"), [("gpt-2", True), ("smollm", True), ("llama-bpe", True), ("new-bpe", False)]
)
def test_an_unknown_rule_for_cutting_text_is_said(rule: str, is_known: bool, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny("llama"), values={"tokenizer.ggml.pre": rule})
    located = models.locate(str(path))
    assert (located.warning is None) == is_known
    if not is_known:
        assert "by the rule 'new-bpe', which is unknown here" in str(located.warning)


def test_from_training_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run records the file with its hash, can be resumed, and is refused when the file has changed."""
    path = write_gguf(tmp_path / "base.gguf", tiny("llama"), quantisation="Q8_0")
    write_stories(tmp_path / "stories", 12, words=30)
    out = tmp_path / "run"
    words = ["--max-new-tokens", "2", "--save-every", "1", "--audit-tokens", "0"]
    assert (
        run(["train", str(tmp_path / "stories"), "--model", str(path), "--out", str(out), "--max-steps", "1", *words])
        == 0
    )
    assert "8.5-bit weights (Q8_0)" in capsys.readouterr().err
    base = json.loads((out / "run.json").read_text())["base"]
    assert (base["kind"], base["weights"]) == ("gguf", "Q8_0, 8.5 bits per weight")
    assert "Q8_0" in (out / "report.html").read_text()
    assert run(["resume", str(out), "--max-steps", "2"]) == 0
    assert json.loads((out / "run.json").read_text())["steps"] == 2
    assert run(["generate", str(path), "The lamp", "--max-new-tokens", "2"]) == 0
    assert run(["evaluate", str(path), str(tmp_path / "stories")]) == 0
    capsys.readouterr()
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    assert run(["compare", str(out)]) == 1
    assert "has changed since the run began (SHA-256 differs)" in capsys.readouterr().err
    path.unlink()
    assert run(["compare", str(out)]) == 1
    assert f"There is no file {path}" in capsys.readouterr().err


def test_the_package_gguf_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny("llama"))
    monkeypatch.setattr("finetale.extras.is_installed", lambda package: False)
    with pytest.raises(Exception, match="needs the package gguf") as caught:
        models.locate(str(path))
    assert "pip install 'finetale[gguf]'" in str(caught.value)
