"""Test that the forward pass separates the documents of a packed row in every architecture, and its losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from finetale import speed
from finetale.blocks import IGNORE, Batch, pack
from finetale.forward import PackedForward, Route, find_route
from finetale.speed import loss
from tiny import model, store, story, tokenizer

SIZE = 64
HIDDEN: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def gpt2(kind: type[GPT2LMHeadModel] = GPT2LMHeadModel) -> PreTrainedModel:
    return kind(
        GPT2Config(vocab_size=len(tokenizer()), n_positions=SIZE, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)
    )


def gpt_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=len(tokenizer()), intermediate_size=64, initializer_range=0.2, **HIDDEN)
    )


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer()), intermediate_size=64, num_key_value_heads=1, initializer_range=0.2, **HIDDEN
        )
    )


def opt() -> PreTrainedModel:
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=len(tokenizer()),
            ffn_dim=64,
            word_embed_proj_dim=32,
            max_position_embeddings=SIZE,
            init_std=0.2,
            **HIDDEN,
        )
    )


def bloom() -> PreTrainedModel:
    return BloomForCausalLM(
        BloomConfig(vocab_size=len(tokenizer()), hidden_size=32, n_layer=2, n_head=2, initializer_range=0.2)
    )


class LeaksByPosition(GPT2LMHeadModel):
    """A model that uses the given positions, but attends to all earlier tokens unless a mask forbids it."""

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool = False,
    ) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return super().forward(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=use_cache)


class IgnoresMasks(GPT2LMHeadModel):
    """A model that attends to all earlier tokens and ignores masks."""

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool = False,
    ) -> Any:
        return super().forward(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=torch.ones_like(input_ids),
            use_cache=use_cache,
        )


class TakesOnlyIds(GPT2LMHeadModel):
    """A model whose only input is the ids."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:  # type: ignore[override]
        return super().forward(input_ids=input_ids, use_cache=use_cache)


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "gpt2": (gpt2, "restarting positions"),
    "gpt-neox": (gpt_neox, "restarting positions"),
    "llama": (llama, "restarting positions"),
    "opt": (opt, "explicit mask"),
    "bloom": (bloom, "one row per document"),
    "leaks by position": (lambda: gpt2(LeaksByPosition), "explicit mask"),
    "ignores masks": (lambda: gpt2(IgnoresMasks), "one row per document"),
    "takes only ids": (lambda: gpt2(TakesOnlyIds), "one row per document"),
}


def built(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Return rows of one, two and more documents with padding."""
    stored = store(tmp_path_factory.mktemp("forward"), [story(n, 4 + 3 * (n % 5)) for n in range(16)])
    blocks = pack(stored, "train", SIZE)
    packed = blocks.batch(np.arange(len(blocks)))
    assert len(packed.labels) >= 4
    assert (packed.parts.min(), packed.documents.max() >= 2) == (-1, True)
    return packed


def alone(tiny: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return the losses of single documents, computed with the model alone."""
    losses = torch.zeros(batch.labels.shape)
    number = 0
    for row in range(len(batch.inputs)):
        for part in set(batch.parts[row].tolist()) - {-1}:
            at = torch.from_numpy(batch.parts[row] == part)
            ids, labels = torch.from_numpy(batch.inputs[row])[at], torch.from_numpy(batch.labels[row])[at]
            with torch.inference_mode():
                losses[row, at] = F.cross_entropy(tiny(input_ids=ids[None]).logits[0], labels, reduction="none")
            number += 1
    assert number == 16
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_do_not_affect_each_other(name: str, batch: Batch) -> None:
    tiny = built(name)
    assert find_route(tiny) == Route(MODELS[name][1])
    with torch.inference_mode():
        losses = PackedForward(tiny).token_losses(batch)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, alone(tiny, batch), rtol=1e-4, atol=1e-4)


