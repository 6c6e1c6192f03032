"""Test the commands from text to report with a tiny model: their files, output and consistency."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import finetale as ft
from finetale.cli import demo, run
from finetale.config import TextSettings
from finetale.rundir import RunDirectory, verify_folder
from finetale.text import read_parts
from tiny import MODEL_FILES, story, write_stories


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Run a command that must succeed; return its standard output."""
    capsys.readouterr()
    code = run([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def call_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    return json.loads(call(capsys, *words, "--json"))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settings_of(run: Path) -> dict[str, Any]:
    found = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_exact_files_of_a_run(here: Path) -> None:
    files = sorted(p.relative_to(here / "run").as_posix() for p in (here / "run").rglob("*") if p.is_file())
    boards = [name for name in files if name.startswith("tensorboard/events.out.tfevents.")]
    steps = sorted({name.split("/")[1] for name in files if name.startswith("checkpoints/")})
    assert len(boards) == 1
    assert len(steps) == 2
    tokenizer = ("tokenizer.json", "tokenizer_config.json")
    store = ("context.npy", "manifest.json", "parts.npy", "personal.npy", "sources.json", "store.json", "tokens.bin")
    per_checkpoint = (
        "config.json",
        "config.yaml",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        *tokenizer,
    )
    assert files == sorted(
        [
            ".lock",
            "comparison.json",
            "config.yaml",
            "data.json",
            "metrics.jsonl",
            "report.html",
            "run.json",
            *boards,
            *(f"checkpoints/{step}/{name}" for step in steps for name in per_checkpoint),
            *(f"model/{name}" for name in (*MODEL_FILES, "manifest.json")),
            *(f"tokens/{name}" for name in store),
        ]
    )
    for folder in ("model", "tokens", *(f"checkpoints/{step}" for step in steps)):
        assert verify_folder(here / "run" / folder) == []


def test_token_counts_of_the_account_add_up(here: Path) -> None:
    tokens = read(here / "run/data.json")["tokens"]
    tokenizer = AutoTokenizer.from_pretrained(here / "base")
    files = sorted((here / "stories").glob("*.txt"))
    assert len(files) == 60
    counted = sum(len(tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]) + 1 for file in files)
    assert tokens["read"] == counted
    assert tokens["read"] == tokens["trained"] + tokens["validation"] + tokens["test"] + tokens["dropped"]
    assert min(tokens["trained"], tokens["validation"], tokens["test"]) > 0
    comparison = read(here / "run/comparison.json")
    assert comparison["after"]["validation"]["tokens"] == tokens["validation"]
    assert comparison["after"]["test"]["tokens"] == tokens["test"]
    trained = [row.to_dict() for row in RunDirectory(here / "run").read_events() if row.event == "train"]
    assert trained[-1]["tokens"] == 3 * tokens["trained"]  # three epochs


def test_the_verdict_says_that_the_held_out_text_is_small(here: Path) -> None:
    """The run has too few held-out documents for the verdict `improved`. The demo has enough."""
    comparison = read(here / "run/comparison.json")
    assert (comparison["improved"], comparison["improved_reason"]) == (None, "too few documents")
    assert comparison["verdict"].startswith("On text it never saw, perplexity fell from ")
    assert comparison["verdict"].endswith("so the figures hold for this text only.")
    for split in ("validation", "test"):
        before, after = comparison["before"][split], comparison["after"][split]
        assert after["perplexity"] < 0.8 * before["perplexity"]
        assert after["perplexity"] == pytest.approx(math.exp(after["loss"]))
        assert {"loss", "perplexity", "word_perplexity", "bits_per_byte", "tokens"} <= set(after)
    assert len(comparison["before"]["samples"]) == len(comparison["after"]["samples"]) == 6
    report = (here / "run/report.html").read_text(encoding="utf-8")
    assert "Better on this text; whether on other text is not known" in report
    assert "not finished" not in report


def test_the_manifest_has_status_versions_and_hashes(here: Path) -> None:
    manifest = read(here / "run/run.json")
    assert manifest["status"] == "finished"
    assert manifest["steps"] >= manifest["best_step"] > 0
    assert (
        manifest["base"]["sha256"] == hashlib.sha256(bytes.fromhex(sha256(here / "base/model.safetensors"))).hexdigest()
    )
    assert {"torch", "transformers", "finetale", "python"} <= set(manifest["versions"])
    assert settings_of(here / "run")["batch_size"] == 8
    assert manifest["config_sha256"] == sha256(here / "run/config.yaml")
    assert "config" not in manifest, "the manifest has no second copy of the settings"


def test_plain_transformers_gives_the_same_loss(here: Path) -> None:
    """Load model/ without Finetale and measure the validation documents one by one."""
    model = AutoModelForCausalLM.from_pretrained(here / "run/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(here / "run/model")
    figures = read(here / "run/comparison.json")["after"]["validation"]
    parts, _ = read_parts([str(here / "stories")], TextSettings())
    nats = tokens = documents = 0.0
    for part in parts:
        if part.split != "validation":
            continue
        ids = [
            tokenizer.bos_token_id,
            *tokenizer(part.text, add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        documents += 1
        for at in range(0, len(ids) - 1, 64):
            piece = torch.tensor(ids[at : at + 65])
            with torch.inference_mode():
                logits = model(piece[None, :-1]).logits[0]
            nats += float(F.cross_entropy(logits.double(), piece[1:], reduction="sum"))
            tokens += len(piece) - 1
    assert documents == figures["documents"]
    assert tokens == figures["tokens"]
    assert nats / tokens == pytest.approx(figures["loss"], rel=1e-4)


def test_the_saved_model_works_in_a_text_generation_pipeline(here: Path) -> None:
    writer = pipeline("text-generation", model=str(here / "run/model"))
    text = writer("The lamp", max_new_tokens=8)[0]["generated_text"]
    assert text.startswith("The lamp")
    assert len(text) > len("The lamp")


def test_the_model_card_has_valid_metadata(here: Path) -> None:
    card = (here / "run/model/README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-generation"
    comparison = read(here / "run/comparison.json")
    assert comparison["verdict"].split(" (")[0] in body
    assert f"{read(here / 'run/data.json')['tokens']['read']:,}" in body


def test_the_resolved_settings_give_the_same_weights_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "train", "--config", "run/config.yaml", "--out", "again", "--quiet")
    assert sha256(here / "again/model/model.safetensors") == sha256(here / "run/model/model.safetensors")
    assert read(here / "again/run.json")["data_sha256"] == read(here / "run/run.json")["data_sha256"]


def test_the_manifest_records_the_probe_and_the_speed_layer(here: Path) -> None:
    manifest, settings = read(here / "run/run.json"), yaml.safe_load((here / "run/config.yaml").read_text())
    chosen = manifest["speed"]["probe"]["chosen"]
    assert manifest["speed"]["probe"]["skipped"] == "the run is very short"
    assert manifest["speed"]["documents"] == "document borders passed to attention"
    assert manifest["speed"]["logits"] == "in chunks"
    assert {name: settings[name] for name in chosen} == chosen
    assert set(chosen) == {"precision", "attention", "micro_batch_size", "compile", "threads"}
    assert None not in chosen.values()


def test_a_run_without_the_speed_layer_has_the_same_loss(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--config", "run/config.yaml", "--out", "plain", "--no-speed", "--attention", "model", "--quiet")
    call(capsys, "train", *words)
    how = read(here / "plain/run.json")["speed"]
    assert set(how) == {"activation", "documents", "dropout", "logits", "probe"}
    assert [how[name] for name in ("activation", "dropout")] == ["the model's own"] * 2
    assert [how[name] for name in ("documents", "logits")] == ["restarting positions", "all at once"]
    before, after = (read(here / f"{name}/comparison.json")["after"]["validation"]["loss"] for name in ("run", "plain"))
    assert after == pytest.approx(before, rel=5e-3)
    assert sha256(here / "plain/model/model.safetensors") != sha256(here / "run/model/model.safetensors")


def test_frozen_weights_do_not_change(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "train", "--config", "run/config.yaml", "--out", "frozen", "--freeze", "1", "--quiet")
    base, tuned = (load_file(here / name / "model.safetensors") for name in ("base", "frozen/model"))
    same = {name for name in base if torch.equal(base[name], tuned[name])}
    assert {"transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight"} <= same
    assert len(same) == 14
    assert "transformer.h.1.mlp.c_fc.weight" in base.keys() - same


def test_the_cache_notices_changed_text(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stories = write_stories(tmp_path / "stories", 25)
    stores = lambda: len(list((here / "cache/tokens").iterdir()))  # noqa: E731
    before = stores()
    reports = []
    for _ in range(2):
        reports.append(call_json(capsys, "plan", stories, "--model", "base"))
    assert stores() == before + 1
    assert reports[0]["data"] == reports[1]["data"]
    (stories / "003.txt").write_text(story(77), encoding="utf-8")
    changed = call_json(capsys, "plan", stories, "--model", "base")
    assert stores() == before + 2
    assert changed["data"]["tokens"] != reports[0]["data"]["tokens"]


def test_plan_measures_speed_and_writes_no_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    plan = call_json(capsys, "plan", "stories", "--model", "base", "--epochs", "3", "--batch-size", "8")
    assert sorted(here.iterdir()) == before
    manifest = read(here / "run/run.json")
    assert plan["steps"] == manifest["steps"] or settings_of(here / "run")["patience"]
    assert plan["config"]["batch_size"] == 8
    assert plan["tokens_per_second"] > 0
    assert plan["train_seconds"] == pytest.approx(plan["targets"] / plan["tokens_per_second"], abs=0.1)
    assert plan["memory"]["expected_bytes"] > 16 * plan["model"]["parameters"]
    text = call(capsys, "plan", "stories", "--model", "base")
    parts = [plan[f"{name}_seconds"] for name in ("preparation", "train", "evaluation", "comparison")]
    assert plan["total_seconds"] == pytest.approx(sum(parts), abs=0.3)
    assert min(parts) > 0
    for word in ("Model", "Tokens", "Steps", "Speed", "Memory", "Time", "Settings", "Probe"):
        assert f"\n{word} " in "\n" + text


def test_check_counts_documents_and_tokens(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = call_json(capsys, "check", "stories", "--model", "base")
    assert report["tokens"] == read(here / "run/data.json")["tokens"]
    assert report["text"]["documents"] == 60
    text = call(capsys, "check", "stories", "--model", "base")
    assert "60 documents" in text
    assert "All of it could be read." in text
    assert "Tokens are not counted" in call(capsys, "check", "stories", "--offline")


def test_check_prints_a_shared_hint_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "drafts").mkdir()
    locked = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le")
    for name, data in (("a.docx", locked), ("b.docx", b"PK\x03\x04"), ("c.docx", locked), ("d.txt", b"A tale.")):
        (here / "drafts" / name).write_bytes(data)
    assert run(["check", "drafts", "--model", "base"]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    start = lines.index("error drafts/a.docx: it is encrypted with a password")
    assert lines[start + 1 : start + 3] == [
        "error drafts/c.docx: it is encrypted with a password",
        "Save it without a password.",
    ]
    assert lines[start + 3].startswith("error drafts/b.docx: ")
    assert lines.count("Save it without a password.") == 1
    assert "hint: Correct the errors, or name other sources. Training would stop there." in lines


def test_check_counts_characters_but_no_words_of_chinese_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "zh.txt").write_text("从前有一座山，山上有一座庙。\n" * 40, encoding="utf-8")
    text = call(capsys, "check", "zh.txt", "--model", "base")
    assert "1 document, 599 characters\n" in text
    assert "words" not in text


def test_check_reports_missing_sources(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "nowhere", "empty.txt", "--model", "base", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["text"]["problems"]
    assert [(row["file"], row["kind"], row["fatal"]) for row in problems] == [
        ("nowhere", "missing", True),
        ("empty.txt", "missing", True),
    ]
    assert run(["check", "nowhere", "--model", "base"]) == 1
    assert "nowhere: there is no such file or folder" in capsys.readouterr().out


def test_generate_is_reproducible_and_streams_the_same_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--max-new-tokens", "12", "--seed", "5")
    one = call_json(capsys, "generate", "run", "The lamp", "-n", "3", *options)
    two = call_json(capsys, "generate", "run", "The lamp", "-n", "3", *options)
    assert one == two
    texts = [sample["text"] for sample in one["samples"]]
    assert len(texts) == 3
    assert len(set(texts)) > 1
    assert call(capsys, "generate", "run", "The lamp", "--stream", *options) == "The lamp" + texts[0] + "\n"
    prompts = here / "prompts.txt"
    prompts.write_text("The lamp\nA heron\n", encoding="utf-8")
    many = call_json(capsys, "generate", "run", "--prompts-file", prompts, *options)
    assert [sample["prompt"] for sample in many["samples"]] == ["The lamp", "A heron"]
    assert many["samples"][0]["text"] == texts[0]


def test_evaluate_agrees_with_the_comparison(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, _ = read_parts([str(here / "stories")], TextSettings())
    held = here / "held.jsonl"
    held.write_text(
        "".join(json.dumps({"text": part.text}) + "\n" for part in parts if part.split == "test"), encoding="utf-8"
    )
    result = call_json(capsys, "evaluate", "run", held, "--block-size", "64", "--precision", "fp32")
    figures = read(here / "run/comparison.json")["after"]["test"]
    for key in ("loss", "perplexity", "word_perplexity", "bits_per_byte"):
        assert result[key] == pytest.approx(figures[key], rel=1e-6)
    sliding = call_json(capsys, "evaluate", "run", held, "--block-size", "64", "--stride", "16", "--precision", "fp32")
    assert sliding["tokens"] == result["tokens"]
    assert sliding["loss"] != result["loss"]
    assert "bits per byte" in call(capsys, "evaluate", "run", held)


def test_compare_two_models_and_compare_a_run_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = read(here / "run/comparison.json")
    pair = call_json(capsys, "compare", "base", "run", "--html", here / "pair.html")
    assert pair["after"]["test"] == first["after"]["test"]
    assert pair["before"]["validation"] == first["before"]["validation"]
    assert (here / "pair.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    reverse = call_json(capsys, "compare", "run", "base", "--text", "stories", "--prompt", "The lamp")
    assert reverse["improved"] is False
    assert "did not get better" in reverse["verdict"]
    assert reverse["prompts"] == ["The lamp"]
    assert reverse["after"]["test"]["tokens"] == read(here / "run/data.json")["tokens"]["read"]
    call(capsys, "compare", "run", "--quiet")
    assert read(here / "run/comparison.json") == first


def test_report_writes_the_same_page_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "run/report.html").read_bytes()
    (here / "run/report.html").unlink()
    assert call(capsys, "report", "run").strip() == "run/report.html"
    assert (here / "run/report.html").read_bytes() == before


def test_runs_lists_runs_and_doctor_describes_the_machine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["run"]: row for row in call_json(capsys, "runs")}
    assert rows["run"]["status"] == "finished"
    assert rows["run"]["after"] == read(here / "run/comparison.json")["after"]["test"]["perplexity"]
    assert "finished" in call(capsys, "runs")
    empty = here / "nothing"
    empty.mkdir()
    assert "There are no runs here." in call(capsys, "runs", empty)
    doctor = call_json(capsys, "doctor")
    assert doctor["hardware"]["cores"] >= 1
    assert doctor["advice"]
    assert "Processor" in call(capsys, "doctor")


def test_a_new_model_is_trained_on_standard_input(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n\n".join(story(number) for number in range(40)).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    words = ["train", "-", "--documents", "blank-line", "--model", "new:1m", "--vocab-size", "300", "--max-steps", "3"]
    call(capsys, *words, "--out", "piped", "--max-new-tokens", "5", "--no-tensorboard", "--quiet")
    manifest, data = read(here / "piped/run.json"), read(here / "piped/data.json")
    assert manifest["base"]["kind"] == "new"
    assert manifest["steps"] == 3
    assert data["text"]["documents"] == 40
    assert not (here / "piped/tensorboard").exists()
    assert read(here / "piped/comparison.json")["improved"] is not True, (
        "beating random weights does not count as improved"
    )
    call(capsys, "compare", "piped", "--quiet")  # regenerates the random weights of the base from the seed


def test_an_explicit_validation_text_is_the_only_held_out_text(
    here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    held = tmp_path / "held.txt"
    held.write_text(story(500, words=300), encoding="utf-8")
    call(
        capsys,
        "train",
        "stories",
        "--model",
        "base",
        "--validation",
        held,
        "--max-steps",
        "2",
        "--out",
        "explicit",
        "--quiet",
    )
    tokens = read(here / "explicit/data.json")["tokens"]
    assert tokens["test"] == 0
    assert tokens["trained"] == read(here / "run/data.json")["tokens"]["read"]
    comparison = read(here / "explicit/comparison.json")
    assert comparison["after"]["test"] is None
    assert comparison["after"]["validation"]["documents"] == 1
    assert (comparison["interval_unit"], comparison["after"]["validation"]["interval"]) == (None, None)
    assert "on the validation text, which also chose the step that was kept" in comparison["verdict"].lower()
    assert comparison["verdict"].endswith("This is one document, so the figures hold for this text only.")


def test_the_python_interface_gives_the_same_run_as_the_command(here: Path) -> None:
    run = ft.train(
        "stories",
        model="base",
        epochs=3,
        batch_size=8,
        learning_rate=3e-3,
        precision="fp32",
        max_new_tokens=20,
        out="from-python",
        quiet=True,
    )
    command = ft.Run("run")
    assert run.comparison.after.perplexity == command.comparison.after.perplexity
    assert run.comparison.verdict == command.comparison.verdict
    assert sha256(run.path / "model/model.safetensors") == sha256(command.path / "model/model.safetensors")
    writer = ft.load(run)
    texts = writer.generate("The lamp", n=2, seed=0, max_new_tokens=10)
    assert len(texts) == 2
    assert "".join(writer.stream("The lamp", seed=0, max_new_tokens=10)) == texts[0]
    assert ft.check("stories").text.documents == 60
    assert ft.evaluate(run, "stories", precision="fp32").documents == 60
    assert ft.compare("base", run).verdict == run.comparison.verdict
    assert ft.plan("stories", model="base").model.name == "base"


def test_the_demo_with_few_steps(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make demo` runs the whole demo."""
    monkeypatch.setitem(demo.SETTINGS, "max_steps", 6)
    monkeypatch.setitem(demo.SETTINGS, "max_new_tokens", 20)
    monkeypatch.setitem(demo.SETTINGS, "audit_tokens", 2000)
    monkeypatch.setitem(demo.SETTINGS, "num_samples", 1)
    text = call(capsys, "demo", "--out", "demo", "--quiet")
    assert "perplexity" in text
    assert "demo/report.html" in text
    assert "finetale train YOUR-FOLDER --model bundled" in text
    manifest = read(here / "demo/run.json")
    assert (manifest["base"]["kind"], settings_of(here / "demo")["sources"]) == ("bundled", ["bundled:tales"])
    comparison = read(here / "demo/comparison.json")
    assert comparison["improved"] is True
    assert read(here / "demo/data.json")["text"]["documents"] == 132
    call(capsys, "demo", "--out", "demo", "--quiet")  # replaces its own run
    assert read(here / "demo/comparison.json") == comparison


def test_the_demo_does_not_replace_other_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(here / "run", here / "mine")
    before = sha256(here / "mine/model/model.safetensors")
    assert run(["demo", "--out", "mine"]) == 1
    assert "contains a run that is not the demo's" in capsys.readouterr().err
    assert sha256(here / "mine/model/model.safetensors") == before
    tales = [
        "train",
        "bundled:tales",
        "--model",
        "run",
        "--max-steps",
        "1",
        "--name",
        "demo",
        "-q",
        "--max-new-tokens",
        "5",
    ]
    assert run(tales) == 0
    capsys.readouterr()
    assert run(["demo"]) == 1  # runs/demo has the demo's text, but other settings
    assert "contains a run that is not the demo's" in capsys.readouterr().err


def test_every_command_accepts_the_bundled_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "generate", "bundled", "The old", "--max-new-tokens", "5", "--seed", "1").strip()
    assert call_json(capsys, "evaluate", "bundled", "stories/000.txt")["documents"] == 1
    few = ("--max-new-tokens", "5", "--num-samples", "1", "--num-prompts", "1")
    compared = call_json(capsys, "compare", "new:64x1", "bundled", "--text", "stories/000.txt", *few)
    assert (compared["improved"], compared["improved_reason"]) == (None, "random base")
    assert compared["verdict"].startswith(
        "Compared with random weights, which any training beats: on the given text, perplexity fell from "
    )
    assert compared["verdict"].endswith("This is one document, so the figures hold for this text only.")
    assert call_json(capsys, "plan", "stories", "--model", "bundled")["model"]["name"] == "bundled"
    assert call_json(capsys, "check", "stories", "--model", "bundled")["tokens"]["read"] > 0
    short = ("--max-steps", "2", "--batch-size", "1", "--block-size", "64", "--audit-tokens", "500", *few, "-q")
    call(capsys, "train", "stories", "--model", "new:64x1", "--tokenizer", "bundled", *short, "--out", "tok")
    assert (
        read(here / "tok/model/config.json")["vocab_size"]
        == read(Path(ft.__file__).parent / "bundled/model/config.json")["vocab_size"]
    )
    assert ft.load("bundled").generate("The old", max_new_tokens=5)[0].strip()
    call(capsys, "train", "stories", "--model", "bundled", *short, "--out", "from-bundled")
    call(capsys, "compare", "from-bundled", "--audit-tokens", "500", *few)
    assert "the Finetale package" in (here / "from-bundled/report.html").read_text(encoding="utf-8")


def test_text_without_spaces_has_no_word_perplexity(
    here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tales = tmp_path / "tales"
    tales.mkdir()
    for number in range(5):
        (tales / f"{number}.txt").write_text("从前有一座山，山上有一座庙。" * (number + 3), encoding="utf-8")
    found = call_json(capsys, "evaluate", "base", str(tales))
    assert (found["word_perplexity"], found["words"], found["interval"]["word_perplexity"]) == (None, None, None)
    low, high = found["interval"]["bits_per_byte"]
    assert low < found["bits_per_byte"] < high
    assert (found["interval_method"], found["documents"]) == ("jackknife-t", 5)
    shown = call(capsys, "evaluate", "base", str(tales))
    assert "word" not in shown
    assert "5 documents" in shown
    shown = call(capsys, "evaluate", "base", str(tales / "0.txt"))
    assert "1 document\n" in shown
    no_interval = (
        "There is no 95% interval, because it needs at least 5 documents. The figures hold for this text only."
    )
    assert no_interval in " ".join(shown.split())


def test_a_path_can_name_a_folder_called_bundled(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(here / "run/model", "bundled")
    shutil.copytree(here / "stories", "bundled:tales")
    own = sha256(Path("bundled/model.safetensors"))
    assert ft.load(Path("bundled")).provenance.sha256 == ft.load("./bundled").provenance.sha256
    assert ft.load("bundled").provenance.kind == "bundled"
    assert call_json(capsys, "check", "./bundled:tales", "--model", "./bundled")["text"]["documents"] == 60
    call(
        capsys,
        "train",
        "bundled:tales",
        "--validation",
        "./bundled:tales",
        "--model",
        "./bundled",
        "--max-steps",
        "1",
        "--out",
        "r",
        "-q",
    )
    manifest = read(Path("r/run.json"))
    assert manifest["base"]["kind"] == "local"
    assert settings_of(Path("r"))["sources"] == ["bundled:tales"]
    assert settings_of(Path("r"))["validation"] == [str(tmp_path / "bundled:tales")]
    assert read(Path("r/data.json"))["text"]["documents"] == 132 + 60
    assert sha256(Path("bundled/model.safetensors")) == own
    capsys.readouterr()
    assert run(["train", "bundled:tales", "--model", "bundled", "--out", "bundled", "--overwrite"]) == 1
    assert "the name of a model" in capsys.readouterr().err


def test_early_stopping_is_reported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "stories", "--model", "run", "--learning-rate", "0.3", "--patience", "1", "--epochs", "5"]
    capsys.readouterr()
    assert run([*words, "--out", "early", "--max-new-tokens", "5"]) == 0
    err = capsys.readouterr().err
    manifest = read(here / "early/run.json")
    assert manifest["best_step"] == 0
    assert f"Stopped after {manifest['steps']} of " in err
    assert "the best is from step 0" in err
    comparison = read(here / "early/comparison.json")
    assert comparison["improved"] is False
    assert "did not get better" in comparison["verdict"]
