"""Test adapters from the Hub: the real clients with a local hub. Their bases are on the Hub too."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import hub
from commands import Worker, environment, finish, start
from finetale import models
from finetale.models import adapter_files
from hub import Machine, refused
from tiny import save_model, tokenizer, write_stories

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # by PeftModel
TINY = (
    *("--max-steps", "2", "--batch-size", "2", "--max-new-tokens", "4", "--num-samples", "1", "--num-prompts", "1"),
    "--no-tensorboard",
)
GREEDY = ("The lamp", "--max-new-tokens", "8", "--temperature", "0")
OF_BASE = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
OF_ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


def write_adapter(folder: Path, base: Path, name: str) -> Path:
    """Write an adapter with PEFT, whose matrices are random, as after training."""
    config = LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(str(folder))
    return change(folder, base_model_name_or_path=name)


def change(folder: Path, **values: Any) -> Path:
    """Change values in the adapter_config.json of a folder."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")
    return folder


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no-base": (
        {"base_model_name_or_path": None},
        "The adapter owner/no-base does not name its base.",
        "hf download owner/no-base --local-dir adapter",
    ),
    "gated-base": (
        {"base_model_name_or_path": "gated/tale"},
        "The base of the adapter owner/gated-base can't be used: gated/tale is gated",
        "HF_TOKEN",
    ),
    "missing-base": (
        {"base_model_name_or_path": "owner/nothing"},
        "The base of the adapter owner/missing-base can't be used: There is no model 'owner/nothing' on the Hub",
        "spelling",
    ),
    "base-of-a-machine": (
        {"base_model_name_or_path": "/content/base"},
        "'/content/base' is a folder of the machine that it was trained on.",
        "name another base in adapter/adapter_config.json",
    ),
    "base-is-an-adapter": (
        {"base_model_name_or_path": "owner/adapter"},
        "owner/adapter is an adapter too",
        "name another base",
    ),
    "own-base": ({"base_model_name_or_path": "owner/own-base"}, "owner/own-base is an adapter too", "another base"),
    "old-base": ({"revision": "v9"}, "owner/tale has no revision 'v9'.", "the revision in adapter_config.json"),
    "pickled-base": ({"base_model_name_or_path": "owner/pickled"}, "only as pytorch_model.bin", "name another base"),
    "other-kind": ({"peft_type": "IA3"}, "owner/other-kind is an adapter of the kind IA3", "Merge it with PEFT"),
    "trained-biases": ({"bias": "all"}, "with bias in its adapter_config.json", "Merge it with PEFT"),
    "other-layers": ({"target_modules": ["q_proj"]}, "is for layers called q_proj", "Name the model"),
}
"""Repositories by name: what is changed in adapter_config.json, and parts of the error and the hint."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    base = tmp_path_factory.mktemp("hub")
    owner = base / "hub" / "models" / "owner"
    tale = save_model(owner / "tale")
    shutil.copytree(tale, base / "hub" / "models" / "gated" / "tale")
    shutil.copytree(tale, owner / "pickled")
    (owner / "pickled" / "model.safetensors").rename(owner / "pickled" / "pytorch_model.bin")
    adapter = write_adapter(owner / "adapter", tale, "owner/tale")
    (adapter / "training_args.bin").write_bytes(b"a pickle")
    tokenizer().save_pretrained(shutil.copytree(adapter, owner / "with-tokenizer"))
    shutil.copy(tale / "config.json", shutil.copytree(adapter, owner / "with-config"))
    change(shutil.copytree(adapter, owner / "pinned"), revision=hub.COMMIT)
    for name, (values, _, _) in FAULTS.items():
        change(shutil.copytree(adapter, owner / name), **values)
    pickled = shutil.copytree(adapter, owner / "pickled-adapter")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    empty = shutil.copytree(adapter, owner / "no-weights")
    (empty / "adapter_model.safetensors").unlink()
    write_stories(base / "work" / "stories", 30, 60)
    with (
        hub.serve(base / "hub") as (url, requests),
        Worker(base / "work", environment(base / "home", HF_ENDPOINT=url)) as worker,
    ):
        yield Machine(requests, worker, base / "work", base / "home", url)


@pytest.fixture(scope="module")
def merged(machine: Machine) -> Path:
    """The folder that `finetale merge` writes; the first command that downloads the adapter and its base."""
    error, hint = refused(machine.run("merge", "owner/adapter"))
    assert "owner/adapter is an adapter and not a run, so it is not clear where the merged model goes." in error
    assert "finetale merge owner/adapter --out PATH" in hint
    assert machine.downloaded("owner/adapter") == set()
    result = machine.run("merge", "owner/adapter", "--out", "merged")
    assert result.code == 0, result.stderr
    assert machine.downloaded("owner/adapter") == OF_ADAPTER
    assert machine.downloaded("owner/tale") == OF_BASE
    assert not [line for line in machine.requests if "training_args" in line]
    return machine.work / "merged"


def test_the_merged_model_is_that_of_peft(machine: Machine, merged: Path) -> None:
    from peft import PeftModel

    owner = machine.work.parent / "hub/models/owner"
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(owner / "tale"), owner / "adapter").eval()
    ours = models.load(str(merged)).model
    ids = torch.arange(20)[None] + 5
    with torch.inference_mode():
        expected, found = plain(ids).logits, ours(ids).logits
        base = AutoModelForCausalLM.from_pretrained(owner / "tale")(ids).logits
    assert (expected - base).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["adapter", "with-tokenizer", "with-config", "pinned"])
def test_an_adapter_is_a_model(machine: Machine, merged: Path, name: str) -> None:
    expected = machine.run("generate", "merged", *GREEDY)
    result = machine.run("generate", f"owner/{name}", *GREEDY)
    assert result.code == 0, result.stderr
    assert result.stdout == expected.stdout
    assert machine.downloaded("owner/tale") == set()  # downloaded once
    figures = [
        json.loads(machine.run("evaluate", model, "stories", "--json", "--quiet").stdout)
        for model in ("merged", f"owner/{name}")
    ]
    assert [each.pop("model") for each in figures] == ["merged", f"owner/{name}"]
    assert figures[0] == figures[1]


def test_a_run_records_the_commits_of_the_adapter_and_its_base(machine: Machine, merged: Path) -> None:
    result = machine.run("train", "stories", "--model", "owner/adapter", "--out", "run", *TINY)
    assert result.code == 0, result.stderr
    manifest = json.loads((machine.work / "run/run.json").read_text())
    source = manifest["base"]
    assert (source["name"], source["kind"], source["revision"]) == ("owner/adapter", "hub", hub.COMMIT)
    assert source["base"] == f"owner/tale@{hub.COMMIT}"
    assert f"revision: {hub.COMMIT}" in (machine.work / "run/config.yaml").read_text().splitlines()
    for words in (("compare", "run"), ("resume", "run", "--max-steps", "3"), ("evaluate", "run", "stories")):
        result = machine.run(*words)
        assert result.code == 0, result.stderr
    error, hint = refused(machine.run("train", "stories", "--model", "owner/adapter", "--method", "lora", *TINY))
    assert "owner/adapter is an adapter, so no other adapter can be trained beside it." in error
    assert "finetale merge owner/adapter --out FOLDER" in hint


def test_an_adapter_in_the_cache_works_offline(machine: Machine, merged: Path) -> None:
    expected = machine.run("generate", "owner/adapter", *GREEDY)
    result = machine.run("generate", "owner/adapter", *GREEDY, "--offline")
    assert (result.code, result.stdout) == (0, expected.stdout), result.stderr
    assert machine.requests == []
    result = machine.run("merge", "owner/adapter", "--out", "offline", "--offline")
    assert result.code == 0, result.stderr
    shutil.rmtree(machine.home / "huggingface/hub/models--owner--tale")
    error, hint = refused(machine.run("generate", "owner/adapter", *GREEDY, "--offline"))
    assert "The base of the adapter owner/adapter can't be used: owner/tale is not on this machine" in error
    assert "Run once without --offline" in hint
    assert machine.run("generate", "owner/adapter", *GREEDY).stdout == expected.stdout


def served_texts(machine: Machine, *words: str, hub_url: str = "http://127.0.0.1:1") -> dict[str, str]:
    """Serve models; return the most likely text of each one by its name."""
    env = environment(machine.home, HF_ENDPOINT=hub_url)
    process = start("serve", *words, "--engine", "torch", "--port", "0", cwd=machine.work, env=env)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address is not None, line + finish(process).stderr
        with urllib.request.urlopen(f"{address[0]}/v1/models") as answer:
            names = [model["id"] for model in json.loads(answer.read())["data"]]
        return {name: completed(address[0], name) for name in names}
    finally:
        process.terminate()
        finish(process)


def completed(address: str, name: str) -> str:
    body = {"model": name, "prompt": "The lamp", "max_tokens": 8, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        text: str = json.loads(answer.read())["choices"][0]["text"]
        return text


def test_an_adapter_is_served(machine: Machine, merged: Path) -> None:
    (text,) = served_texts(machine, "owner/adapter", "--offline").values()
    assert f"The lamp{text}".strip() == machine.run("generate", "merged", *GREEDY).stdout.strip()


def test_an_adapter_is_served_beside_its_base(machine: Machine, merged: Path) -> None:
    shutil.rmtree(machine.home / "huggingface/hub/models--owner--adapter")
    machine.requests.clear()
    words = ("owner/tale", "--adapter", "tales=owner/adapter")
    texts = served_texts(machine, *words, hub_url=machine.url)
    assert machine.downloaded("owner/adapter") == OF_ADAPTER
    assert list(texts) == ["tale", "tales"]
    assert f"The lamp{texts['tale']}".strip() == machine.run("generate", "owner/tale", *GREEDY).stdout.strip()
    assert f"The lamp{texts['tales']}".strip() == machine.run("generate", "merged", *GREEDY).stdout.strip()
    assert texts["tale"] != texts["tales"]
    machine.requests.clear()
    assert served_texts(machine, *words, "--offline", hub_url=machine.url) == texts
    assert machine.requests == []


@pytest.mark.parametrize(
    ("name", "words", "way_out", "downloads"),
    [
        ("owner/tale", "owner/tale is a whole model, not an adapter.", "--also NAME=owner/tale", set()),
        ("owner/nothing", "There is no model 'owner/nothing' on the Hub", "spelling", set()),
        ("owner/other-kind", "is an adapter of the kind IA3", "Merge it with PEFT", {adapter_files.CONFIG_NAME}),
        ("owner/other-layers", "is for layers called q_proj", "Name the model", OF_ADAPTER),
    ],
)
def test_an_adapter_that_can_not_be_served_is_refused(
    machine: Machine, merged: Path, name: str, words: str, way_out: str, downloads: set[str]
) -> None:
    error, hint = refused(machine.run("serve", "owner/tale", "--port", "0", "--adapter", f"a={name}"))
    assert words in error
    assert way_out in hint
    assert machine.downloaded(name) <= downloads


def test_only_the_tokenizer_is_downloaded_for_a_check(machine: Machine, merged: Path) -> None:
    report = [
        json.loads(machine.run("check", "stories", "--model", name, "--json").stdout)["tokens"]
        for name in ("owner/adapter", "merged")
    ]
    assert report[0] == report[1]
    shutil.rmtree(machine.home / "huggingface/hub")
    assert machine.run("check", "stories", "--model", "owner/adapter").code == 0
    assert not [line for line in machine.requests if "safetensors" in line]


@pytest.mark.parametrize("name", list(FAULTS))
def test_an_adapter_that_can_not_be_used_says_why(machine: Machine, merged: Path, name: str) -> None:
    error, hint = refused(machine.run("generate", f"owner/{name}", *GREEDY))
    assert FAULTS[name][1] in error
    assert FAULTS[name][2] in hint
    if name in ("other-kind", "trained-biases"):  # before the weights are downloaded
        assert machine.downloaded(f"owner/{name}") == {"adapter_config.json"}


@pytest.mark.parametrize(
    ("name", "words", "way_out"),
    [
        ("pickled-adapter", "has its weights only as adapter_model.bin, a format that can carry code", "with PEFT"),
        ("no-weights", "has no adapter_model.safetensors", "Download it again"),
    ],
)
def test_an_adapter_without_safetensors_is_refused(machine: Machine, name: str, words: str, way_out: str) -> None:
    error, hint = refused(machine.run("generate", f"owner/{name}", *GREEDY))
    assert f"The adapter owner/{name} {words}" in error
    assert way_out in hint
    assert machine.downloaded(f"owner/{name}") == {adapter_files.CONFIG_NAME}
    error, _ = refused(machine.run("merge", "owner/tale", "--out", "none"))
    assert "owner/tale is neither a run nor an adapter." in error
    assert machine.downloaded("owner/tale") == set()
