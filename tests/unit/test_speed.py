"""Test that each speed-up gives the same numbers as the code it replaces, and can be undone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from finetale import models, speed
from finetale.blocks import IGNORE
from finetale.speed import allocator, attention, flash, loss
from finetale.speed.modules import keep_mask
from tiny import model, tokenizer


def activations(network: torch.nn.Module) -> list[str]:
    return [type(module).__name__ for name, module in network.named_modules() if name.endswith(".act")]


def test_apply_replaces_modules_and_undo_restores_them() -> None:
    tiny = model(dropout=0.1)
    before, parameters, config = list(tiny.modules()), dict(tiny.state_dict()), tiny.config.to_dict()
    assert speed.apply(tiny) is tiny
    assert speed.is_applied(tiny)
    assert speed.packs_documents(tiny)
    assert set(speed.applied(tiny).values()) == {"fused tanh-GELU", "16-bit random numbers"}
    assert tiny.config.to_dict() == config
    assert activations(tiny) == ["FusedGELU", "FusedGELU"]
    assert tiny.state_dict().keys() == parameters.keys()
    assert speed.apply(tiny) is tiny  # a second time changes nothing
    tiny.train()
    speed.undo(tiny)
    assert list(tiny.modules()) == before
    assert all(module.training for module in before)
    assert not speed.is_applied(tiny)
    assert not speed.packs_documents(tiny)
    assert set(speed.applied(tiny).values()) == {"the model's own"}
    assert activations(tiny) == ["NewGELUActivation", "NewGELUActivation"]


@pytest.mark.parametrize("before", [speed.apply, speed.undo])
@pytest.mark.parametrize(
    ("settings", "applied", "packs"),
    [
        ({"enabled": True, "attention": "auto"}, True, True),
        ({"enabled": True, "attention": "documents"}, True, True),
        ({"enabled": True, "attention": "model"}, True, False),
        ({"enabled": False, "attention": "documents"}, False, False),
    ],
)
def test_set_up_follows_the_settings(
    before: Callable[[Any], Any], settings: dict[str, Any], applied: bool, packs: bool
) -> None:
    tiny = before(model())
    speed.set_up(tiny, precision="fp32", training=True, **settings)
    assert (speed.is_applied(tiny), speed.packs_documents(tiny)) == (applied, packs)
    assert activations(tiny) == ["FusedGELU" if applied else "NewGELUActivation"] * 2


def test_set_up_skips_an_attention_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "has_kernel", lambda model, *, precision, training: False)
    tiny = model()
    speed.set_up(tiny, enabled=True, attention="documents", precision="fp32", training=False)
    assert (speed.is_applied(tiny), speed.packs_documents(tiny)) == (True, False)


@pytest.mark.parametrize("documents", [True, False])
def test_speed_ups_are_suspended_and_restored(documents: bool) -> None:
    tiny = speed.apply(model())
    speed.use_documents(tiny, documents)

    def fail_within() -> None:
        with speed.suspended(tiny):
            assert activations(tiny) == ["NewGELUActivation"] * 2
            assert not speed.packs_documents(tiny)
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fail_within()
    assert activations(tiny) == ["FusedGELU"] * 2
    assert speed.packs_documents(tiny) is documents
    with speed.suspended(plain := model()):
        pass
    assert not speed.is_applied(plain)


def test_a_copied_model_can_be_undone_too() -> None:
    assert activations(speed.undo(copy.deepcopy(speed.apply(model())))) == ["NewGELUActivation"] * 2


def test_opened_models_are_sped_up_and_saved_without_speed_ups(tmp_path: Path) -> None:
    new = models.open_model("new:64x2", lambda event: None, tokenizer=tokenizer()).model
    models.save(new, tokenizer(), tmp_path)
    loaded = models.open_model(str(tmp_path), lambda event: None).model
    assert activations(new) == activations(loaded) == ["FusedGELU"] * 2
    assert activations(models.load(str(tmp_path)).model) == ["NewGELUActivation"] * 2
    slow = models.open_model(str(tmp_path), lambda event: None, fast=False).model
    assert activations(slow) == ["NewGELUActivation"] * 2
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert activations(plain) == ["NewGELUActivation"] * 2
    assert plain.state_dict().keys() == loaded.state_dict().keys()


def test_the_fused_activation_equals_the_plain_one() -> None:
    plain, fused = NewGELUActivation(), speed.FusedGELU(NewGELUActivation())
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=1e-12)
    x = x.float().requires_grad_()
    torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=2e-6)
    (one,), (other,) = torch.autograd.grad(fused(x).sum(), x), torch.autograd.grad(plain(x).sum(), x)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows", [1, 300])
def test_chunked_loss_and_gradient_equal_those_of_pytorch(
    dtype: torch.dtype, tolerance: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_ROWS_BYTES", 4 * 500 * 7)  # chunks of seven rows and a shorter one
    torch.manual_seed(0)
    logits = torch.randn(rows, 500).mul(4).to(dtype).requires_grad_()
    labels = torch.randint(0, 500, (rows,))
    labels[1::4] = IGNORE
    outer = torch.rand(rows)
    ours = speed.cross_entropy(logits, labels, IGNORE)
    theirs = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)
    assert bool((ours[labels == IGNORE] == 0).all())
    (one,), (other,) = (torch.autograd.grad((losses * outer).sum(), logits) for losses in (ours, theirs))
    assert one.dtype == dtype
    torch.testing.assert_close(one, other, rtol=tolerance, atol=1e-6)


def test_an_infinite_loss_stays_infinite() -> None:
    logits = torch.tensor([[0.0, float("-inf")], [float("nan"), 0.0]])
    losses = speed.cross_entropy(logits, torch.tensor([1, 0]), IGNORE)
    assert losses[0] == float("inf")
    assert bool(losses[1].isnan())


@pytest.mark.parametrize("offset", [0.0, -100.0, -1000.0])
def test_logits_far_from_zero_lose_no_precision(offset: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 500) + offset, torch.randint(0, 500, (40,))
    torch.testing.assert_close(
        speed.cross_entropy(logits, labels, IGNORE).double(),
        F.cross_entropy(logits.double(), labels, reduction="none"),
        rtol=0,
        atol=2e-6,
    )


def test_a_label_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        speed.cross_entropy(torch.zeros(2, 5), torch.tensor([1, -1]), IGNORE)


# Attention of packed documents

BORDERS = [0, 3, 4, 40, 300, 310, 311, 500]


def heads(dtype: torch.dtype, *, keys: int = 4) -> list[torch.Tensor]:
    """Return query, key and value of shape (1, heads, 500, 16) with the memory layout of a projection."""
    torch.manual_seed(0)
    return [torch.randn(1, 500, number, 16).to(dtype).transpose(1, 2).requires_grad_() for number in (4, keys, keys)]


def attend(tensors: list[torch.Tensor], **options: object) -> torch.Tensor:
    borders = torch.tensor(BORDERS, dtype=torch.int32)
    output, weights = attention.attend(torch.nn.Module(), *tensors, None, cu_seq_lens_q=borders, **options)  # type: ignore[arg-type]
    assert weights is None
    return output


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: float) -> torch.Tensor:
    """Return the same attention, computed by PyTorch with a mask over all pairs."""
    document = torch.repeat_interleave(torch.arange(len(BORDERS) - 1), torch.tensor(BORDERS).diff())
    mask = (document[:, None] == document[None, :]) & torch.ones(500, 500, dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True, **options).transpose(1, 2)


@pytest.mark.parametrize("keys", [4, 2, 1])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)
def test_tiled_attention_equals_masked_attention(dtype: torch.dtype, tolerance: float, keys: int) -> None:
    ours, theirs = heads(dtype, keys=keys), heads(torch.float64, keys=keys)
    for one, other in zip(theirs, ours, strict=True):
        one.data.copy_(other.data)
    outer = torch.randn(1, 500, 4, 16)
    outputs = [attend(ours, scaling=0.3), masked(*theirs, scale=0.3)]
    assert outputs[0].dtype == dtype
    for output in outputs:
        (output * outer.to(output.dtype)).sum().backward()
    pairs = [[output.detach() for output in outputs], *([a.grad, b.grad] for a, b in zip(ours, theirs, strict=True))]
    for one, other in pairs:
        assert one is not None
        assert float((one.double() - other).norm() / other.norm()) < tolerance


@pytest.mark.parametrize("lengths", [[100] * 5, [500], [250, 250]])
def test_documents_of_equal_length_are_computed_in_one_batch(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    borders = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    assert attention._equal_rows(tuple(borders)) == (len(lengths), (0, lengths[0]))
    assert attention._equal_rows(tuple(BORDERS)) == (1, tuple(BORDERS))
    results = []
    for fold in (True, False):
        if not fold:
            monkeypatch.setattr(attention, "_equal_rows", lambda borders: (1, borders))
        tensors = heads(torch.float64)
        output, _ = attention.attend(torch.nn.Module(), *tensors, None, cu_seq_lens_q=torch.tensor(borders))
        (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
        results.append([output.detach(), *(tensor.grad for tensor in tensors)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("keys", [4, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_long_documents_keep_no_weights(
    dtype: torch.dtype, tolerance: float, keys: int, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With matrix instructions (AMX), their output comes from PyTorch's flash kernel."""
    monkeypatch.setattr(attention, "_KEPT_KEYS", 50)
    monkeypatch.setattr(attention, "_TILE", {dtype: 60})
    monkeypatch.setattr(attention, "has_amx", lambda: amx)
    ours, theirs = heads(dtype, keys=keys), heads(torch.float64, keys=keys)
    for one, other in zip(theirs, ours, strict=True):
        one.data.copy_(other.data)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        output = attend(ours, scaling=0.3)
    assert max(x.shape[-1] for x in kept) <= 50
    outputs = [output, masked(*theirs, scale=0.3)]
    outer = torch.randn(outputs[0].shape)
    gradients = [torch.autograd.grad((o * outer).sum(), t) for o, t in zip(outputs, (ours, theirs), strict=True)]
    found = [[output.detach(), *grads] for output, grads in zip(outputs, gradients, strict=True)]
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm() / other.norm()) < tolerance


