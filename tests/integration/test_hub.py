"""Test models and datasets from the Hub: the real clients with a local hub, an unreachable hub, and their caches."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertConfig

import hub
from commands import Result, Worker, environment
from hub import Machine, refused
from tiny import model, save_model, story, tokenizer, write_stories

TINY = (
    *("--max-steps", "2", "--batch-size", "2", "--max-new-tokens", "4", "--num-samples", "1", "--num-prompts", "1"),
    "--no-tensorboard",
)
SPLITS = {"train": 20, "validation": 4, "test": 5}
NEEDED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    base = tmp_path_factory.mktemp("hub")
    work = base / "work"
    write_stories(work / "stories", 30, 60)
    _fill_hub(base / "hub")
    with (
        hub.serve(base / "hub") as (url, requests),
        Worker(work, environment(base / "home", HF_ENDPOINT=url)) as worker,
    ):
        yield Machine(requests, worker, work, base / "home", url)


def _fill_hub(root: Path) -> None:
    models, datasets = root / "models", root / "datasets"
    tale = save_model(models / "owner" / "tale")
    (tale / "pytorch_model.bin").write_bytes(b"a pickle")
    (tale / "modeling_tale.py").write_text("raise SystemExit('code of a repository was run')\n")
    (tale / "README.md").write_text("# Tale\n")
    (tale / "onnx").mkdir()
    (tale / "onnx" / "config.json").write_text("{}")
    (tale / "onnx" / "model.safetensors").write_bytes(b"another format")
    shutil.copytree(tale, models / "owner" / "damaged")
    (models / "owner" / "damaged" / "config.json").write_text("{")
    shutil.copytree(tale, models / "gated" / "tale")
    pickled = save_model(models / "owner" / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    encoder = models / "owner" / "encoder"
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(encoder)
    tokenizer().save_pretrained(encoder)
    (encoder / "model.safetensors").write_bytes(b"never asked for")

    quantised = save_model(models / "owner" / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    shards = models / "owner" / "shards"
    model(0).half().save_pretrained(shards, max_shard_size="25KB")
    tokenizer().save_pretrained(shards)
    shutil.copytree(shards, models / "owner" / "incomplete")
    min((models / "owner" / "incomplete").glob("model-*.safetensors")).unlink()

    texts = datasets / "owner" / "texts"
    texts.mkdir(parents=True)
    tables = datasets / "owner" / "tables"
    for folder in ("long", "short"):
        (tables / folder).mkdir(parents=True)
    first = 0
    for split, count in SPLITS.items():
        stories = [story(first + number, 60) for number in range(count)]
        first += count
        lines = (json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(stories))
        (texts / f"{split}.jsonl").write_text("".join(lines))
        pq.write_table(pa.table({"title": ["t"] * count, "story": stories}), tables / "long" / f"{split}.parquet")
        short = pa.table({"title": ["t"] * 2, "story": stories[:2]})
        pq.write_table(short, tables / "short" / f"{split}.parquet")
    (tables / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {name}\n  data_files:\n"
            + "".join(f"  - split: {split}\n    path: {name}/{split}.parquet\n" for split in SPLITS)
            for name in ("long", "short")
        )
        + "---\n"
    )


@pytest.fixture(scope="module")
def trained(machine: Machine) -> tuple[dict[str, Any], set[str], list[str]]:
    """Train from a Hub id; return the manifest, the downloaded files and all requests."""
    result = machine.run("train", "stories", "--model", "owner/tale", "--out", "online", *TINY)
    assert result.code == 0, result.stderr
    manifest = json.loads((machine.work / "online" / "run.json").read_text())
    return manifest, machine.downloaded("owner/tale"), list(machine.requests)


@pytest.fixture(scope="module")
def offline_worker(machine: Machine, trained: Any) -> Iterator[Worker]:
    """Return a worker on the same machine and with the same caches, for which the hub is unreachable."""
    with socket.socket() as closed:  # bound but not listening: no other server can take the port meanwhile
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with Worker(machine.work, environment(machine.home, HF_ENDPOINT=url), impatient=True) as worker:
            yield worker


def account(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def splits(report: dict[str, Any]) -> dict[str, int]:
    """Return the number of documents per split, without empty splits."""
    found = {split: row["documents"] for split, row in report["text"]["splits"].items()}
    return {split: count for split, count in found.items() if count}


# -- models


def test_only_the_needed_files_are_downloaded(trained: tuple[dict[str, Any], set[str], list[str]]) -> None:
    manifest, downloaded, requests = trained
    assert manifest["status"] == "finished"
    assert downloaded == NEEDED
    unwanted = ("pytorch_model.bin", "onnx", ".py", "README.md")
    assert not [line for line in requests if any(word in line for word in unwanted)]
    assert len(requests) >= len(NEEDED) + 1


def test_the_commit_is_recorded(machine: Machine, trained: tuple[dict[str, Any], set[str], list[str]]) -> None:
    base = trained[0]["base"]
    assert (base["name"], base["kind"], base["revision"]) == ("owner/tale", "hub", hub.COMMIT)
    assert f"revision: {hub.COMMIT}" in (machine.work / "online" / "config.yaml").read_text().splitlines()


def test_weights_are_downloaded_once(machine: Machine, trained: Any) -> None:
    result = machine.run("generate", "owner/tale", "The lamp", "--max-new-tokens", "3")
    assert result.code == 0, result.stderr
    assert result.stdout.startswith("The lamp")
    assert machine.requests  # one for the commit of the branch
    assert machine.downloaded("owner/tale") == set()


def test_the_list_of_formats_downloads_no_weights(machine: Machine) -> None:
    result = machine.run("export", "owner/shards", "--to", "list", "--json")
    assert result.code == 0, result.stderr
    downloaded = machine.downloaded("owner/shards")
    assert "config.json" in downloaded
    assert not [name for name in downloaded if name.endswith(".safetensors")]
    weights = {each["format"]: each["weights"] for each in json.loads(result.stdout)}
    assert weights["safetensors"]["fp32"] == 2 * weights["safetensors"]["fp16"] > 10_000


@pytest.mark.parametrize("revision", [(), ("--revision", hub.COMMIT)], ids=["branch", "commit"])
def test_a_cached_model_works_offline(offline_worker: Worker, machine: Machine, trained: Any, revision: Any) -> None:
    out = machine.work / f"offline-{len(revision)}"
    result = offline_worker.run(
        "train", "stories", "--model", "owner/tale", *revision, "--offline", "--out", out, *TINY
    )
    assert result.code == 0, result.stderr
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["base"] == trained[0]["base"]
    weights = [(machine.work / name / "model" / "model.safetensors").read_bytes() for name in ("online", out)]
    assert weights[0] == weights[1]


def test_offline_without_the_model_in_the_cache(machine: Machine) -> None:
    error, hint = refused(
        machine.run("train", "stories", "--model", "owner/other", "--offline", "--out", "none", *TINY)
    )
    assert "owner/other is not on this machine" in error
    assert "without --offline" in hint
    assert machine.requests == []
    assert not (machine.work / "none").exists()


def test_pickled_weights_are_refused_before_they_are_downloaded(machine: Machine) -> None:
    error, hint = refused(machine.run("train", "stories", "--model", "owner/pickled", "--out", "none", *TINY))
    assert "owner/pickled has its weights only as pytorch_model.bin" in error
    assert "safetensors" in error
    assert "model.save_pretrained" in hint
    assert machine.downloaded("owner/pickled") == {"config.json"}
    assert not (machine.work / "none").exists()


def test_an_encoder_is_refused_by_its_config(machine: Machine) -> None:
    error, hint = refused(machine.run("train", "stories", "--model", "owner/encoder", "--out", "none", *TINY))
    assert "owner/encoder is an encoder (model_type bert)" in error
    assert "gpt2" in hint
    assert machine.downloaded("owner/encoder") == {"config.json"}


def test_quantised_weights_are_refused_by_the_config(machine: Machine) -> None:
    error, hint = refused(machine.run("generate", "owner/quantised", "The lamp"))
    assert "owner/quantised is quantised (awq, by its config.json)" in error
    assert "Choose the model that it was made from" in hint
    assert machine.downloaded("owner/quantised") == {"config.json"}


def test_weights_in_several_files_of_half_precision(machine: Machine) -> None:
    result = machine.run("generate", "owner/shards", "The lamp", "--max-new-tokens", "3")
    assert result.code == 0, result.stderr
    assert len([name for name in machine.downloaded("owner/shards") if name.endswith(".safetensors")]) == 4
    error, hint = refused(machine.run("generate", "owner/incomplete", "The lamp"))
    assert "owner/incomplete lacks 1 of its 4 weight files, such as model-00001-of-00004.safetensors." in error
    assert machine.downloaded("owner/incomplete") == {"config.json", "model.safetensors.index.json"}
    assert hint


def test_a_damaged_config_on_the_hub(machine: Machine) -> None:
    error, _ = refused(machine.run("generate", "owner/damaged", "The lamp"))
    assert "config.json" in error
    assert machine.downloaded("owner/damaged") == {"config.json"}


def test_a_missing_repository(machine: Machine) -> None:
    error, hint = refused(machine.run("train", "stories", "--model", "owner/tail", "--out", "none", *TINY))
    assert "There is no model 'owner/tail' on the Hub" in error
    assert "spelling" in hint
    assert len(machine.requests) == 1


def test_a_name_that_no_repository_has(machine: Machine) -> None:
    error, hint = refused(machine.run("generate", "owner/ta--il", "The lamp"))
    assert "'owner/ta--il' can't be a name on the Hub" in error
    assert "spelling" in hint
    assert machine.requests == []


def test_a_missing_revision(machine: Machine) -> None:
    words = ("train", "stories", "--model", "owner/tale", "--revision", "v9", "--out", "none")
    error, hint = refused(machine.run(*words, *TINY))
    assert "owner/tale has no revision 'v9'" in error
    assert "--revision" in hint


def test_a_gated_repository(machine: Machine) -> None:
    error, hint = refused(machine.run("train", "stories", "--model", "gated/tale", "--out", "none", *TINY))
    assert "gated/tale is gated" in error
    assert "HF_TOKEN" in hint
    assert machine.downloaded("gated/tale") <= {"config.json"}


def test_missing_sources_are_reported_before_the_model_is_downloaded(machine: Machine) -> None:
    error, hint = refused(machine.run("train", "storys", "--model", "owner/tale", "--out", "none", *TINY))
    assert "storys" in error
    assert "Did you mean stories?" in hint
    assert machine.requests == []


@pytest.mark.parametrize("what", ["model", "tokenizer", "dataset"])
def test_an_unreachable_hub(offline_worker: Worker, machine: Machine, what: str) -> None:
    words: dict[str, tuple[str | Path, ...]] = {
        "model": ("train", "stories", "--model", "owner/new", "--out", "none", *TINY),
        "tokenizer": ("check", "stories", "--tokenizer", "owner/new"),
        "dataset": ("train", "hf:owner/new", "--model", machine.work / "online", "--out", "none", *TINY),
    }
    error, hint = refused(offline_worker.run(*words[what]))
    assert "hub can't be reached" in error
    assert "owner/new" in error
    assert "HF_ENDPOINT" in hint
    assert "--offline" in hint
    assert not (machine.work / "none").exists()


# -- datasets


def test_the_splits_of_a_dataset_are_used(machine: Machine) -> None:
    result = machine.run("train", "hf:owner/texts", "--model", "owner/tale", "--out", "texts", *TINY)
    assert result.code == 0, result.stderr
    data = json.loads((machine.work / "texts" / "data.json").read_text())
    assert splits(data) == SPLITS
    tokens = data["tokens"]
    assert all(tokens[name] > 0 for name in ("trained", "validation", "test"))
    assert tokens["read"] == tokens["trained"] + tokens["validation"] + tokens["test"] + tokens["dropped"]
    assert [file["file"] for file in data["text"]["files"]] == [
        f"hf:owner/texts:{split}" for split in ("test", "validation", "train")
    ]


def test_a_single_split_of_a_dataset_is_divided(machine: Machine) -> None:
    report = account(machine.run("check", "hf:owner/texts:train", "--model", "owner/tale", "--json"))
    assert report["text"]["documents"] == SPLITS["train"]
    assert set(splits(report)) == set(SPLITS)


@pytest.mark.parametrize(("config", "expected"), [("long", SPLITS), ("short", dict.fromkeys(SPLITS, 2))])
def test_a_config_of_a_dataset(machine: Machine, config: str, expected: dict[str, int]) -> None:
    report = account(machine.run("check", f"hf:owner/tables/{config}", "--model", "owner/tale", "--json"))
    assert splits(report) == expected
    assert {file["text_column"] for file in report["text"]["files"]} == {"story"}
    split = account(machine.run("check", f"hf:owner/tables/{config}:test", "--model", "owner/tale", "--json"))
    assert split["text"]["documents"] == expected["test"]


@pytest.mark.parametrize("source", ["hf:owner/texts", "hf:owner/tables/long"])
def test_streaming_reads_the_same_text(machine: Machine, source: str) -> None:
    words = ("check", source, "--model", "owner/tale", "--json")
    whole, streamed = account(machine.run(*words)), account(machine.run(*words, "--streaming"))
    assert splits(streamed) == SPLITS
    assert streamed["tokens"] == whole["tokens"]
    assert streamed["text"]["words"] == whole["text"]["words"] > 0


def test_streamed_training_gives_the_same_weights(machine: Machine) -> None:
    for name, more in (("kept", ()), ("streamed", ("--streaming",))):
        result = machine.run("train", "hf:owner/texts", *more, "--model", "owner/tale", "--out", name, *TINY)
        assert result.code == 0, result.stderr
    weights = [(machine.work / name / "model" / "model.safetensors").read_bytes() for name in ("kept", "streamed")]
    assert weights[0] == weights[1]


def test_a_cached_dataset_works_offline(offline_worker: Worker, machine: Machine) -> None:
    online = account(machine.run("check", "hf:owner/texts", "--model", machine.work / "online", "--json"))
    words = ("--model", machine.work / "online", "--offline", "--json")
    assert account(offline_worker.run("check", "hf:owner/texts", *words))["tokens"] == online["tokens"]
    error, hint = refused(offline_worker.run("check", "hf:owner/unseen", *words))
    assert "hf:owner/unseen" in error
    assert "not downloaded before" in error
    assert "HF_ENDPOINT" in hint


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hf:owner/nothing", "the hub has no dataset owner/nothing"),
        ("hf:owner/texts:dev", "train"),
        ("hf:owner/tables/middle", "long"),
        ("hf:owner/tables", "long"),
        ("hf:a/b/c/d", "does not name a dataset"),
        ("hf:owner/texts:", "does not name a dataset"),
    ],
)
def test_invalid_dataset_names_are_refused(machine: Machine, source: str, words: str) -> None:
    error, hint = refused(machine.run("check", source, "--model", machine.work / "online", "--json"))
    assert source in error
    assert words in error
    assert hint


def test_quiet_prints_nothing_on_stderr(machine: Machine) -> None:
    for source in ("hf:owner/tables/short", "stories"):
        result = machine.run("check", source, "--model", "owner/tale", "--quiet")
        assert result.code == 0
        assert result.stderr == ""
        assert machine.requests


def test_a_missing_column_of_a_dataset(machine: Machine) -> None:
    words = ("train", "hf:owner/texts", "--text-column", "story", "--model", "owner/tale", "--out", "none", *TINY)
    error, hint = refused(machine.run(*words))
    assert "has no column 'story'" in error
    assert "'id', 'text'" in error
    assert "--text-column" in hint
    assert not (machine.work / "none").exists()


def test_failed_runs_leave_no_partial_stores(machine: Machine, trained: Any) -> None:
    for source in ("storys", "hf:owner/nothing"):
        refused(machine.run("train", source, "--model", "owner/tale", "--out", "none", *TINY))
    cache = machine.home / "finetale"
    assert {item.name for item in cache.iterdir()} <= {"tokens", "tokenizers", "stdin"}
    stores = list((cache / "tokens").iterdir())
    assert stores
    assert all((store / "store.json").is_file() for store in stores)
