"""A linear layer with LoRA as one function, and frozen weights in bf16 under the speed layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from finetale import models, speed
from finetale.config import Config
from finetale.models import adapters, frozen
from finetale.speed.low_rank import FastLoRA, is_low_rank
from finetale.speed.replacing import Replacement, restore

pytest.importorskip("peft")


def adapted(kind: str, seed: int = 0, **settings: Any) -> Any:
    """Return a tiny model in training mode with an adapter that is not zero."""
    torch.manual_seed(0)
    if kind == "gpt2":
        rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, **rates
            )
        )
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=32, **sizes))
    adapters.attach(model, Config.resolve({"method": "lora", "lora_rank": 4} | settings), seed=0)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def fast_layers(model: Any) -> int:
    return sum(isinstance(module, FastLoRA) for module in model.modules())


def leave_to_peft(model: Any) -> None:
    """Undo the speed-up of layers with LoRA alone."""
    for module in model.modules():
        if isinstance(module, FastLoRA):
            restore(module)


def gradients(model: Any, bf16: bool = False) -> dict[str, torch.Tensor]:
    tokens = torch.arange(40).view(2, 20) % 64
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        model(input_ids=tokens, labels=tokens).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference of all gradients."""
    return float(sum((one[name] - other[name]).square().sum() for name in other)) ** 0.5


@pytest.mark.parametrize(("kind", "layers"), [("gpt2", 2 * 4), ("llama", 2 * 7)])
def test_gradients_are_those_of_peft(kind: str, layers: int) -> None:
    model = adapted(kind)
    expected = gradients(model)
    assert len(expected) == 2 * layers
    speed.apply(model)
    assert fast_layers(model) == layers
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    speed.undo(model)
    assert fast_layers(model) == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("half_base", [False, True])
def test_in_bf16_gradients_are_as_close_to_those_in_fp32_as_pefts(kind: str, half_base: bool) -> None:
    ours, theirs = 0.0, 0.0  # sums over several adapters, because single distances vary by a factor of two
    for seed in range(8):
        model = adapted(kind, seed)
        exact = gradients(model)
        if half_base:
            frozen.keep_in_bf16(model)
        speed.apply(model)
        ours += distance(gradients(model, bf16=True), exact)
        leave_to_peft(model)
        theirs += distance(gradients(model, bf16=True), exact)
    assert 0 < ours <= 1.2 * theirs


def test_without_gradients_the_layer_is_pefts_own() -> None:
    model = adapted("llama")
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected = model(tokens).logits
        speed.apply(model)
        assert torch.allclose(model(tokens).logits, expected, atol=1e-5)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"method": "dora"}], ids=["dropout", "dora"])
def test_dropout_and_dora_are_left_to_peft(settings: dict[str, Any]) -> None:
    model = speed.apply(adapted("llama", **settings))
    assert fast_layers(model) == 0


def test_a_layer_that_is_switched_off_is_left_to_peft() -> None:
    model = speed.apply(adapted("llama"))
    layer = next(module for module in model.modules() if isinstance(module, FastLoRA))
    assert is_low_rank(layer)
    layer.enable_adapters(False)
    assert not is_low_rank(layer)
    x = torch.randn(1, 3, layer.base_layer.in_features)
    assert torch.allclose(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_frozen_weights_in_bf16_use_the_same_functions_and_are_restored(kind: str) -> None:
    model, whole = adapted(kind), adapted(kind)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    assert frozen.keep_in_bf16(model) > 0
    speed.apply(model)
    assert fast_layers(model) == (8 if kind == "gpt2" else 14)
    with frozen.fast_products(model):
        assert torch.is_autocast_enabled("cpu")
    speed.undo(model)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, weights[name])

    def plain() -> Any:
        adapters_off = adapted(kind)
        for module in adapters_off.modules():
            if hasattr(module, "base_layer"):
                module.base_layer.weight.data = module.base_layer.weight.data.clone()
        return _without_adapter_names(adapters_off)

    frozen.restore_fp32(model, plain)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert not any(isinstance(module, Replacement) for module in model.modules())


def _without_adapter_names(model: Any) -> Any:
    """Return an object whose state dict has the names of the base without adapter."""

    class Base:
        def state_dict(self) -> dict[str, torch.Tensor]:
            return {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}

    return Base()


def test_no_weight_stays_a_view_of_the_base_file(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    adapters.attach(model, Config.resolve({"method": "lora", "lora_rank": 4}), seed=0)
    frozen.keep_in_bf16(model)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert str(tmp_path) not in maps.read_text(encoding="utf-8")


def test_discard_frees_the_weights_of_a_model_that_is_still_referenced() -> None:
    model = adapted("llama")
    gradients(model)
    models.discard(model)
    assert sum(p.numel() for p in model.parameters()) == 0
    assert all(p.grad is None for p in model.parameters())
