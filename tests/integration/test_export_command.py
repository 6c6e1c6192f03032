"""`finetale export`: what each format writes, what proves it, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import architectures
from finetale import models, pipeline
from finetale.cli import run
from finetale.errors import ConfigError, ModelError, RunError
from finetale.export import FORMATS, gguf, safetensors
from finetale.export.llama_cpp import LlamaRuntime
from finetale.models import LoadedModel
from finetale.rundir import RunDirectory, verify_folder
from finetale.schema import Event, ExportFile
from scene import command_of, make_run
from tiny import tokenizer

SHARDS = {"max_shard_size": "30KB"}
PROOF = {"README.md", "export.json", "manifest.json"}
FOLDER = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that trained an adapter."""
    return make_run(tmp_path_factory.mktemp("export"), *command_of("lora")) / "run"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return architectures.ALL[0].save(Path("base"))


def quiet(event: Event) -> None:
    """Receive an event."""


def export(name: Path | str, to: str, **options: Any) -> tuple[Path, ExportFile]:
    return pipeline.export_model(str(name), to, quiet, **options)


def test_a_run_is_exported_into_its_own_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(finished), "--to", "gguf", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    place = finished / "exports" / "gguf-q8_0"
    assert printed["path"] == str(place)
    assert {file.name for file in place.iterdir()} == {"model-q8_0.gguf", "Modelfile"} | PROOF
    assert verify_folder(place) == []
    record = ExportFile.model_validate_json((place / "export.json").read_bytes())
    assert record.text == "held-out text"
    assert record.runtime.startswith("llama.cpp")
    assert record.tokens > 50
    assert record.bytes == sum((place / name).stat().st_size for name in ("model-q8_0.gguf", "Modelfile"))
    assert abs(record.change.percent) < record.largest_change == 1.0
    assert record.same_choice >= record.smallest_same_choice
    assert record.model_sha256 == models.load(str(finished)).provenance.sha256
    card = (place / "README.md").read_text(encoding="utf-8")
    assert "ollama create my-model -f Modelfile" in card
    assert f"{record.perplexity:.3f}" in card
    assert (place / "Modelfile").read_text(encoding="utf-8").startswith("FROM ./model-q8_0.gguf\nTEMPLATE ")


def test_an_export_replaces_an_earlier_one_and_nothing_else(base: Path) -> None:
    place, _ = export(base, "safetensors", weights="fp32")
    assert place == Path("base-safetensors-fp32")
    again, _ = export(base, "safetensors", weights="fp32")
    assert again == place
    other = Path("other")
    other.mkdir()
    (other / "novel.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="other exists already and is not an export"):
        export(base, "safetensors", out=other)
    assert [file.name for file in other.iterdir()] == ["novel.txt"]


@pytest.mark.parametrize("weights", list(FORMATS["safetensors"].weights))
def test_transformers_loads_a_folder_in_the_type_that_was_asked_for(base: Path, weights: str) -> None:
    place, record = export(base, "safetensors", weights=weights)
    assert {file.name for file in place.iterdir()} == FOLDER | PROOF
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[weights]
    loaded = AutoModelForCausalLM.from_pretrained(place, dtype="auto")
    assert loaded.dtype == dtype
    for name, tensor in models.load(str(base)).model.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor.to(dtype)), name
    assert AutoTokenizer.from_pretrained(place).get_vocab() == tokenizer().get_vocab()
    assert (record.change.percent == 0) == (weights == "fp32")


@pytest.mark.parametrize(
    "name", ["GPT-2", "Llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Qwen2", "Qwen3"))]
)
def test_llama_cpp_gives_the_scores_of_each_architecture(name: str, tmp_path: Path) -> None:
    """llama.cpp keeps keys and values in fp16, so that its scores differ a little even with fp32 weights."""
    architecture = next(each for each in architectures.ALL if each.name == name)
    place, record = export(architecture.save(tmp_path / "base"), "gguf", weights="f32", out=tmp_path / "out")
    assert abs(record.change.percent) < 0.05
    assert record.same_choice > 0.99
    again = models.load(str(place / "model-f32.gguf"))
    for key, tensor in models.load(str(tmp_path / "base")).model.state_dict().items():
        assert again.model.state_dict()[key].equal(tensor), key
    assert again.tokenizer.encode("The lamp, 12 eggs!", add_special_tokens=False) == tokenizer().encode(
        "The lamp, 12 eggs!"
    )