@pytest.mark.parametrize("size", [1, 7, 96, 192, 1000])
def test_tiles_cover_each_visible_pair_once(size: int) -> None:
    seen = torch.zeros(500, 500, dtype=torch.int64)
    for tile in attention.tiles_of(tuple(BORDERS), size):
        assert 0 < tile.stop - tile.start <= size
        block = torch.ones(tile.stop - tile.start, tile.stop - tile.first, dtype=torch.int64)
        block[:, tile.start - tile.first :][tile.hidden] = 0
        seen[tile.start : tile.stop, tile.first : tile.stop] += block
    document = torch.repeat_interleave(torch.arange(len(BORDERS) - 1), torch.tensor(BORDERS).diff())
    assert torch.equal(seen, ((document[:, None] == document[None, :]).long().tril()))


def test_attention_without_documents_is_that_of_pytorch() -> None:
    tensors = heads(torch.float32)
    output, _ = attention.attend(torch.nn.Module(), *tensors, None, scaling=0.25)
    torch.testing.assert_close(
        output, F.scaled_dot_product_attention(*tensors, is_causal=True, scale=0.25).transpose(1, 2)
    )


@pytest.mark.parametrize("option", ["sliding_window", "softcap", "position_bias", "s_aux", "indices"])
def test_other_kinds_of_attention_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        attend(heads(torch.float32), **{option: 8})


