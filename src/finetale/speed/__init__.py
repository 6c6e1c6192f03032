"""Make a model faster without changing its results beyond rounding. Does not know about training.

`apply` replaces modules and the attention function. It never changes parameters or the saved config, so a saved model
is the same as without speed-ups. `undo` reverts `apply`. A speed-up that does not fit a model is skipped. `applied`
lists the speed-ups in use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import torch.nn as nn

from finetale.speed import attention
from finetale.speed.allocator import kept_memory, release, release_holes, temporary
from finetale.speed.gated import FastGatedMLP, is_gated
from finetale.speed.loss import (
    TiedWeights,
    chunk_bytes,
    cross_entropy,
    has_half_gradient,
    linear_cross_entropy,
    most_likely,
    summed_cross_entropy,
)
from finetale.speed.low_rank import FastLoRA, is_low_rank
from finetale.speed.modules import FastDropout, FusedGELU
from finetale.speed.norms import FastRMSNorm, is_rms_norm
from finetale.speed.products import FastConv1D, FastLinear, half_gradient_bytes, use_half_gradients
from finetale.speed.replacing import Replacement, computed_as, is_simple, replace, restore
from finetale.speed.rotary import FastRotary, uses_rotary
from finetale.speed.rounding import round_stochastically

if TYPE_CHECKING:
    from transformers import PreTrainedModel

M = TypeVar("M", bound="nn.Module")

__all__ = [
    "FastDropout",
    "FusedGELU",
    "TiedWeights",
    "applied",
    "apply",
    "chunk_bytes",
    "cross_entropy",
    "half_gradient_bytes",
    "has_half_gradient",
    "has_kernel",
    "is_applied",
    "kept_memory",
    "linear_cross_entropy",
    "most_likely",
    "packs_documents",
    "release",
    "release_holes",
    "round_stochastically",
    "set_up",
    "summed_cross_entropy",
    "suspended",
    "temporary",
    "undo",
    "use_documents",
    "use_half_gradients",
]


def apply(model: M) -> M:
    """Replace modules and attention with faster ones and return the model. A second call changes nothing."""
    for parent, name, child in _children(model):
        if type(child).__name__ == "NewGELUActivation":
            setattr(parent, name, FusedGELU(child))
        elif type(child) is nn.Dropout:
            setattr(parent, name, FastDropout(child))
    checked: dict[tuple[object, ...], type[Replacement] | None] = {}
    on_cpu = next(model.parameters()).device.type == "cpu"  # elsewhere the replacements would call the originals
    for module in model.modules() if on_cpu else ():
        if not isinstance(module, Replacement) and (faster := _faster(module, checked)) is not None:
            replace(module, faster)
    _set_attention(model, "sdpa", attention.NAME)
    model.finetale_speed = True  # type: ignore[assignment]
    return model


def set_up(model: nn.Module, *, enabled: bool, attention: str, precision: str, training: bool) -> None:
    """Apply the speed-ups that the settings allow. No other function decides this.

    Args:
        model: the model, already on its device.
        enabled: the setting `speed`; False restores the model's own code.
        attention: the setting `attention`; "model" keeps the model's own attention.
        precision: the type of the matrix products, "fp32" or "bf16".
        training: whether the model will be trained. Training needs a kernel with dropout and gradients.
    """
    if not enabled:
        undo(model)
        return
    apply(model)
    use_documents(model, attention != "model" and has_kernel(model, precision=precision, training=training))


@contextlib.contextmanager
def suspended(model: nn.Module) -> Iterator[None]:
    """Remove the speed-ups of a model inside the context."""
    if not is_applied(model):
        yield
        return
    documents = packs_documents(model)
    undo(model)
    try:
        yield
    finally:
        apply(model)
        use_documents(model, documents)


def undo(model: M) -> M:
    """Restore the modules and attention that `apply` replaced; return the model."""
    for parent, name, child in _children(model):
        if isinstance(child, FusedGELU | FastDropout):
            original = child.replaced[0]
            setattr(parent, name, original.train(child.training))
    for module in model.modules():
        restore(module)
    _set_attention(model, attention.NAME, "sdpa")
    model.finetale_speed = False  # type: ignore[assignment]
    return model


def use_documents(model: nn.Module, yes: bool) -> None:
    """Select attention over packed documents, or the model's own. Does nothing if `apply` was not called."""
    if is_applied(model):
        _set_attention(model, *(("sdpa", attention.NAME) if yes else (attention.NAME, "sdpa")))


def has_kernel(model: nn.Module, *, precision: str, training: bool) -> bool:
    """Return whether the model's device has a kernel for packed documents. Without one they need far more memory."""
    config = model.config.get_text_config()  # type: ignore[union-attr,operator]
    device = next(model.parameters()).device
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rates = [getattr(config, name, 0.0) or 0.0 for name in ("attn_pdrop", "attention_dropout")]
    if device.type == "cuda" and precision != "bf16":
        return False
    return attention.has_kernel(device, size, max(rates) if training else 0.0)


def is_applied(model: nn.Module) -> bool:
    """Return whether `apply` was called, even if no speed-up fits the model."""
    return bool(getattr(model, "finetale_speed", False))


def applied(model: nn.Module) -> dict[str, str]:
    """Return the implementation of each part of the model: a speed-up or the model's own code."""
    kinds = {type(module) for module in model.modules()}
    return {
        "activation": "fused tanh-GELU" if FusedGELU in kinds else "the model's own",
        "dropout": "16-bit random numbers" if FastDropout in kinds else "the model's own",
    }


def packs_documents(model: nn.Module) -> bool:
    """Return whether the model's attention accepts the borders of packed documents (`cu_seq_lens_q`)."""
    config = getattr(model, "config", None)
    return getattr(config, "_attn_implementation", None) == attention.NAME


def _set_attention(model: nn.Module, old: str, new: str) -> None:
    """Replace attention `old` with `new`, if the model uses `old` and supports `new`."""
    config = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) != old or not _is_switchable(model):
        return
    if new == attention.NAME and not attention.is_plain(config):
        return
    attention.register()
    model.set_attn_implementation(new)  # type: ignore[operator]


def _is_switchable(model: PreTrainedModel | nn.Module) -> bool:
    check = getattr(model, "_can_set_attn_implementation", None)
    return check is not None and bool(check())


def _faster(module: nn.Module, checked: dict[tuple[object, ...], type[Replacement] | None]) -> type[Replacement] | None:
    """Return the faster class for a module, or None. One module of each class and width is tested with numbers."""
    if is_simple(module, nn.Linear):
        return FastLinear
    if computed_as(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return FastConv1D
    key = (type(module), *(tuple(p.shape) for p in module.parameters()))
    if key not in checked:
        tests = (
            (FastRMSNorm, is_rms_norm),
            (FastGatedMLP, is_gated),
            (FastRotary, uses_rotary),
            (FastLoRA, is_low_rank),
        )
        checked[key] = next((faster for faster, test in tests if test(module)), None)
    return checked[key]


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
