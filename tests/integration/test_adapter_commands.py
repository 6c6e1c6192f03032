"""The commands on adapter/ and model/ of a run with an adapter, and on a run whose adapter/ or model/ is corrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from children import call
from finetale import models
from finetale.cli import run
from finetale.config import SamplingSettings
from finetale.errors import ModelError
from finetale.generate import Generator
from finetale.rundir import RunDirectory, sha256_of, verify_folder
from finetale.server.engines import Job
from finetale.server.model_spec import ModelSpec
from finetale.tokens import train_tokenizer
from scene import command_of, copy_run, digest_of, make_run
from tiny import story

SHORT = ("--max-steps", "1", "--num-prompts", "1", "--num-samples", "1", "--max-new-tokens", "2", "--no-tensorboard")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stories/, base/ and run/, a run of six steps with an adapter."""
    return make_run(tmp_path_factory.mktemp("adapters"), *command_of("lora"))


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run beside its base, as the current folder."""
    settings = copy_run(finished, tmp_path)
    RunDirectory(tmp_path / "run").update_manifest(config_sha256=sha256_of(settings))
    monkeypatch.setenv("FINETALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flip(file: Path) -> None:
    """Change the last byte of a file."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def done(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """Run a command that must succeed; return what it prints on stdout and stderr."""
    capsys.readouterr()
    assert run(list(words)) == 0
    found = capsys.readouterr()
    return found.out, found.err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must be refused; return what it prints on stderr."""
    capsys.readouterr()
    assert run(list(words)) == 1
    return capsys.readouterr().err


NAMES = ("run/model", "run/adapter", "run/checkpoints/step-00000006")


def test_the_figures_of_the_adapter_are_those_of_the_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[Any] = []
    for name in NAMES:
        figures = json.loads(done(capsys, "evaluate", name, "stories", "--json", "--quiet")[0])
        assert figures.pop("model") == name
        found.append(figures)
    assert found[0]["loss"] > 1
    assert found[1] == found[2] == found[0]
    words = ("--text", "stories", "--num-prompts", "1", "--num-samples", "1", "--max-new-tokens", "3", "--json", "-q")
    compared = [json.loads(done(capsys, "compare", "base", name, *words)[0]) for name in NAMES[:2]]
    assert [each["after"].pop("name") for each in compared] == ["run/model", "run/adapter"]
    assert compared[0]["after"] == compared[1]["after"]
    assert compared[0]["after"]["test"]["loss"] == found[0]["loss"] < compared[0]["before"]["test"]["loss"]


def test_a_finished_run_is_compared_audited_and_reported_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = RunDirectory(here / "run")
    before, digest = place.read_comparison(), digest_of(place.root)
    assert before.memorisation is not None
    assert before.memorisation.training.of_tokens > 100
    done(capsys, "compare", "run", "-q")
    assert place.read_comparison().model_dump() == before.model_dump()
    place.report.unlink()
    done(capsys, "report", "run")
    assert "LoRA of rank 2" in place.report.read_text(encoding="utf-8")
    assert digest_of(place.root) == digest


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_trained_further_with_all_weights(name: str, here: Path) -> None:
    code, output = call(here, "train", "stories", "--model", name, "--out", "further", *SHORT)
    assert code == 0, output
    manifest = RunDirectory(here / "further").read_manifest()
    assert manifest.base is not None
    assert manifest.base.base == (None if name == "run/model" else str(here / "base"))
    code, output = call(here, "compare", "further")
    assert code == 0, output


def test_an_adapter_is_not_trained_beside_another(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "stories", "--method", "lora", "--out", "second", *SHORT)
    message = refused(capsys, *words, "--model", "run/adapter")
    assert "run/adapter is an adapter, so no other adapter can be trained beside it." in message
    assert "finetale merge" in message
    assert not (here / "second").exists()
    done(capsys, "merge", "run/adapter", "--out", "merged")
    code, output = call(here, *words, "--model", "merged")
    assert code == 0, output


