"""Weights as they are found in practice: half precision, several files, quantised, and files that other tools wrote.

Some of the tests repeat public reports of bugs in other tools; each names the report.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AwqConfig,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GPTQConfig,
    Mxfp4Config,
    PreTrainedModel,
)

from finetale import models
from finetale.errors import FinetaleError
from finetale.rundir import write_sealed_folder
from tiny import llama_model, model, save_model, tokenizer

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def refused(name: str | Path) -> FinetaleError:
    with pytest.raises(FinetaleError) as caught:
        models.load(str(name))
    assert caught.value.hint
    return caught.value


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def saved(network: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """Save a model and the tiny tokenizer as transformers does."""
    network.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Return copies of the tensors in a folder, because safetensors maps a file that the test writes again."""
    return {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}


def logits(network: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network(torch.arange(20)[None] + 5).logits
    return found


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Half precision


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shards", [1, 2])
def test_half_precision_is_read_exactly_and_saved_as_fp32(dtype: torch.dtype, shards: int, tmp_path: Path) -> None:
    half = model(0).to(dtype)
    with torch.no_grad():
        half.transformer.wpe.weight[0, :4] = torch.tensor([6e-8, 65504.0, -6.1e-5, 0.1]).to(dtype)  # limits of fp16
    saved(half, tmp_path / "half", max_shard_size="50KB" if shards > 1 else "5GB")
    files = list((tmp_path / "half").glob("*.safetensors"))
    assert len(files) == shards
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {dtype}
    loaded = models.load(str(tmp_path / "half"))
    assert same(loaded.model, half.float())
    (tmp_path / "again").mkdir()
    models.save(loaded.model, loaded.tokenizer, tmp_path / "again")
    tensors = load_file(tmp_path / "again" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    config = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "float32"  # axolotl #904: config.json said another type than the weights have
    assert "torch_dtype" not in config
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert same(plain, half.float())


def test_a_file_with_two_types_is_read_exactly(folder: Path) -> None:
    tensors = stored(folder)
    mixed = {name: value if ".ln_" in name else value.to(torch.bfloat16) for name, value in tensors.items()}
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder / "config.json", torch_dtype="bfloat16", dtype="float16")  # neither is believed
    found = models.load(str(folder)).model.state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in mixed.items())


# Several files


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = saved(model(0), tmp_path / "sharded", max_shard_size="50KB")
    assert len(list(folder.glob("model-0000*-of-00004.safetensors"))) == 4
    return folder


def test_several_files_are_read(sharded: Path) -> None:
    assert same(models.load(str(sharded)).model, model(0))


def test_a_missing_file_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00004.safetensors").unlink()
    error = refused(sharded)
    assert "lacks 1 of its 4 weight files, such as model-00002-of-00004.safetensors" in error.message
    assert "Download it again" in error.hint