FAST = {
    "gpt2": Route("document borders passed to attention", head=True, tied=True),
    "gpt-neox": Route("document borders passed to attention", head=True),
    "llama": Route("document borders passed to attention", head=True),
    "opt": Route("document borders passed to attention", head=True, tied=True),
    "bloom": Route("one row per document", head=True, tied=True),
    "ignores masks": Route("one row per document", head=True, tied=True),
}


@pytest.mark.parametrize("name", FAST)
def test_the_speed_layer_changes_neither_losses_nor_gradients(name: str, batch: Batch) -> None:
    plain, fast = built(name), speed.apply(built(name))
    assert find_route(fast) == FAST[name]
    torch.testing.assert_close(PackedForward(fast).token_losses(batch), alone(plain, batch), rtol=1e-4, atol=1e-4)
    results = []
    for tiny in (plain, fast):
        total = PackedForward(tiny).loss(batch, 1 / 100)
        total.backward()  # type: ignore[no-untyped-call]
        results.append((total.detach(), {n: p.grad for n, p in tiny.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0)
    assert results[0][1].keys() == results[1][1].keys() == dict(plain.named_parameters()).keys()
    for parameter, gradient in results[0][1].items():
        torch.testing.assert_close(
            results[1][1][parameter], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1)
        )


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "llama", "opt", "bloom"])
def test_bf16_works_in_every_architecture(name: str, batch: Batch) -> None:
    """With autocast, rotary positions give query and key in fp32, and value in bf16."""
    exact, half = (PackedForward(speed.apply(built(name)), precision=kind) for kind in ("fp32", "bf16"))
    totals = []
    for forward in (exact, half):
        total = forward.loss(batch, 0.01)
        total.backward()  # type: ignore[no-untyped-call]
        totals.append(float(total.detach()))
    assert totals[0] != totals[1] == pytest.approx(totals[0], rel=0.02)
    gradients = [
        torch.cat([p.grad.flatten() for p in f.model.parameters() if p.grad is not None]) for f in (exact, half)
    ]
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 0.1
    assert float(half.token_losses(batch).sum()) * 0.01 == pytest.approx(totals[1], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "route"),
    [
        ({"sliding_window": 4}, Route("restarting positions", head=True)),
        ({"layer_types": ["full_attention", "sliding_attention"]}, Route("restarting positions", head=True)),
        ({"final_logit_softcapping": 30.0}, Route("document borders passed to attention")),
        ({"logits_scaling": 8.0}, Route("document borders passed to attention")),
        ({"logit_scale": 1.0}, Route("document borders passed to attention", head=True)),
    ],
)
def test_the_config_decides_if_a_small_batch_cannot(change: dict[str, Any], route: Route) -> None:
    tiny = built("llama")
    for name, value in change.items():
        setattr(tiny.config, name, value)
    found = find_route(speed.apply(tiny))
    assert (found.packs, found.head) == (route.packs, route.head)


def test_gradients_of_several_passes_add_up(batch: Batch) -> None:
    plain, fast = built("gpt2"), speed.apply(built("gpt2"))
    for tiny in (plain, fast):
        forward = PackedForward(tiny)
        for scale in (1.0, 0.5):
            forward.loss(batch, scale).backward()  # type: ignore[no-untyped-call]
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_frozen_weights_get_no_gradient(batch: Batch) -> None:
    tiny = speed.apply(built("gpt2"))
    tiny.get_input_embeddings().requires_grad_(False)
    PackedForward(tiny).loss(batch).backward()  # type: ignore[no-untyped-call]
    assert tiny.get_input_embeddings().weight.grad is None
    assert all(p.grad is not None for p in tiny.parameters() if p.requires_grad)


