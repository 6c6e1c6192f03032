"""A run with an adapter: its files, what opens it, resuming, merging, and a base that has changed or is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from children import call
from finetale import models
from finetale.cli import run
from finetale.config import Config
from finetale.errors import ModelError, RunError
from finetale.pipeline.prepare import prepare
from finetale.rundir import RunDirectory, verify_folder
from scene import copy_run, digest_of, make_run, stop_after_step_3, train_with
from tiny import MODEL_FILES, save_model

TRAIN = train_with(method="lora", lora_rank=2, learning_rate="1e-2", lora_dropout=0.1, audit_tokens=0, num_answers=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stories/, base/ and run/, an uninterrupted run of six steps with an adapter."""
    return make_run(tmp_path_factory.mktemp("adapters"), *TRAIN)


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run beside its base, as the current folder."""
    copy_run(finished, tmp_path)
    monkeypatch.setenv("FINETALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must be refused; return what it prints."""
    capsys.readouterr()
    assert run(list(words)) == 1
    return capsys.readouterr().err


def test_the_files_of_a_run_with_an_adapter(finished: Path) -> None:
    place = RunDirectory(finished / "run")
    adapter = {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
    assert {file.name for file in place.adapter.iterdir()} == adapter | {"tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in place.model.iterdir()} == {*MODEL_FILES, "manifest.json"}
    saved = list(place.saved_checkpoints())
    assert [step for step, _ in saved] == [6, 5]
    for _, folder in saved:
        own = {"config.yaml", "optimizer.safetensors", "state.json"}
        assert {file.name for file in folder.iterdir()} == adapter | own
        assert not verify_folder(folder)
    config = json.loads((place.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 4.0, ["c_attn", "c_fc", "c_proj"])
    assert config["base_model_name_or_path"] == "./base"  # no path of this machine
    manifest = place.read_manifest()
    assert manifest.trained is not None
    assert manifest.base is not None
    trained = sum(tensor.numel() for tensor in load_file(place.adapter / "adapter_model.safetensors").values())
    assert (manifest.trained.method, manifest.trained.rank, manifest.trained.parameters) == ("lora", 2, trained)
    with safe_open(str(place.adapter / "adapter_model.safetensors"), "pt") as file:
        assert file.metadata()["base_sha256"] == manifest.base.sha256
    for text in (place.report, place.model / "README.md"):
        assert f"LoRA of rank 2: {trained:,} parameters" in text.read_text(encoding="utf-8")


def test_the_base_did_not_change_and_the_model_got_better(finished: Path) -> None:
    comparison = RunDirectory(finished / "run").read_comparison()
    assert comparison.before.validation is not None
    assert comparison.after.validation is not None
    assert comparison.after.validation.loss < comparison.before.validation.loss - 0.1
    assert comparison.before.test is not None
    assert comparison.after.test is not None
    assert comparison.after.test.loss < comparison.before.test.loss - 0.1


@pytest.mark.parametrize(("precision", "kept"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_frozen_matrices_are_kept_in_the_type_of_the_products(here: Path, precision: str, kept: torch.dtype) -> None:
    settings = {"model": "base", "method": "lora", "sources": "stories", "precision": precision, "max_steps": 1}
    prepared = prepare(Config.resolve(settings), lambda event: None)
    layers = prepared.loaded.model.transformer.h
    assert {layer.mlp.c_fc.base_layer.weight.dtype for layer in layers} == {kept}
    assert {layer.attn.c_attn.base_layer.weight.dtype for layer in layers} == {kept}
    assert prepared.loaded.model.lm_head.weight.dtype == kept
    assert layers[0].mlp.c_fc.lora_A["default"].weight.dtype == torch.float32


def test_a_stopped_run_resumes_to_the_same_bits(here: Path) -> None:
    code, output = call(here, *TRAIN, "--out", "stopped", hook=stop_after_step_3)
    assert code == 75, output
    code, output = call(here, "resume", "stopped")
    assert code == 0, output
    whole, resumed = RunDirectory(here / "run"), RunDirectory(here / "stopped")
    assert digest_of(here / "stopped") == digest_of(here / "run")
    for name in ("adapter/adapter_model.safetensors", "checkpoints/step-00000006/optimizer.safetensors"):
        assert (resumed.root / name).read_bytes() == (whole.root / name).read_bytes()


def test_a_stopped_run_is_refused_when_its_base_has_changed_or_is_gone(here: Path) -> None:
    code, output = call(here, *TRAIN, "--out", "stopped", hook=stop_after_step_3)
    assert code == 75, output
    (here / "base").rename(here / "moved")
    code, output = call(here, "resume", "stopped")
    assert code == 1
    assert f"The base model of stopped is gone: there is no {here / 'base'} any more." in output
    assert "hint: Put it back" in output
    save_model(here / "base", seed=5)
    code, output = call(here, "resume", "stopped")
    assert code == 1
    assert "has changed since the run began (SHA-256 differs)." in output
    shutil.rmtree(here / "base")
    (here / "moved").rename(here / "base")
    code, output = call(here, "resume", "stopped")
    assert code == 0, output
    assert digest_of(here / "stopped") == digest_of(here / "run")


def test_settings_of_the_adapter_can_not_change_within_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = RunDirectory(here / "run")
    place.update_manifest(status="interrupted")
    text = place.config.read_text(encoding="utf-8")
    place.config.write_text(text.replace("lora_rank: 2", "lora_rank: 3"), encoding="utf-8")
    message = errors(capsys, "resume", "run", "--accept-changes")
    assert "lora_rank is 3, was 2" in message
    assert "lora_rank can't change within a run" in message


def test_merge_writes_the_model_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = RunDirectory(here / "run")
    before = digest_of(place.root)
    card = (place.model / "README.md").read_text(encoding="utf-8")
    shutil.rmtree(place.model)
    assert run(["merge", "run"]) == 0
    assert capsys.readouterr().out == "run/model\n"
    assert digest_of(place.root) == before
    assert (place.model / "README.md").read_text(encoding="utf-8") == card
    assert not verify_folder(place.model)
    assert run(["merge", "run", "--out", "other"]) == 0
    assert run(["merge", "run/adapter", "--out", "third"]) == 0
    for folder in ("other", "third"):
        assert (here / folder / "model.safetensors").read_bytes() == (place.model / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--out", "base"), "base exists already."),
        (("run/adapter",), "is an adapter and not a run, so it is not clear where"),
        (("base",), "base is neither a run nor an adapter."),
        (("./nowhere",), "./nowhere is neither a run nor an adapter."),
    ],
)
def test_merge_refuses_what_it_can_not_do(
    here: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest_of(here / "run")
    assert message in errors(capsys, "merge", *words)
    assert digest_of(here / "run") == before


def logits(name: str) -> torch.Tensor:
    loaded = models.load(name)
    with torch.inference_mode():
        found: torch.Tensor = loaded.model(torch.arange(30)[None] + 5).logits
    return found


def test_an_adapter_folder_is_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = logits("run/model")
    for name in ("run/adapter", "run/checkpoints/step-00000006"):
        assert torch.equal(logits(name), wanted)
    shutil.copytree("run/adapter", "alone")  # beside its base, which adapter_config.json names as ./base
    assert torch.equal(logits("alone"), wanted)
    texts = []
    for name in ("run", "run/adapter"):
        assert run(["generate", name, "The lamp", "--max-new-tokens", "8", "--seed", "1"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_a_run_without_its_model_uses_its_adapter_and_then_its_checkpoint(here: Path) -> None:
    wanted = logits("run")
    place = RunDirectory(here / "run")
    shutil.rmtree(place.model)
    loaded = models.load("run")
    assert loaded.warning == "run/model is missing; the adapter and its base are used instead."
    assert loaded.provenance.kind == "run"
    assert torch.equal(logits("run"), wanted)
    weights = place.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    loaded = models.load("run")
    assert loaded.warning is not None
    assert "the checkpoint of step 6 is used instead" in loaded.warning
    assert torch.equal(logits("run"), wanted)


def damaged(case: str, here: Path) -> None:
    """Change the files of the adapter in ./alone."""
    folder = here / "alone"
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if case == "base gone":
        shutil.rmtree(here / "base")
    elif case == "base changed":
        save_model(here / "base", seed=9)
    elif case == "cut":
        weights = folder / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:200])
    elif case == "no weights":
        (folder / "adapter_model.safetensors").unlink()
    elif case == "kind":
        config["peft_type"] = "IA3"
    elif case == "layers":
        config["target_modules"] = ["q_proj"]
    elif case == "bias":
        config["bias"] = "all"
    elif case == "rank":
        config["r"] = 3
    elif case == "pattern":
        config["target_modules"] = "(a+)+"
    elif case == "no base":
        config["base_model_name_or_path"] = None
    if case != "cut":
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("base gone", "The base of the adapter alone can't be used: "),
        ("base changed", "The base of the adapter alone has changed since the adapter was trained (SHA-256 differs)."),
        ("cut", "is not a complete safetensors file"),
        ("no weights", "The adapter alone has no adapter_model.safetensors."),
        ("kind", "alone is an adapter of the kind IA3; Finetale reads LoRA and DoRA."),
        ("layers", "The adapter alone is for layers called q_proj, which its base does not have."),
        ("bias", "alone is an adapter with bias in its adapter_config.json, which Finetale does not read."),
        ("rank", "has the shape (2, 32) instead of (3, 32)."),
        ("pattern", "has no list of target_modules."),
        ("no base", "The adapter alone does not name its base."),
    ],
)
def test_an_adapter_that_can_not_be_used_says_why(here: Path, case: str, message: str) -> None:
    shutil.copytree("run/adapter", "alone")
    (here / "alone" / "manifest.json").unlink()
    damaged(case, here)
    with pytest.raises((ModelError, RunError)) as caught:
        models.load("alone")
    assert message in caught.value.message
    assert caught.value.hint