def test_dropout_of_attention_is_unbiased_and_has_the_right_gradient() -> None:
    query, key, value = heads(torch.float64)
    exact = masked(query, key, value).detach()
    torch.manual_seed(1)
    drawn = torch.stack([attend([query, key, value], dropout=0.3).detach() for _ in range(200)])
    assert float((drawn - exact).abs().max()) > 0.1
    assert float((drawn.mean(0) - exact).norm() / exact.norm()) < 0.15

    def loss(value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(2)
        return attend([query, key, value], dropout=0.3).pow(2).sum()

    (gradient,) = torch.autograd.grad(loss(value), value)
    direction = torch.randn_like(value)
    step = 1e-6
    with torch.no_grad():
        slope = (loss(value + step * direction) - loss(value - step * direction)) / (2 * step)
    assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


# Dropout


def test_masks_keep_their_share_and_repeat_with_the_seed() -> None:
    for keep in (0.9, 0.5, 0.01):
        torch.manual_seed(3)
        one = keep_mask(1_000_003, keep)
        assert one.shape == (1_000_003,)
        assert float(one.double().mean()) == pytest.approx(keep, abs=0.002)
        torch.manual_seed(3)
        assert torch.equal(keep_mask(1_000_003, keep), one)
        assert not torch.equal(keep_mask(1_000_003, keep), one)


def test_fast_dropout_has_the_right_rate_and_gradient() -> None:
    torch.manual_seed(0)
    dropout = speed.FastDropout(torch.nn.Dropout(0.25))
    x = torch.rand(300, 400).add(1).requires_grad_()
    output = dropout(x)
    kept = output != 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(output[kept], x[kept] / 0.75)
    output.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, kept / 0.75)
    assert dropout.eval()(x) is x
    assert bool((speed.FastDropout(torch.nn.Dropout(1.0))(x) == 0).all())


