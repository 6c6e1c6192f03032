"""Each speed-up gives the numbers of what it replaces, and can be taken back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from finetale import models, speed
from finetale.blocks import IGNORE
from finetale.speed import loss
from tiny import model, tokenizer


def activations(network: torch.nn.Module) -> list[str]:
    return [type(module).__name__ for name, module in network.named_modules() if name.endswith(".act")]


def test_apply_replaces_the_activation_and_undo_puts_the_same_one_back() -> None:
    tiny = model()
    before, parameters = list(tiny.modules()), dict(tiny.state_dict())
    assert speed.apply(tiny) is tiny
    assert activations(tiny) == ["FusedGELU", "FusedGELU"]
    assert tiny.state_dict().keys() == parameters.keys()
    assert speed.apply(tiny) is tiny  # a second time changes nothing
    speed.undo(tiny)
    assert list(tiny.modules()) == before
    assert activations(tiny) == ["NewGELUActivation", "NewGELUActivation"]


def test_a_copied_model_can_be_undone_too() -> None:
    assert activations(speed.undo(copy.deepcopy(speed.apply(model())))) == ["NewGELUActivation"] * 2


def test_loaded_and_new_models_are_sped_up_and_saved_as_they_came(tmp_path: Path) -> None:
    new = models.load("new:64x2", tokenizer=tokenizer()).model
    models.save(new, tokenizer(), tmp_path)
    loaded = models.load(str(tmp_path)).model
    assert activations(new) == activations(loaded) == ["FusedGELU"] * 2
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert activations(plain) == ["NewGELUActivation"] * 2
    assert plain.state_dict().keys() == loaded.state_dict().keys()


def test_the_fused_activation_is_the_plain_one() -> None:
    plain, fused = NewGELUActivation(), speed.FusedGELU(NewGELUActivation())
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=1e-12)
    x = x.float().requires_grad_()
    torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=2e-6)
    (one,), (other,) = torch.autograd.grad(fused(x).sum(), x), torch.autograd.grad(plain(x).sum(), x)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows", [1, 300])
def test_chunked_loss_and_gradient_are_those_of_pytorch(
    dtype: torch.dtype, tolerance: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_ROWS_BYTES", 4 * 500 * 7)  # chunks of seven rows, and a rest
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


def test_a_loss_of_infinity_stays_infinite() -> None:
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


def test_a_label_that_is_no_token_is_an_error() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        speed.cross_entropy(torch.zeros(2, 5), torch.tensor([1, -1]), IGNORE)
