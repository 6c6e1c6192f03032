"""Compute a linear layer with a LoRA adapter (Hu et al. 2021) as one function.

PEFT's own code converts the input to fp32, multiplies the parts one by one and adds them in new arrays, which autograd
keeps. Here only the input is kept, in the type of the matrix products. Does not import PEFT: its layers are recognised
by their parts and compared with numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable

from finetale.speed.allocator import cast
from finetale.speed.loss import compute_type
from finetale.speed.products import product_of, takes_over
from finetale.speed.replacing import Replacement, computed_as, is_simple

_TOLERANCE = 1e-5
"""Largest relative difference from PEFT's output in fp32."""


class FastLoRA(Replacement):
    """PEFT's LoRA beside a frozen layer, in training on a CPU. Otherwise, and with dropout, it is the original."""

    base_layer: nn.Module

    def forward(self, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        pair = None if arguments or options or not takes_over(x) else _only_pair(self)
        if pair is None:
            return self.original(x, *arguments, **options)  # type: ignore[no-any-return]
        base: Any = self.base_layer
        output: torch.Tensor = _LoRA.apply(x, base.weight, base.bias, *pair, not isinstance(base, nn.Linear))  # type: ignore[no-untyped-call]
        return output


def is_low_rank(module: nn.Module) -> bool:
    """Return whether a module computes base(x) + scale x B(A(x)) with one pair of matrices and a known base."""
    pair = _only_pair(module)
    if pair is None or next(module.parameters()).device.type != "cpu":
        return False
    first, second, scale = pair
    with torch.no_grad():
        x = torch.linspace(-3, 3, 2 * first.shape[1]).sin().view(1, 2, -1)
        base: Any = module.base_layer
        if base.weight.dtype != torch.float32:
            return True  # the product needs autocast, so it can't be compared; classes and parts are known
        theirs = module(x)
        ours = base(x) + scale * (x @ first.t() @ second.t())
    return bool((theirs - ours).abs().max() <= _TOLERANCE * theirs.abs().max())


def _only_pair(module: Any) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """Return A, B and the scale of a LoRA layer if nothing else changes its output, otherwise None."""
    if not type(module).__module__.startswith("peft.tuners.lora"):
        return None
    names, base = list(getattr(module, "active_adapters", ())), getattr(module, "base_layer", None)
    if len(names) != 1 or names[0] not in module.lora_A or module.disable_adapters or module.merged:
        return None
    (name,) = names
    first, second, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    drops = not isinstance(dropout, nn.Identity) and module.training and getattr(dropout, "p", 1.0) > 0
    if drops or module.lora_variant or first.bias is not None or second.bias is not None:
        return None
    if base is None or base.weight.requires_grad or not (is_simple(base, nn.Linear) or _is_conv1d(base)):
        return None
    return first.weight, second.weight, float(module.scaling[name])


def _is_conv1d(module: nn.Module) -> bool:
    return computed_as(module).__name__ == "Conv1D" and hasattr(module, "nf")


class _LoRA(torch.autograd.Function):
    """`first` is A, shape (rank, inputs), and `second` is B, shape (outputs, rank)."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        first: torch.Tensor,
        second: torch.Tensor,
        scale: float,
        transposed: bool,
    ) -> torch.Tensor:
        dtype = compute_type(input)
        with torch.autocast("cpu", enabled=False):
            rows = input.to(dtype).flatten(0, -2)
            product = product_of(rows, weight, bias, transposed=transposed)
            low = rows @ cast(first, dtype, "first").t()  # (rows, rank)
            product.addmm_(low, cast(second, dtype, "second").t(), alpha=scale)
        ctx.save_for_backward(rows, weight, first, second, low)
        ctx.scale, ctx.transposed, ctx.input_type = scale, transposed, input.dtype
        return product.view(*input.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, first, second, low = ctx.saved_tensors
        gradient = outer[0].flatten(0, -2)
        to_low = (gradient @ cast(second, gradient.dtype, "second")).mul_(ctx.scale)
        to_second = (gradient.t() @ low).mul_(ctx.scale)
        to_first = to_low.t() @ rows
        to_input = None
        if ctx.needs_input_grad[0]:
            matrix = cast(weight, gradient.dtype, "weight")
            to_input = gradient @ (matrix.t() if ctx.transposed else matrix)
            to_input.addmm_(to_low, cast(first, gradient.dtype, "first"))
            to_input = to_input.to(ctx.input_type).view(*outer[0].shape[:-1], -1)
        return to_input, None, None, to_first, to_second, None, None