def test_a_compiled_model_sees_few_shapes(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def compiled(module: Any, **options: Any) -> Any:
        if not isinstance(module, torch.nn.Module):  # the loss
            return module
        assert options == {"dynamic": False}

        def call(**arguments: Any) -> Any:
            seen.append(arguments)
            return module(**arguments)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    loss._compiled_gradient.cache_clear()
    tiny = speed.apply(built("gpt2"))
    one, other = PackedForward(tiny, compiled=True), PackedForward(tiny)
    few = Batch(*(array[:, :32].copy() for array in vars(batch).values()))
    few.documents[:] = 0
    for piece in (batch, few):
        torch.testing.assert_close(one.token_losses(piece), other.token_losses(piece), rtol=1e-4, atol=1e-5)
        totals = []
        for forward in (one, other):
            tiny.zero_grad()
            total = forward.loss(piece, 0.01)
            total.backward()  # type: ignore[no-untyped-call]
            totals.append((total.detach(), tiny.transformer.wte.weight.grad.clone()))  # type: ignore[union-attr]
        torch.testing.assert_close(totals[0], totals[1], rtol=1e-4, atol=1e-5)
    loss._compiled_gradient.cache_clear()
    assert len(seen) == 4
    assert {len(arguments["cu_seq_lens_q"]) for arguments in seen} == {65}
    assert [arguments["max_length_q"] for arguments in seen] == [64, 64, 32, 32]


def test_the_speed_layer_does_not_change_generation() -> None:
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    written = [
        tiny.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        for tiny in (built("gpt2"), speed.apply(built("gpt2")))
    ]
    assert torch.equal(written[0], written[1])
    assert written[0].shape == (2, 16)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("opt", "restarting positions"),
        ("bloom", "restarting positions"),
        ("leaks by position", "restarting positions"),
        ("ignores masks", "restarting positions"),
        ("ignores masks", "explicit mask"),
    ],
)
def test_rejected_routes_leak_between_documents(name: str, wrong: str, batch: Batch) -> None:
    tiny = built(name)
    with torch.inference_mode():
        leaking = PackedForward(tiny, route=Route(wrong)).token_losses(batch)
    assert (leaking - alone(tiny, batch)).abs().max() > 0.1


@pytest.mark.parametrize("isolation", ["restarting positions", "explicit mask", "one row per document"])
def test_every_route_gives_the_same_gradients(isolation: str, batch: Batch) -> None:
    gradients = []
    for way in ("restarting positions", isolation):
        tiny = built("gpt2")
        PackedForward(tiny, route=Route(way)).loss(batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in tiny.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_choosing_a_route_does_not_change_the_model(training: bool) -> None:
    tiny = model(0, dropout=0.5).train(training)
    assert find_route(tiny) == Route("restarting positions")  # dropout would hide a difference
    assert tiny.training is training
    assert tiny.transformer.drop.training is training
    assert all(p.grad is None for p in tiny.parameters())


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom"])
def test_ignored_labels_have_no_loss(name: str, batch: Batch) -> None:
    labels = batch.labels.copy()
    labels[:, ::3] = IGNORE
    ignored = labels == IGNORE
    assert ignored.sum() > 100
    masked = Batch(batch.inputs, labels, batch.positions, batch.documents, batch.parts)
    forward = PackedForward(built(name))
    with torch.inference_mode():
        losses, whole = forward.token_losses(masked), forward.token_losses(batch)
    assert losses[ignored].eq(0).all()
    assert torch.equal(losses[~ignored], whole[~ignored])
    assert whole[~ignored].gt(0).all()


def test_bf16_is_within_two_percent_of_fp32(batch: Batch) -> None:
    tiny = model(1)
    with torch.inference_mode():
        full = PackedForward(tiny).token_losses(batch)
        half = PackedForward(tiny, precision="bf16").token_losses(batch)
    assert half.dtype == torch.float32
    assert (half - full).abs().max() > 0
    assert float(half.sum()) == pytest.approx(float(full.sum()), rel=0.02)
    counted = torch.from_numpy(batch.labels != IGNORE)
    assert ((half - full).abs() / full)[counted].median() < 0.02
    assert next(tiny.parameters()).dtype == torch.float32
