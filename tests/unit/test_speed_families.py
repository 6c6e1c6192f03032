"""Norms, rotary positions, gated layers and linear layers: the speed layer gives each family's own numbers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finetale import speed
from finetale.blocks import Batch
from finetale.config import TrainSettings
from finetale.forward import PackedForward
from finetale.speed import loss, norms
from finetale.speed.replacing import Replacement
from finetale.training import optimizer

VOCABULARY, LENGTH = 120, 40
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA = {"FastLinear", "FastRMSNorm", "FastGatedMLP", "FastRotary"}
FAMILIES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "llama": ({}, LLAMA),
    "mistral": ({"sliding_window": None}, LLAMA),
    "qwen2": ({}, LLAMA),
    "qwen3": ({}, LLAMA),
    "smollm3": ({}, LLAMA),
    "granite": ({"residual_multiplier": 0.5}, LLAMA),
    "gemma": ({"hidden_activation": "gelu_pytorch_tanh"}, LLAMA),
    "gemma2": ({}, LLAMA),
    "olmo2": ({}, LLAMA),
    "phi3": ({"sliding_window": None}, {"FastLinear", "FastRMSNorm", "FastRotary"}),
    "stablelm": ({}, {"FastLinear", "FastGatedMLP", "FastRotary"}),
    "gpt_neox": ({}, {"FastLinear", "FastRotary"}),
    "gpt2": (
        {"n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        {"FastConv1D", "FastLinear"},
    ),
}


def built(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    words = COMMON | FAMILIES[family][0]
    if family == "gpt2":
        words = {key: value for key, value in words.items() if key not in ("num_key_value_heads", "head_dim")}
    config = AutoConfig.for_model(family, **words)
    network: PreTrainedModel = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:  # norms that are not 1, biases that are not 0
                parameter.add_(torch.linspace(-0.4, 0.4, len(parameter)))
            assert name
    return network.train()


def batch() -> Batch:
    """Two documents in a row, and a row of one; the padding token occurs."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, (2, LENGTH + 1))
    ids[:, 5] = 3
    documents = np.zeros((2, LENGTH), np.int64)
    documents[0, 25:] = 1
    positions = np.stack([np.concatenate([np.arange(25), np.arange(LENGTH - 25)]), np.arange(LENGTH)])
    inputs, labels = (np.ascontiguousarray(part) for part in (ids[:, :-1], ids[:, 1:]))
    return Batch(inputs, labels, positions, documents, documents)


def gradients(network: PreTrainedModel, precision: str = "fp32") -> tuple[float, dict[str, torch.Tensor]]:
    forward = PackedForward(network, precision=precision)
    total = forward.loss(batch(), 1 / (2 * LENGTH))
    total.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return float(total.detach()), found


def replacements(network: torch.nn.Module) -> set[str]:
    return {type(module).__mro__[1].__name__ for module in network.modules() if isinstance(module, Replacement)}


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_the_models_own(family: str) -> None:
    plain, fast = built(family), speed.apply(built(family))
    assert replacements(fast) == FAMILIES[family][1]
    (one, own), (other, ours) = gradients(plain), gradients(fast)
    assert other == pytest.approx(one, rel=1e-5)
    assert own.keys() == ours.keys() == dict(plain.named_parameters()).keys()
    for name, gradient in own.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=2e-5 * float(gradient.abs().max()) + 1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_as_close_to_fp32_as_the_models_own_bf16(family: str) -> None:
    _, exact = gradients(built(family))
    errors = []
    for network in (built(family), speed.apply(built(family))):
        _, half = gradients(network, "bf16")
        errors.append(
            sum(float((half[name] - exact[name]).norm() / exact[name].norm().clamp(min=1e-6)) for name in exact)
        )
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_undo_restores_the_classes(family: str) -> None:
    network = built(family)
    before = [type(module) for module in network.modules()]
    names = list(network.state_dict())
    speed.apply(network)
    assert list(network.state_dict()) == names
    changed = [type(module) for module in network.modules()]
    assert changed != before
    kept = [
        pair for pair in zip(changed, before, strict=True) if not {"NewGELUActivation", "Dropout"} & {pair[1].__name__}
    ]
    assert all(one.__name__ == other.__name__ and issubclass(one, other) for one, other in kept)
    assert len(kept) > len(before) // 2
    copied = copy.deepcopy(network)
    for each in (network, copied):
        assert [type(module) for module in speed.undo(each).modules()] == before


def test_layers_with_hooks_or_of_an_adapter_are_called() -> None:
    network = speed.apply(built("llama"))
    mlp = network.get_submodule("model.layers.0.mlp")
    x = torch.randn(1, 5, 32, requires_grad=True)
    called = []
    handle = mlp.up_proj.register_forward_hook(lambda *rest: called.append(1))
    hooked = mlp(x)
    handle.remove()
    torch.testing.assert_close(hooked, mlp(x))
    assert called == [1]

    class Doubled(torch.nn.Module):
        def __init__(self, base_layer: torch.nn.Module) -> None:
            super().__init__()
            self.base_layer = base_layer

        def forward(self, x: torch.Tensor) -> Any:
            return 2 * self.base_layer(x)

    plain = mlp(x)
    mlp.down_proj = Doubled(mlp.down_proj)
    torch.testing.assert_close(mlp(x), 2 * plain)
    torch.testing.assert_close(torch.autograd.grad(mlp(x).sum(), x)[0], 2 * torch.autograd.grad(plain.sum(), x)[0])