def test_openvino_runs_a_converted_folder(base: Path) -> None:
    place, record = export(base, "openvino", weights="fp16")
    files = (FOLDER - {"model.safetensors"}) | {"openvino_model.xml", "openvino_model.bin"}
    assert {file.name for file in place.iterdir()} == files | PROOF
    assert record.runtime.startswith("OpenVINO")
    assert record.same_choice > record.smallest_same_choice


def test_a_text_begins_in_llama_cpp_as_it_began_in_training(base: Path) -> None:
    import gguf as library

    place, _ = export(base, "gguf", weights="f32")
    fields = library.GGUFReader(place / "model-f32.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 0
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 0


def test_a_model_that_differs_too_much_is_not_handed_over(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = safetensors.write

    def damage(loaded: LoadedModel, folder: Path, weights: str) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            weight = loaded.model.get_input_embeddings().weight
            weight.add_(torch.randn_like(weight))
            write(loaded, folder, weights)
            loaded.model.load_state_dict(models.load(str(base)).model.state_dict())

    monkeypatch.setattr(safetensors, "write", damage)
    words = ["export", str(base), "--to", "safetensors"]
    assert run(words) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "error: The exported model differs too much: its perplexity on general text is" in printed
    assert "hint: Choose --weights bf16 or fp32, or keep it with --accept-loss. Nothing was written." in printed
    assert [item.name for item in Path().iterdir()] == ["base"]
    assert run([*words, "--accept-loss"]) == 0
    assert "warning" in capsys.readouterr().err.lower()
    record = json.loads(Path("base-safetensors-fp16/export.json").read_text(encoding="utf-8"))
    assert record["accepted_loss"] is True
    assert "outside these bounds" in Path("base-safetensors-fp16/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("to", "weights", "message", "hint"),
    [
        (
            "ggf",
            None,
            "The format 'ggf' is unknown. Known are safetensors, adapter, gguf, openvino, onnx",
            "Did you mean --to gguf?",
        ),
        ("gguf", "q9", "The format gguf has no weights of the type 'q9'.", "The default is --weights q8_0."),
    ],
)
def test_unknown_formats_and_types_are_refused(to: str, weights: str | None, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        export("no-such-model", to, weights=weights)
    assert caught.value.message.startswith(message)
    assert caught.value.hint == hint


def test_an_architecture_without_a_place_in_gguf_is_refused(tmp_path: Path) -> None:
    folder = next(each for each in architectures.ALL if each.kind == "gpt_neo").save(tmp_path / "base")
    with pytest.raises(ModelError, match="type gpt_neo can't be written to GGUF"):
        export(folder, "gguf", out=tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["base"]


def _cut_after_each_vowel(folder: Path) -> str:
    own = AutoTokenizer.from_pretrained(folder)
    cut = pre_tokenizers.Split(Regex("[^aeiou]*[aeiou]"), "isolated")
    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    own.save_pretrained(folder)
    return "into other tokens"


def _too_large(folder: Path) -> str:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = 1e6
    model.save_pretrained(folder)
    return "too large for fp16"


@pytest.mark.parametrize("change", [_cut_after_each_vowel, _too_large])
def test_what_gguf_cannot_hold_is_refused(base: Path, change: Callable[[Path], str]) -> None:
    with pytest.raises(ModelError, match=change(base)):
        export(base, "gguf")
    assert [item.name for item in Path().iterdir()] == ["base"]


def test_a_crash_of_llama_cpp_is_an_error_and_not_a_crash(base: Path, tmp_path: Path) -> None:
    gguf.write(models.load(str(base)), tmp_path, "f32")
    file = tmp_path / "model-f32.gguf"
    shutil.copy(file, tmp_path / "whole")
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"llama\.cpp failed"):
        LlamaRuntime(file)
    runtime = LlamaRuntime(tmp_path / "whole")
    runtime._process._process.kill()
    with pytest.raises(ModelError, match=r"llama\.cpp failed: it ended with exit code -9"):
        runtime.read([1, 2])


def test_the_list_shows_sizes_and_what_is_missing(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetale.export.chromium.find_browser", lambda: "browser")
    monkeypatch.setattr("finetale.models.load", None)  # the weights are not read
    assert run(["export", str(base), "--to", "list"]) == 0
    printed = capsys.readouterr().out
    assert "llama.cpp, Ollama and LM Studio" in printed
    assert "q4_k_m (" in printed
    assert "not installed" not in printed
    parameters = AutoModelForCausalLM.from_pretrained(base).num_parameters()
    assert pipeline.list_formats(str(base))[0]["weights"]["fp32"] == 4 * parameters  # type: ignore[index]
    monkeypatch.setattr("finetale.extras.is_installed", lambda package: False)
    assert run(["export", str(base), "--to", "list"]) == 0
    assert "not installed: pip install 'finetale[export-gguf]'" in capsys.readouterr().out
    assert run(["export", str(base), "--to", "gguf"]) == 1
    assert "pip install 'finetale[export-gguf]'" in capsys.readouterr().err


def test_a_link_in_place_of_the_folder_of_exports_is_not_followed(finished: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(finished, run_folder, ignore=shutil.ignore_patterns("exports"))
    (tmp_path / "elsewhere").mkdir()
    (run_folder / "exports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"run/exports is a symbolic link, which is not followed\."):
        export(run_folder, "safetensors")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert export(run_folder, "safetensors", out=tmp_path / "out")[0] == tmp_path / "out"


def test_a_folder_of_exports_does_not_make_a_run_unreadable(finished: Path) -> None:
    assert RunDirectory.open(finished).read_manifest().status == "finished"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PeftModel
def test_peft_loads_an_exported_adapter_beside_its_base(finished: Path, tmp_path: Path) -> None:
    place, record = export(finished, "adapter")
    assert place == finished / "exports" / "adapter-fp32"
    names = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in place.iterdir()} == names | PROOF
    assert record.runtime.startswith("PEFT ")
    assert 'from_pretrained("path/of/the/base")' in (place / "README.md").read_text(encoding="utf-8")
    assert record.greedy_equal == 1.0
    assert abs(record.change.percent) < 0.01
    base = AutoModelForCausalLM.from_pretrained(finished.parent / "base").eval()
    merged = AutoModelForCausalLM.from_pretrained(finished / "model").eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before, expected = base(ids).logits.clone(), merged(ids).logits
        given = PeftModel.from_pretrained(base, str(place)).eval()(ids).logits
    assert (given - expected).abs().max() < 1e-4 < (given - before).abs().max()
    again, _ = export(place, "adapter", out=tmp_path / "again")
    assert (again / "adapter_model.safetensors").read_bytes() == (place / "adapter_model.safetensors").read_bytes()


def test_a_model_without_an_adapter_has_none_to_export(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"^base has no adapter\. Hint: Choose --to safetensors for the whole model"):
        export("base", "adapter")
    assert run(["export", "base", "--to", "list"]) == 0
    assert "the base\n    for a model with an adapter\n" in capsys.readouterr().out


def test_a_folder_of_several_weight_files_is_loaded(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers splits the weights of large models."""
    whole = AutoModelForCausalLM.from_pretrained("base").state_dict()
    save = PreTrainedModel.save_pretrained
    monkeypatch.setattr(
        PreTrainedModel, "save_pretrained", lambda self, *args, **more: save(self, *args, **more | SHARDS)
    )
    place, record = export("base", "safetensors", weights="fp32")
    files = {file.name for file in place.iterdir()}
    assert "model.safetensors.index.json" in files
    assert len({name for name in files if name.startswith("model-0")}) >= 2
    assert record.same_choice == 1.0
    loaded = AutoModelForCausalLM.from_pretrained(place).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())
