"""Test which models are loaded, which are refused, and the reasons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    pipeline,
)

from finetale import models
from finetale.errors import ConfigError, FinetaleError, HubError, ModelError, TokenizerError
from finetale.models.names import meant
from finetale.tokens import train_tokenizer
from tiny import loaded, model, save_model, story, tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", scale=0.5)


def refused(name: str | Path, **options: Any) -> FinetaleError:
    with pytest.raises(FinetaleError) as caught:
        models.load(str(name), **options)
    assert caught.value.hint
    return caught.value


def test_a_saved_model_loads_in_plain_transformers(folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        assert torch.equal(plain(ids).logits, model(scale=0.5)(ids).logits)
    writer = pipeline("text-generation", model=str(folder))
    text = writer("The lamp", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert text.startswith("The lamp")
    assert len(text) > len("The lamp")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_provenance_and_fp32(folder: Path) -> None:
    half = {name: value.to(torch.bfloat16) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    found = models.load(str(folder))
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    assert found.provenance.kind == "local"
    assert found.provenance.parameters == loaded().provenance.parameters
    assert len(found.provenance.sha256) == 64
    assert not found.model.training


@pytest.mark.parametrize(
    ("rates", "everywhere", "attention"),
    [((0.3, None), 0.3, 0.3), ((0.3, 0.0), 0.3, 0.0), ((None, 0.2), 0.1, 0.2), ((None, None), 0.1, 0.1)],
)
def test_dropout_rates(
    rates: tuple[float | None, float | None], everywhere: float, attention: float, tmp_path: Path
) -> None:
    found = models.load(str(save_model(tmp_path / "base", dropout=0.1)), dropout=models.Dropout(*rates))
    modules = {name: m.p for name, m in found.model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert len(modules) >= 5
    assert {rate for name, rate in modules.items() if "attn_dropout" in name} == {attention}
    assert {rate for name, rate in modules.items() if "attn_dropout" not in name} == {everywhere}
    assert found.model.config.attn_pdrop == attention


def test_new_models() -> None:
    one, same, other = (models.load("new:1m", tokenizer=tokenizer(), seed=seed) for seed in (1, 1, 2))
    assert one.provenance == same.provenance
    assert one.provenance.sha256 != other.provenance.sha256
    assert one.provenance.kind == "new"
    assert "Did you mean new:10m?" in refused("new:10mm").hint
    assert "needs a tokenizer" in refused("new:1m").message


@pytest.mark.parametrize(
    ("shape", "millions"),
    [("gpt2", 124.4), ("gpt2-medium", 354.8), ("gpt2-large", 774.0), ("gpt2-xl", 1557.6), ("distilgpt2", 81.9)],
)
def test_shapes_have_the_published_sizes(shape: str, millions: float) -> None:
    width, layers, _, positions = models.shape_of(f"new:{shape}")
    parameters = 50257 * width + positions * width + layers * (12 * width**2 + 13 * width) + 2 * width
    assert parameters / 1e6 == pytest.approx(millions, abs=0.1)


def test_a_model_with_only_pickled_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refused(folder)
    assert isinstance(error, ModelError)
    assert "pytorch_model.bin" in error.message
    assert "safetensors only" in error.message
    (folder / "pytorch_model.bin").unlink()
    assert "no weights" in refused(folder).message


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    bert = BertForMaskedLM(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, vocab_size=400)
    )
    bert.save_pretrained(tmp_path / "bert")
    tokenizer().save_pretrained(tmp_path / "bert")
    error = refused(tmp_path / "bert")
    assert "an encoder (model_type bert)" in error.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder-decoder model"),
        ({"model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "code.Model"}}, "never runs"),
        ({"model_type": "vit"}, "not a causal language model"),
        ({"model_type": None}, "has no model_type."),
    ],
)
def test_unsupported_configs_are_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert words in refused(folder).message


def test_code_in_the_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoModelForCausalLM": "code.Model",
        "AutoConfig": "code.Model",
        "AutoTokenizer": "code.Model",
    }
    (folder / "config.json").write_text(json.dumps(config))
    models.load(str(folder))  # transformers has its own code for GPT-2 and uses it
    assert not mark.exists()


def test_corrupted_files_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "can't be read" in refused(folder).message
    (folder / "config.json").write_text("{")
    assert "config.json can't be read" in refused(folder).message
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder).message


def test_weights_of_another_architecture(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    error = refused(folder)
    assert "lack 1 tensors" in error.message
    assert "transformer.h.1.mlp.c_fc.weight" in error.message


def test_an_empty_tokenizer(folder: Path) -> None:
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["model"]["vocab"], rules["model"]["merges"] = {}, []
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    error = refused(folder)
    assert isinstance(error, TokenizerError)
    assert "empty" in error.message or "loses text" in error.message


def test_a_tokenizer_larger_than_the_model(folder: Path) -> None:
    bigger = train_tokenizer([story(number) for number in range(20)], 405)
    error = refused(folder, tokenizer=bigger)
    assert "does not fit" in error.message
    assert "404" in error.message


def test_a_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert isinstance(refused(folder), TokenizerError)


def test_paths_without_a_model_are_refused(tmp_path: Path, folder: Path) -> None:
    assert f"Did you mean {folder}?" in refused(tmp_path / "modell").hint
    file = tmp_path / "file.txt"
    file.write_text("x")
    assert "is a file" in refused(file).message
    shutil.rmtree(folder)
    (folder).mkdir()
    assert "no config.json" in refused(folder).message


def test_an_empty_name_is_refused() -> None:
    """An empty path would mean the current folder."""
    with pytest.raises(ModelError, match="The name of the model is empty"):
        models.open_model("", lambda event: None)


def test_freezing() -> None:
    def trained(what: str | None) -> set[str]:
        tiny = model()
        models.freeze(tiny, what)
        return {name for name, parameter in tiny.named_parameters() if parameter.requires_grad}

    everything = trained(None)
    assert len(everything) == len(dict(model().named_parameters()))
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert everything - trained("embeddings") == embeddings  # the output layer is the embedding
    lowest = {name for name in everything if name.startswith("transformer.h.0.")}
    assert len(lowest) == 12
    assert everything - trained("1") == embeddings | lowest
    with pytest.raises(ConfigError, match="freeze 2 would leave nothing to train: the model has 2 layers") as caught:
        trained("2")
    assert "--freeze 1" in caught.value.hint


def test_freezing_the_embeddings_of_an_untied_model_leaves_its_output_layer() -> None:
    config = GPTNeoXConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    )
    network = GPTNeoXForCausalLM(config)
    models.freeze(network, "2")
    output = next(name for name, part in network.named_modules() if part is network.get_output_embeddings())
    left = {name.split(".layers.")[-1][:2] for name, value in network.named_parameters() if value.requires_grad}
    assert left == {"2.", "gp", output[:2]}  # the last layer, the final norm (gpt_neox) and the output layer
    assert not network.get_input_embeddings().weight.requires_grad
    assert network.get_output_embeddings().weight.requires_grad


def test_new_models_of_any_width_and_depth() -> None:
    assert models.shape_of("new:128x3") == (128, 3, 2, 512)
    assert models.shape_of("new:768x12") == models.shape_of("new:gpt2")
    found = models.load("new:128x3", tokenizer=tokenizer()).model
    assert (found.config.n_embd, found.config.n_layer, found.config.n_head) == (128, 3, 2)
    assert "such as new:256x4" in refused("new:250x4").hint
    assert "such as new:64x2" in refused("new:0x2").hint
    assert "WIDTHxLAYERS" in refused("new:64x0").hint


def test_a_misspelt_name_gets_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/tales").mkdir(parents=True)
    assert meant("bundeld") == "Did you mean bundled? "
    assert meant("runs/tale") == "Did you mean runs/tales? "
    assert meant("gpt2") == meant("someone/else") == ""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError) as caught:
        models.locate("bundeld", offline=True)
    assert caught.value.hint.startswith("Did you mean bundled? ")


OLD_KEYS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_ctx": 1024,
        "task_specific_params": {"text-generation": {"do_sample": True}},
        "gradient_checkpointing": False,
    },
    "gpt_neox": {"rotary_pct": 0.25, "rotary_emb_base": 10_000, "use_parallel_residual": True},
    "llama": {"rope_theta": 5e5, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "opt": {"activation_function": "relu", "do_layer_norm_before": True, "word_embed_proj_dim": 768},
    "qwen2": {"rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 32_768, "max_window_layers": 21},
}


@pytest.mark.parametrize(
    "kind",
    [*OLD_KEYS, "bloom", "codegen", "falcon", "gemma", "gpt_neo", "gptj", "mamba2", "mistral", "phi", "qwen3", "xglm"],
)
def test_a_cleaned_config_keeps_the_values_of_the_file(kind: str, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING, AutoConfig

    from finetale.models.safety import clean_config

    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text(encoding="utf-8")) | OLD_KEYS.get(kind, {}) | {"_attn_implementation": "eager"}
    file.write_text(json.dumps(raw), encoding="utf-8")
    theirs = AutoConfig.from_pretrained(tmp_path).to_dict()
    ours = CONFIG_MAPPING[kind].from_dict(clean_config(raw)).to_dict()
    aside = {"_name_or_path", "dtype", "transformers_version", "task_specific_params", "gradient_checkpointing"}
    assert {key: ours.get(key) for key in theirs if key not in aside} == {
        key: value for key, value in theirs.items() if key not in aside
    }


def pretend(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"{}")


@pytest.mark.parametrize(
    (
        "there",
        "gone",
        "words",
        "hint",
    ),
    [
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            [],
            "holds an adapter (adapter_config.json) beside",
            "move adapter_config.json",
        ),
        (
            ["adapter_model.safetensors"],
            ["model.safetensors"],
            "has no model.safetensors; it has adapter_model",
            "Rename",
        ),
        (
            ["model.Q4_K.gguf"],
            ["config.json", "model.safetensors"],
            "model.Q4_K.gguf is not a GGUF file",
            "download",
        ),
        (
            ["model.gguf"],
            ["model.safetensors"],
            "model.gguf is not a GGUF file",
            "download",
        ),
        (
            ["consolidated.00.pth"],
            ["config.json", "model.safetensors"],
            "only as consolidated.00.pth",
            "save_pretrained",
        ),
        (
            ["model-00001-of-00001.safetensors"],
            ["model.safetensors"],
            "no model.safetensors.index.json",
            "The download may be incomplete. Download it again.",
        ),
        (
            [],
            ["config.json"],
            "no config.json",
            "Give the folder",
        ),
    ],
)
def test_incomplete_model_folders_are_refused(
    there: list[str], gone: list[str], words: str, hint: str, folder: Path
) -> None:
    pretend(folder, *there)
    for name in gone:
        (folder / name).unlink()
    error = refused(folder)
    assert isinstance(error, ModelError)
    assert words in error.message
    assert hint in error.hint


def test_an_index_that_lists_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors", "b": "model-b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 1 of its 2 weight files, such as model-b.safetensors" in refused(folder).message


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("transformer.h.0.attn.c_attn.weight_scale_inv", torch.float32),
        ("transformer.h.0.attn.c_attn.weight_scale", torch.float32),
        ("transformer.h.0.attn.c_attn.qweight", torch.int32),
        ("transformer.h.0.attn.c_attn.weight", torch.float8_e4m3fn),
        ("transformer.h.0.attn.c_attn.weight", torch.int8),
    ],
)
def test_quantised_weights_are_refused_with_any_config(key: str, kind: torch.dtype, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[key] = torch.ones(4, 4).to(kind)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    error = refused(folder)
    assert "is quantised (model.safetensors holds" in error.message
    assert key in error.message
    assert "made from" in error.hint


def test_a_git_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    error = refused(folder)
    assert "is a Git LFS pointer" in error.message
    assert "git lfs pull" in error.hint


def test_files_in_place_of_model_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    assert str(folder) in refused(folder / "model.safetensors").hint
    pretend(tmp_path, "model.gguf", "model.bin", "notes.txt")
    assert "is not a GGUF file" in refused(tmp_path / "model.gguf").message
    assert "can carry code" in refused(tmp_path / "model.bin").message
    assert "is a file, not a model folder" in refused(tmp_path / "notes.txt").message


def test_a_tokenizer_with_only_a_sentencepiece_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    for kind in ("LlamaTokenizer", "PreTrainedTokenizerFast"):
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "eos_token": "</s>"}))
        error = refused(folder)
        assert isinstance(error, TokenizerError)
        assert "The tokenizer of" in error.message
        assert "only as tokenizer.model" in error.hint