def test_frozen_layers_get_no_gradient_and_keep_no_input() -> None:
    network = speed.apply(built("llama"))
    for layer in network.get_submodule("model.layers").children():
        layer.requires_grad_(False)
    _, found = gradients(network)
    assert not any(".layers." in name for name in found)
    assert len(found) == 3


def test_a_norm_with_a_weight_of_zero_is_exact_too() -> None:
    results = []
    for fast in (False, True):
        torch.manual_seed(0)
        norm = built("llama").get_submodule("model.norm")
        with torch.no_grad():
            norm.weight[4] = 0.0
        holder = torch.nn.Sequential(norm)
        if fast:
            speed.apply(holder)
            assert isinstance(norm, norms.FastRMSNorm)
        x = torch.randn(2, 700, 32, requires_grad=True)
        output = norm(x)
        (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
        assert isinstance(norm.weight, torch.nn.Parameter)
        results.append([output.detach(), x.grad, norm.weight.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class OddRMSNorm(type(built("llama").get_submodule("model.norm"))):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor) -> Any:
            return super().forward(hidden_states) + 0.1

    holder = speed.apply(torch.nn.Sequential(OddRMSNorm(32)))
    assert not isinstance(holder[0], Replacement)


def test_generation_is_the_models_own() -> None:
    plain, fast = built("llama").eval(), speed.apply(built("llama")).eval()
    ids = torch.arange(6)[None]
    outputs = [network.generate(ids, max_new_tokens=8, do_sample=False).tolist() for network in (plain, fast)]
    assert outputs[0] == outputs[1]


# Gradients in bf16

needs_grad_dtype = pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="needs torch 2.10")


@needs_grad_dtype
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_half_gradients_are_the_rounded_ones(family: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the layers are the same to the bit. The output weights add chunks and the embedding in bf16."""
    monkeypatch.setattr(loss, "_HALF_CHUNK_BYTES", 2 * VOCABULARY * 30)  # three chunks
    monkeypatch.setattr(loss, "_SLICE_BYTES", 2 * 32 * 50)
    results = []
    for half in (False, True):
        network = built(family)
        if not tied:
            network.config.tie_word_embeddings = False
            head = torch.nn.Linear(32, VOCABULARY, bias=False)
            head.weight.data.copy_(network.get_input_embeddings().weight.data)  # type: ignore[arg-type]
            network.set_output_embeddings(head)
        speed.apply(network)
        speed.use_half_gradients(network, half)
        loss_, found = gradients(network, "bf16")
        results.append((loss_, found))
        speed.use_half_gradients(network, False)
        assert gradients(network, "bf16")[1]["lm_head.weight" if not tied else next(iter(found))].dtype == torch.float32
    (one, wide), (other, narrow) = results
    assert one == pytest.approx(other, rel=1e-6)
    assert wide.keys() == narrow.keys()
    kinds = {name: gradient.dtype for name, gradient in narrow.items()}
    assert torch.bfloat16 in kinds.values()
    for name, gradient in wide.items():
        assert gradient.dtype == torch.float32
        vocabulary = len(gradient) == VOCABULARY
        if kinds[name] == torch.bfloat16 and not vocabulary:
            assert torch.equal(gradient, narrow[name].float()), name
        else:
            torch.testing.assert_close(
                gradient, narrow[name].float(), rtol=2e-2, atol=4e-3 * float(gradient.abs().max())
            )
    assert sum(kind == torch.bfloat16 for kind in kinds.values()) >= 8


@needs_grad_dtype
def test_adamw_takes_gradients_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm, the clipping and the updates are those of the same gradients in fp32."""
    monkeypatch.setattr(optimizer, "_PIECE", 100)
    settings = TrainSettings(learning_rate=1e-2, weight_decay=0.1)
    torch.manual_seed(0)
    rows = [[torch.randn(30, 20).bfloat16(), torch.randn(7)] for _ in range(4)]
    results = []
    for half in (False, True):
        torch.manual_seed(1)
        holder = torch.nn.Linear(20, 30)
        holder.bias = torch.nn.Parameter(torch.randn(7))
        if half:
            holder.weight.grad_dtype = torch.bfloat16
        adamw = optimizer.build_optimizer(holder, settings)
        norms = []
        for number, (weight, bias) in enumerate(rows):
            holder.weight.grad = weight.clone() if half else weight.float()
            holder.bias.grad = bias.clone()
            norms.append(float(optimizer.clip_gradients(adamw, (1.0, 1e9)[number % 2])))
            adamw.step()
            adamw.zero_grad()
        states = [value for p in (holder.weight, holder.bias) for value in adamw.state[p].values()]
        results.append([torch.tensor(norms), holder.weight.detach(), holder.bias.detach(), *states])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert float(results[1][3]) == 4.0  # steps