@pytest.mark.parametrize("entries", [400, 390])
def test_merge_keeps_the_end_ids_of_a_run_with_another_tokenizer(entries: int, here: Path) -> None:
    """Ids that the base lists mean other tokens in the tokenizer of the run."""
    listed = here / "base" / "generation_config.json"
    values = json.loads(listed.read_text(encoding="utf-8")) | {"eos_token_id": [0, 7], "suppress_tokens": [9]}
    listed.write_text(json.dumps(values), encoding="utf-8")
    train_tokenizer([story(number) for number in range(20)], entries).save_pretrained(here / "other")
    words = [*command_of("lora"), "--audit-tokens", "0", "--out", "second", "--tokenizer", "other"]
    words += ["--attention-dropout", "0.1"]  # the base's rate, which an adapter without its run has too
    code, output = call(here, *words)
    assert code == 0, output
    code, output = call(here, "merge", "second", "--out", "merged")
    assert code == 0, output
    shutil.copytree("second/adapter", "alone")  # beside its base, without the settings of the run
    code, output = call(here, "merge", "alone", "--out", "third")
    assert code == 0, output
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
        wanted = (here / "second" / "model" / name).read_bytes()
        assert (here / "merged" / name).read_bytes() == wanted
        if entries != 400:  # then it is not the tokenizer of the base
            assert (here / "third" / name).read_bytes() == wanted
    assert json.loads((here / "merged" / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == 0


def test_an_adapter_that_names_itself_as_its_base_is_refused(here: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree("run/adapter", name)
        (here / name / "manifest.json").unlink()
    for name, base in (("one", "./one"), ("one", "./two"), ("two", "./one")):
        file = here / name / "adapter_config.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(values | {"base_model_name_or_path": base}), encoding="utf-8")
        with pytest.raises(ModelError, match=r"The base of the adapter one can't be used: .* is an adapter too"):
            models.load("one")


def test_openvino_serves_the_adapter_with_its_base(here: Path) -> None:
    settings = SamplingSettings.resolve({"temperature": 0, "max_new_tokens": 8})
    loaded = models.load("run/model")
    expected = Generator(loaded.model, loaded.tokenizer).generate(["The lamp"], settings)[0][0].text
    base = models.load("base")
    assert Generator(base.model, base.tokenizer).generate(["The lamp"], settings)[0][0].text != expected
    for engine in ("openvino", "torch"):
        spec = ModelSpec("adapter", lambda notify: models.open_model("run/adapter", notify), engine=engine, slots=2)
        served = spec.open(lambda event: None, {})
        assert served is not None
        assert spec.open(lambda event: None, {"adapter": served}) is None  # a reload finds the same weights
        job = Job([0, *loaded.tokenizer.encode("The lamp")], settings)
        worker = served.worker
        assert worker.engine.name == engine
        worker.engine.start([[job]])
        for _ in range(8):
            worker.engine.step()
        assert loaded.tokenizer.decode(job.tokens).startswith(expected)
        served.close(1)


def test_vllm_does_not_serve_an_adapter_without_saying_so(here: Path) -> None:
    spec = ModelSpec("adapter", lambda notify: models.open_model("run/adapter", notify), engine="vllm")
    with pytest.raises(ModelError, match="The engine vllm does not serve adapters") as caught:
        spec.open(lambda event: None, {})
    assert "finetale merge run/adapter --out FOLDER" in caught.value.hint


# Corrupted files


def test_a_corrupted_adapter_of_a_finished_run_is_written_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = RunDirectory(here / "run")
    before, card = digest_of(place.root), (place.adapter / "adapter_config.json").read_bytes()
    flip(place.adapter / "adapter_model.safetensors")
    assert "corrupted" not in done(capsys, "generate", "run", "The lamp", "--max-new-tokens", "2")[1]
    message = refused(capsys, "generate", "run/adapter", "The lamp", "--max-new-tokens", "2")
    assert "The adapter run/adapter is corrupted (adapter_model.safetensors: content differs" in message
    assert "`finetale compare run` writes it again" in message
    _, message = done(capsys, "merge", "run", "--out", "merged")
    best = place.read_manifest().best_step
    assert (
        f"run/adapter is corrupted (adapter_model.safetensors: content differs from its SHA-256); the checkpoint of \
step {best} is used instead."
        in message
    )
    weights = [here / name / "model.safetensors" for name in ("merged", "run/model")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    _, message = done(capsys, "compare", "run")
    assert f"it is written again from the checkpoint of step {best}." in message
    assert verify_folder(place.adapter) == []
    assert digest_of(place.root) == before
    assert (place.adapter / "adapter_config.json").read_bytes() == card
    done(capsys, "generate", "run/adapter", "The lamp", "--max-new-tokens", "2")


def test_a_corrupted_adapter_whose_checkpoint_is_gone_is_reported(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = RunDirectory(here / "run")
    shutil.rmtree(place.checkpoints)
    flip(place.adapter / "adapter_config.json")
    assert "is corrupted" in refused(capsys, "merge", "run", "--out", "merged")
    _, message = done(capsys, "compare", "run")
    assert "and no checkpoint has its weights" in message
    assert place.report.is_file()


def test_a_corrupted_model_of_a_finished_run_is_merged_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = RunDirectory(here / "run")
    before = digest_of(place.root)
    flip(place.model / "model.safetensors")
    for words in (("generate", "run", "The lamp", "--max-new-tokens", "2"), ("evaluate", "run", "stories")):
        assert "the adapter and its base are used instead" in done(capsys, *words)[1]
    assert "is corrupted" in refused(capsys, "generate", "run/model", "The lamp")
    done(capsys, "compare", "run")
    assert digest_of(place.root) == before
    assert verify_folder(place.model) == []


def test_a_run_that_was_stopped_ends_with_an_intact_adapter(here: Path) -> None:
    """After a resume no step may be better, so adapter/ would stay as it is."""
    place = RunDirectory(here / "run")
    before = digest_of(place.root)
    place.update_manifest(status="interrupted")
    place.report.unlink()
    flip(place.adapter / "adapter_model.safetensors")
    code, output = call(here, "resume", "run")
    assert code == 0, output
    assert "it is written again" in output
    assert digest_of(place.root) == before
    assert verify_folder(place.adapter) == []