# The loss without logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("outer", [1.0, 3.0])
def test_the_loss_without_logits_equals_that_of_pytorch(
    with_bias: bool, tied: bool, outer: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 8 * 90 * 16)  # several chunks
    monkeypatch.setattr(loss, "_ROWS_BYTES", 4 * 90 * 5)
    torch.manual_seed(0)
    tokens, labels = torch.randint(0, 90, (50,)), torch.randint(0, 90, (50,))
    labels[::3] = IGNORE
    results = []
    for ours in (True, False):
        torch.manual_seed(1)
        weight = torch.randn(90, 12, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(90, dtype=torch.float64, requires_grad=True) if with_bias else None
        hidden = torch.randn(50, 12, dtype=torch.float64, requires_grad=True)
        shared = speed.TiedWeights(weight) if tied and ours else None
        rows = hidden
        if tied:
            rows = hidden + (F.embedding(tokens, weight) if shared is None else shared.embed(tokens))
        if ours:
            total = speed.summed_cross_entropy(rows, weight, bias, labels, IGNORE, 0.1, shared)
            torch.testing.assert_close(
                speed.linear_cross_entropy(rows, weight, bias, labels, IGNORE).sum() * 0.1, total, rtol=1e-5, atol=0
            )
        else:
            logits = F.linear(rows, weight, bias)
            total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") * 0.1
        (total * outer).backward()
        results.append([total.detach().double(), hidden.grad, weight.grad, *([bias.grad] if bias is not None else [])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, -100.0, 1000.0])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_the_loss_without_logits_is_exact_for_large_scores(offset: float, spread: float) -> None:
    """With a standard deviation of 60, the probability of many targets underflows in fp32."""
    torch.manual_seed(0)
    hidden, bias = torch.randn(60, 4), torch.full((50,), offset)
    weight, labels = torch.randn(50, 4) * spread, torch.randint(0, 50, (60,))
    logits = F.linear(hidden, weight, bias)
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    assert bool((losses > 104).any()) is (spread == 60)
    ours = speed.summed_cross_entropy(hidden, weight, bias, labels, IGNORE)
    assert float(ours) == pytest.approx(float(losses.sum()), rel=1e-5)


def test_a_nan_loss_stays_nan() -> None:
    hidden, weight = torch.randn(3, 2), torch.randn(5, 2)
    hidden[1, 0] = float("nan")
    assert speed.summed_cross_entropy(hidden, weight, None, torch.tensor([0, 1, 2]), IGNORE).isnan()
    assert not speed.summed_cross_entropy(hidden, weight, None, torch.tensor([0, IGNORE, 2]), IGNORE).isnan()


def test_at_most_one_chunk_of_logits_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    made = loss._logits

    def watched(*arguments: torch.Tensor) -> torch.Tensor:
        logits = made(*arguments)
        sizes.append(logits.numel() * logits.element_size())
        return logits

    monkeypatch.setattr(loss, "_logits", watched)
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 100_000)
    hidden, weight = torch.randn(700, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    speed.summed_cross_entropy(hidden, weight, None, torch.randint(0, 500, (700,)), IGNORE).backward()
    assert len(sizes) == 14
    assert max(sizes) <= 100_000


@pytest.mark.parametrize(
    ("device", "head_size", "dropout", "capability", "expected"),
    [
        ("cpu", 7, 0.5, 0, True),
        ("cuda", 64, 0.0, 9, True),
        ("cuda", 64, 0.1, 9, True),
        ("cuda", 60, 0.0, 9, False),
        ("cuda", 512, 0.0, 9, False),
        ("cuda", 64, 0.0, 7, False),
        ("mps", 64, 0.0, 9, False),
    ],
)
def test_which_devices_have_a_kernel_for_documents(
    device: str, head_size: int, dropout: float, capability: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    for right in (True, False):
        monkeypatch.setattr(flash, "is_right", lambda *arguments, right=right: right)
        wanted = expected and (right or device == "cpu")
        assert attention.has_kernel(torch.device(device), head_size, dropout) is wanted


def test_a_kernel_that_is_missing_or_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU PyTorch has no flash kernel. `masked_attention` takes its place, correct and with a small error."""
    check = flash.is_right.__wrapped__  # without the memory of earlier answers
    assert not check(torch.device("cpu"), 64, 0.0)

    def exact(*arguments: Any, error: float = 0.0) -> torch.Tensor:
        query, key, value, borders, _, scale, dropout = arguments
        return flash.masked_attention(query, key, value, borders, scale, dropout) * (1 + error)

    monkeypatch.setattr(flash, "attention", exact)
    assert check(torch.device("cpu"), 64, 0.0)
    assert check(torch.device("cpu"), 64, 0.1)
    monkeypatch.setattr(flash, "attention", partial(exact, error=0.05))
    assert not check(torch.device("cpu"), 64, 0.0)
    monkeypatch.setattr(flash, "attention", lambda *arguments: exact(*arguments[:-1], 0.0))
    assert not check(torch.device("cpu"), 64, 0.1)  # it ignores dropout


def test_malloc_is_not_configured_if_the_environment_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MALLOC_ARENA_MAX", "1"), ("GLIBC_TUNABLES", "glibc.malloc.check=3")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            allocator._glibc.cache_clear()
            assert allocator._glibc() is None
            with speed.kept_memory():
                pass
    allocator._glibc.cache_clear()


def test_memory_is_kept_only_inside_the_context() -> None:
    calls: list[tuple[int, int]] = []

    class Libc:
        def mallopt(self, name: int, value: int) -> int:
            calls.append((name, value))
            return 1

        def malloc_trim(self, pad: int) -> int:
            return 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocator, "_glibc", Libc)
        with contextlib.suppress(KeyError), speed.kept_memory():
            with speed.kept_memory():
                assert len(calls) == 2
            assert len(calls) == 2
            raise KeyError
    assert calls[:2] == [(-4, 0), (-1, 2**31 - 1)]
    assert calls[2:] == [(-4, 65536), (-3, 32 * 2**20), (-1, 64 * 2**20)]


def test_stochastic_rounding_keeps_the_mean() -> None:
    torch.manual_seed(0)
    value = torch.tensor([1.0 + 2.0**-10, -3.0 - 2.0**-8, 1e-12, 0.0, 2.0]).repeat(200_000, 1)
    rounded = speed.round_stochastically(value)
    assert rounded.dtype == torch.bfloat16
    low, high = rounded.float().min(0).values, rounded.float().max(0).values
    assert bool((low <= value[0]).all() & (value[0] <= high).all())
    assert bool(((high - low) <= value[0].abs() * 2.0**-7).all())
    torch.testing.assert_close(rounded.double().mean(0), value[0].double(), rtol=2e-5, atol=0)
    assert torch.equal(low[3:], value[0, 3:])  # values that bf16 can represent do not change
    assert torch.equal(high[3:], value[0, 3:])
