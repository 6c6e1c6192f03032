"""LoRA and DoRA: settings, injection, files in PEFT's layout, merging, checkpoints, and errors before any work."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from finetale import models
from finetale.config import Config
from finetale.errors import ConfigError, ModelError
from finetale.models import adapters
from tiny import llama_model, model, save_model, tokenizer

KINDS = ("gpt2", "llama")


def llama() -> LlamaForCausalLM:
    return llama_model(intermediate_size=48, tie_word_embeddings=True)


def base_of(kind: str, folder: Path) -> Path:
    if kind == "gpt2":
        return save_model(folder, 3)
    folder.mkdir(parents=True)
    models.save(llama(), tokenizer(), folder)
    return folder


def trained(base: Path, **settings: Any) -> models.LoadedModel:
    """Return a base with an adapter whose matrices are random, as after training."""
    loaded = models.load(str(base))
    adapters.attach(loaded.model, Config.resolve({"method": "lora", "lora_rank": 3} | settings), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return loaded


def adapted(loaded: models.LoadedModel) -> models.AdaptedBase:
    assert loaded.located is not None
    return models.AdaptedBase(loaded.located, loaded.provenance)


def logits(tiny: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(20)[None] % 300 + 5
    with torch.inference_mode():
        found: torch.Tensor = tiny(ids).logits
    return found


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": 8}, "lora_rank has no effect with method full"),
        ({"lora_alpha": 8, "rslora": True}, "lora_alpha, rslora have no effect with method full"),
        ({"method": "lora", "lora_rank": 0}, "lora_rank = 0: input should be greater than or equal to 1"),
        ({"method": "lora", "model": "new:1m"}, "those of new:1m are random"),
        ({"method": "dora", "freeze": "2"}, "freeze has no effect with method dora"),
        ({"method": "lora", "lora_targets": "auto,c_attn"}, "auto can't be combined with other names"),
        ({"method": "qlora"}, "input should be 'full', 'lora' or 'dora'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.resolve({"model": "gpt2"} | settings)
    assert message in caught.value.message


def test_target_names_are_split_at_commas() -> None:
    given: list[Any] = ["q_proj,v_proj", "q_proj, v_proj", ["q_proj", "v_proj"]]
    for names in given:
        assert Config.resolve({"method": "lora", "lora_targets": names}).lora_targets == ("q_proj", "v_proj")


# Injection


def test_only_the_matrices_are_trained() -> None:
    tiny = model(0)
    names = adapters.attach(tiny, Config.resolve({"method": "lora", "lora_rank": 2}), seed=0)
    assert names == ("c_attn", "c_proj", "c_fc")
    shapes = {name: tuple(p.shape) for name, p in tiny.named_parameters() if p.requires_grad}
    assert len(shapes) == 2 * 4 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in shapes)
    assert shapes["transformer.h.0.attn.c_attn.lora_A.default.weight"] == (2, 32)
    assert shapes["transformer.h.0.attn.c_attn.lora_B.default.weight"] == (96, 2)


def test_a_new_adapter_changes_no_output_and_its_seed_decides_its_values() -> None:
    before = logits(model(0))
    found = []
    for seed in (0, 0, 1):
        tiny = model(0)
        state = torch.random.get_rng_state()
        adapters.attach(tiny, Config.resolve({"method": "lora"}), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(logits(tiny), before)
        found.append(torch.cat([value.flatten() for value in adapters.tensors_of(tiny).values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_targets_can_be_chosen_and_unknown_ones_are_refused_with_those_that_exist() -> None:
    tiny = model(0)
    assert adapters.attach(tiny, Config.resolve({"method": "lora", "lora_targets": "attn.c_proj"}), seed=0)
    assert sum(p.requires_grad for p in tiny.parameters()) == 2 * 2
    with pytest.raises(ConfigError) as caught:
        adapters.attach(model(0), Config.resolve({"method": "lora", "lora_targets": "q_proj,c_fc,wte"}), seed=0)
    assert "No linear layer of the model is called q_proj, wte (lora_targets)." in caught.value.message
    assert "c_attn, c_proj, c_fc" in caught.value.hint


def test_layers_that_the_kernels_of_mamba_read_are_left_out_and_refused_by_name() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "vocab_size": len(tokenizer())}
    tiny = MambaForCausalLM(MambaConfig(**sizes))
    names = adapters.attach(tiny, Config.resolve({"method": "lora", "lora_rank": 2}), seed=0)
    assert "in_proj" in names
    assert not {"out_proj", "dt_proj"} & set(names)
    for wanted in ("out_proj", "in_proj,mixer.out_proj", "dt_proj"):
        with pytest.raises(ConfigError, match=r"(out|dt)_proj \(lora_targets\) can't be adapted in a mamba model"):
            adapters.attach(
                MambaForCausalLM(MambaConfig(**sizes)),
                Config.resolve({"method": "lora", "lora_targets": wanted}),
                seed=0,
            )


# Files


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PeftModel
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"method": "dora"}], ids=["lora", "rslora", "dora"])
def test_merged_model_is_the_base_with_the_adapter(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    base = base_of(kind, tmp_path / "base")
    loaded = trained(base, **settings)
    wanted = logits(loaded.model)
    (tmp_path / "adapter").mkdir()
    adapted(loaded).save_adapter(loaded.model, tmp_path / "adapter")
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    (tmp_path / "merged").mkdir()
    adapted(loaded).save_merged(loaded.model, tokenizer(), tmp_path / "adapter", tmp_path / "merged")
    with_peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(str(base)), str(tmp_path / "adapter")
    ).eval()
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged")).eval()
    difference = (wanted - logits(models.load(str(base)).model)).abs().max()
    assert difference > 0.1  # the adapter does something
    assert (logits(with_peft) - wanted).abs().max() < 1e-5
    assert (logits(merged) - logits(with_peft)).abs().max() < 1e-5
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()


# Adapters that PEFT wrote


def of_peft(base: Path, folder: Path, rows: int | None = None, **settings: Any) -> Any:
    """Return a PEFT model with random matrices, which is saved in a folder.

    Args:
        rows: number of embeddings that the base is resized to.
    """
    plain = AutoModelForCausalLM.from_pretrained(str(base))
    if rows is not None:
        plain.resize_token_embeddings(rows, mean_resizing=False)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT warns of tied and of saved embeddings
        with_peft = get_peft_model(plain, LoraConfig(r=2, task_type="CAUSAL_LM", **settings)).eval()
        with torch.no_grad():
            for parameter in with_peft.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        with_peft.save_pretrained(str(folder))
    return with_peft


def untied(folder: Path) -> Path:
    folder.mkdir()
    models.save(llama_model(intermediate_size=48), tokenizer(), folder)
    return folder


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PeftModel
def test_an_adapter_of_an_untied_output_layer_is_merged(tmp_path: Path) -> None:
    base = untied(tmp_path / "base")
    with_peft = of_peft(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    merged = models.load(str(tmp_path / "adapter")).model
    assert (logits(models.load(str(base)).model) - logits(with_peft)).abs().max() > 0.1
    torch.testing.assert_close(logits(merged), logits(with_peft), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PeftModel
@pytest.mark.parametrize(
    ("tied", "rows", "settings", "message"),
    [
        (
            True,
            None,
            {"target_modules": ["lm_head"]},
            "changes the output layer lm_head, whose weights its base uses as",
        ),
        (
            False,
            None,
            {"target_modules": ["embed_tokens"]},
            "changes embed_tokens, and Finetale merges matrices of linear",
        ),
        (False, 410, {"target_modules": ["q_proj"]}, "holds lm_head.weight, which was trained or resized"),
        (
            False,
            None,
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            "is an adapter with modules_to_save in its adapter_config.json",
        ),
    ],
)
def test_adapters_that_can_not_be_merged_name_the_reason(
    tied: bool, rows: int | None, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = base_of("llama", tmp_path / "base") if tied else untied(tmp_path / "base")
    of_peft(base, tmp_path / "adapter", rows, **settings)
    with pytest.raises(ModelError) as caught:
        models.load(str(tmp_path / "adapter"))
    assert message in caught.value.message
    assert caught.value.hint