def test_the_index_and_not_the_names_say_how_many_files_there_are(sharded: Path) -> None:
    """CoSER #3: files called 1 to 15 of 30 were all that there were."""
    index = sharded / "model.safetensors.index.json"
    for file in list(sharded.glob("model-*")):
        file.rename(sharded / file.name.replace("of-00004", "of-00009"))
    change(index, weight_map=json.loads(index.read_text().replace("of-00004", "of-00009"))["weight_map"])
    assert same(models.load(str(sharded)).model, model(0))
    index.unlink()
    assert "has its weights in 4 files and no model.safetensors.index.json" in refused(sharded).message


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/tmp/elsewhere.safetensors", "sub/model.safetensors"])
def test_an_index_that_names_a_file_outside_the_folder_is_refused(name: str, sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    change(index, weight_map=weights | {"transformer.wte.weight": name})
    error = refused(sharded)
    assert f"names {name!r}, which is not a weight file in its folder." in error.message


def test_an_index_that_lacks_tensors_is_refused(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    gone = [name for name, file in weights.items() if file == "model-00002-of-00004.safetensors"]
    change(index, weight_map={name: file for name, file in weights.items() if name not in gone})
    assert f"lack {len(gone)} tensors of its architecture" in refused(sharded).message


def test_a_stale_index_beside_a_single_file_is_ignored(sharded: Path, tmp_path: Path) -> None:
    """diffusers #14719: a folder was saved in several files first, and later in one."""
    shutil.copy(save_model(tmp_path / "single", seed=7) / "model.safetensors", sharded)
    assert same(models.load(str(sharded)).model, model(7))
    (sharded / "model-00002-of-00004.safetensors").unlink()
    assert same(models.load(str(sharded)).model, model(7))


def test_pickles_in_several_files_are_refused(sharded: Path) -> None:
    for file in list(sharded.glob("model*")):
        file.rename(sharded / file.name.replace("model", "pytorch_model").replace(".safetensors", ".bin"))
    error = refused(sharded)
    assert "has its weights only as pytorch_model-00001-of-00004.bin, a format that can carry code" in error.message
    assert "model.save_pretrained(folder)" in error.hint


# Quantised weights

W = "transformer.h.0.mlp.c_fc"
FP8 = torch.float8_e4m3fn
QUANTISED: dict[str, tuple[dict[str, Any], dict[str, torch.dtype]]] = {
    "gptq": (
        GPTQConfig(bits=4, dataset="c4").to_dict(),
        {
            f"{W}.qweight": torch.int32,
            f"{W}.qzeros": torch.int32,
            f"{W}.scales": torch.float16,
            f"{W}.g_idx": torch.int32,
        },
    ),
    "awq": (AwqConfig(bits=4).to_dict(), {f"{W}.qweight": torch.int32, f"{W}.qzeros": torch.int32}),
    "bitsandbytes 4 bits": (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4").to_dict(),
        {f"{W}.weight": torch.uint8, f"{W}.weight.absmax": torch.float32, f"{W}.weight.quant_map": torch.float32},
    ),
    "bitsandbytes 8 bits": (
        BitsAndBytesConfig(load_in_8bit=True).to_dict(),
        {f"{W}.weight": torch.int8, f"{W}.SCB": torch.float32},
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        {f"{W}.weight_packed": torch.int32, f"{W}.weight_scale": torch.bfloat16, f"{W}.weight_shape": torch.int64},
    ),
    "fp8": (FineGrainedFP8Config().to_dict(), {f"{W}.weight": FP8, f"{W}.weight_scale_inv": torch.float32}),
    "fp8 alone": (FineGrainedFP8Config().to_dict(), {f"{W}.weight": FP8}),
    "mxfp4": (
        Mxfp4Config().to_dict(),
        {"model.layers.0.mlp.experts.gate_up_proj_blocks": torch.uint8, "x.gate_up_proj_scales": torch.uint8},
    ),
    "hqq": ({"quant_method": "hqq", "quant_config": {}}, {f"{W}.W_q": torch.uint8}),
    "quanto": ({"quant_method": "quanto"}, {f"{W}.weight._data": torch.int8, f"{W}.weight._scale": torch.float32}),
}


@pytest.mark.parametrize("kind", list(QUANTISED))
def test_quantised_weights_are_refused_before_they_are_read(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tensors = QUANTISED[kind]
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    change(folder / "config.json", quantization_config=config)
    error = refused(folder)
    method = kind.split()[0]
    assert f"{folder} is quantised ({method}, by its config.json)" in error.message
    assert "Choose the model that it was made from" in error.hint
    save_model(folder)  # a config.json that does not mention it
    whole = stored(folder)
    found = {name: torch.ones(4, 4).to(dtype) for name, dtype in tensors.items()}
    save_file(whole | found, folder / "model.safetensors", metadata={"format": "pt"})
    error = refused(folder)
    assert "is quantised (model.safetensors holds" in error.message
    assert "Choose the model that it was made from" in error.hint


def test_the_older_key_of_compressed_tensors_is_known(folder: Path) -> None:
    change(folder / "config.json", compression_config={"quant_method": "compressed-tensors"})
    assert "is quantised (compressed-tensors, by its config.json)" in refused(folder).message


# Files that other tools wrote


def test_a_file_without_metadata_is_read(folder: Path) -> None:
    """safetensors #549: a file that was saved again has no metadata, and a loader asked None for its format."""
    save_file(stored(folder), folder / "model.safetensors")
    assert same(models.load(str(folder)).model, model(0))


def test_names_without_the_prefix_are_read_and_saved_as_they_were(folder: Path) -> None:
    """The files of GPT-2 on the Hub have `wte.weight` and the masks of an older attention."""
    tensors = {name.removeprefix("transformer."): value for name, value in stored(folder).items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(64, 64).tril()[None, None] for layer in range(2)}
    save_file(tensors | masks, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = models.load(str(folder))
    assert same(loaded.model, model(0))
    (folder / "again").mkdir()
    models.save(loaded.model, loaded.tokenizer, folder / "again")
    assert same(AutoModelForCausalLM.from_pretrained(folder / "again"), model(0))


@pytest.mark.parametrize("kept", ["lm_head.weight", "transformer.wte.weight"])
def test_a_tied_matrix_is_read_under_either_name(kept: str, folder: Path) -> None:
    """transformers #38870, #41038: a file held the tied matrix as the output layer only; random embeddings followed."""
    tensors = stored(folder)
    tied = tensors.pop("transformer.wte.weight")
    save_file(tensors | {kept: tied}, folder / "model.safetensors", metadata={"format": "pt"})
    assert same(models.load(str(folder)).model, model(0))


def test_an_output_layer_that_is_not_tied_in_the_file_is_not_lost(tmp_path: Path) -> None:
    """transformers #45127: config.json says tied, but the file has two different matrices."""
    untied = llama_model(tie_word_embeddings=False)
    folder = saved(untied, tmp_path / "untied")
    change(folder / "config.json", tie_word_embeddings=True)
    loaded = models.load(str(folder))
    torch.testing.assert_close(logits(loaded.model), logits(untied), rtol=1e-5, atol=1e-5)
    (tmp_path / "again").mkdir()
    models.save(loaded.model, loaded.tokenizer, tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(again), logits(untied), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [390, 420])
def test_embeddings_of_another_size_than_the_config_are_refused(rows: int, folder: Path) -> None:
    """transformers #36550: the vocabulary was resized, and config.json has the old size."""
    change(folder / "config.json", vocab_size=rows)
    error = refused(folder)
    assert (
        f"have transformer.wte.weight of the shape (400, 32), and its config.json wants ({rows}, 32)." in error.message
    )
    assert "do not belong to this config.json" in error.hint


def test_generation_settings_that_transformers_does_not_save_are_replaced(folder: Path) -> None:
    """transformers #29988: after hours of training, save_pretrained refused the base's own generation_config.json."""
    change(
        folder / "generation_config.json", do_sample=False, temperature=0.9, top_p=0.6, num_beams=1, penalty_alpha=0.6
    )
    loaded = models.load(str(folder))
    (folder / "again").mkdir()
    models.save(loaded.model, loaded.tokenizer, folder / "again")
    written = json.loads((folder / "again" / "generation_config.json").read_text(encoding="utf-8"))
    assert (written["do_sample"], written["temperature"]) == (True, 0.8)


def test_a_published_model_is_read_from_the_cache_of_the_hub(folder: Path, tmp_path: Path) -> None:
    """The cache holds links. A model that Finetale sealed with a manifest was reported as corrupted there."""
    write_sealed_folder(tmp_path / "sealed", lambda place: shutil.copytree(folder, place, dirs_exist_ok=True) and None)
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "sealed").iterdir():
        os.symlink(os.path.relpath(file, snapshot), snapshot / file.name)
    assert same(models.load(str(snapshot)).model, model(0))
    weights = tmp_path / "sealed" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert "is corrupted (model.safetensors: content differs" in refused(snapshot).message
