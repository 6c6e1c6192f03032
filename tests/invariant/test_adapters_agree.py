"""With an adapter: packed = unpacked, speed layer on = off, micro-batches = one batch, and no gradient of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetale import models, speed
from finetale.blocks import Blocks, pack
from finetale.config import Config
from finetale.forward import PackedForward, Route
from finetale.models import adapters
from finetale.models.frozen import keep_in_bf16, restore_fp32
from finetale.training.optimizer import build_optimizer
from tiny import model, save_model, store, story, tokenizer

KINDS = ("gpt2", "llama")
METHODS = ("lora", "dora")


def plain(kind: str) -> Any:
    """Return a tiny model without dropout."""
    if kind == "gpt2":
        return model(0)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer()), initializer_range=0.2, **sizes, **heads)).eval()


def adapted(kind: str, method: str) -> Any:
    """Return a tiny model with an adapter that is not zero."""
    tiny = plain(kind)
    adapters.attach(tiny, Config.resolve({"method": method, "lora_rank": 4}), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tiny.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return tiny


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    folder = tmp_path_factory.mktemp("blocks")
    return pack(store(folder, [story(number, 20 + 9 * number) for number in range(12)]), "train", 64, fill=True)


def gradients(tiny: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in tiny.named_parameters() if p.grad is not None}


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    assert len(one) >= 8
    return all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-4) for name in one)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_fast_equal_one_document_per_row_with_the_models_own_code(
    kind: str, method: str, blocks: Blocks
) -> None:
    batch = blocks.batch(np.arange(4))
    slow = adapted(kind, method)
    alone = PackedForward(slow, route=Route("one row per document"))
    expected = alone.token_losses(batch)
    alone.loss(batch, 0.01).backward()
    fast = adapted(kind, method)
    speed.set_up(fast, enabled=True, attention="auto", precision="fp32", training=True)
    forward = PackedForward(fast)
    assert forward.route.packs
    assert forward.route.head
    torch.testing.assert_close(forward.token_losses(batch), expected, rtol=1e-4, atol=1e-4)
    forward.loss(batch, 0.01).backward()
    assert close(gradients(fast), gradients(slow))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_gradient_of_one_batch(kind: str, method: str, blocks: Blocks) -> None:
    found = []
    for sizes in ((4,), (1, 1, 1, 1)):
        tiny = adapted(kind, method)
        forward, at = PackedForward(tiny), 0
        for size in sizes:
            forward.loss(blocks.batch(np.arange(at, at + size)), 0.01).backward()
            at += size
        found.append(gradients(tiny))
    assert close(found[0], found[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_have_no_gradient_and_no_moments(kind: str, precision: str, blocks: Blocks) -> None:
    tiny = adapted(kind, "lora")
    if precision == "bf16":
        assert keep_in_bf16(tiny) > 0
    speed.set_up(tiny, enabled=True, attention="auto", precision=precision, training=True)
    optimizer = build_optimizer(tiny, Config.resolve({"learning_rate": 1e-2}))
    frozen = {name: p.detach().clone() for name, p in tiny.named_parameters() if not p.requires_grad}
    trained = [p for p in tiny.parameters() if p.requires_grad]
    forward = PackedForward(tiny, precision=precision)
    with forward.autocast():
        forward.loss(blocks.batch(np.arange(2)), 0.01).backward()
    assert all(p.grad is not None for p in trained)
    assert all(p.grad is None for p in tiny.parameters() if not p.requires_grad)
    optimizer.step()
    assert set(optimizer.state) == set(trained)
    after = dict(tiny.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert all(parameter.dtype == torch.float32 for parameter in trained)


# Frozen matrices in bf16


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_matrices_in_bf16_change_products_by_rounding_only(kind: str, blocks: Blocks) -> None:
    batch = blocks.batch(np.arange(4))
    whole, half = adapted(kind, "lora"), adapted(kind, "lora")
    saved = keep_in_bf16(half)
    matrices = [p for p in half.parameters() if p.dtype == torch.bfloat16]
    assert saved == sum(2 * p.numel() for p in matrices)
    assert len(matrices) >= 8
    assert not any(p.requires_grad for p in matrices)
    exact = PackedForward(whole).token_losses(batch)
    for precision in ("fp32", "bf16"):
        rounded = PackedForward(half, precision=precision).token_losses(batch)
        assert rounded.dtype == torch.float32
        difference = float((rounded - exact).abs().mean())
        assert 1e-5 < difference < 0.1  # rounding is seen, and no more than rounding


def test_the_model_is_merged_from_the_fp32_weights(tmp_path: Path) -> None:
    base = models.load(str(save_model(tmp_path / "base", 3)))
    assert base.located is not None
    exact = {name: value.clone() for name, value in base.model.state_dict().items()}
    owner = models.AdaptedBase(base.located, base.provenance)
    adapters.attach(base.model, Config.resolve({"method": "lora", "lora_rank": 2}), seed=0)
    keep_in_bf16(base.model)
    for folder in ("adapter", "merged"):
        (tmp_path / folder).mkdir()
    owner.save_adapter(base.model, tmp_path / "adapter")
    owner.save_merged(base.model, tokenizer(), tmp_path / "adapter", tmp_path / "merged")
    merged = models.load(str(tmp_path / "merged")).model.state_dict()
    name = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(merged[name], exact[name])  # the second matrix of a new adapter is zero
    in_memory = base.model.transformer.h[0].mlp.c_fc.base_layer.weight
    assert not torch.equal(in_memory.float(), exact[name])
    restore_fp32(base.model, lambda: owner.read(tokenizer()))
    assert torch.equal(base.model.transformer.h[0].mlp.c_fc.base_layer.weight, exact[name])
    assert all(parameter.dtype == torch.float32 for parameter in base.model.parameters())
    assert keep_in_bf16(base.model) > 0
