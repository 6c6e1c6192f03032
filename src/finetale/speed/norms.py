"""Compute RMSNorm (Zhang & Sennrich 2019) so that it keeps nothing for the backward pass but its own output.

The output is in the type of the matrix products, which read it and keep it anyway. Divided by the weights it is the
normalised input. A few rows at a time are computed in fp32, so that they stay in a processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable

from finetale.speed.allocator import cached_values, temporary
from finetale.speed.loss import compute_type
from finetale.speed.products import takes_over
from finetale.speed.replacing import Replacement

_TOLERANCE = 1e-5
"""Largest relative difference from the original module's output in fp32."""


class FastRMSNorm(Replacement):
    """RMSNorm on a CPU in training. Elsewhere it is the original."""

    weight: torch.Tensor

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not takes_over(hidden_states):
            return self.original(hidden_states)  # type: ignore[no-any-return]
        output: torch.Tensor = _RMSNorm.apply(  # type: ignore[no-untyped-call]
            hidden_states, self.weight, _epsilon(self), _shift(self)
        )
        return output


def is_rms_norm(module: nn.Module) -> bool:
    """Return whether a module computes x / sqrt(mean(x^2) + epsilon) x weight, or x (1 + weight)."""
    weight, others = getattr(module, "weight", None), list(module.parameters())
    if "RMSNorm" not in type(module).__name__ or weight is None or weight.ndim != 1 or len(others) != 1:
        return False
    if _epsilon(module) is None or list(module.children()) or weight.device.type != "cpu":
        return False
    x = torch.linspace(-2, 3, 3 * len(weight)).sin().view(3, -1) * torch.tensor([[1e-3], [1.0], [30.0]])
    with torch.no_grad():
        theirs, epsilon = module(x), _epsilon(module)
        ours = x * _factors(x, epsilon) * (weight.float() + _shift(module))
    return bool((theirs - ours).abs().max() <= _TOLERANCE * theirs.abs().max())


def _epsilon(module: nn.Module) -> float | None:
    value = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return value if isinstance(value, float) else None


def _shift(module: nn.Module) -> float:
    """Return what is added to the weights: 1 in models of the Gemma family, whose weights start at 0."""
    return 1.0 if type(module).__name__.startswith("Gemma") else 0.0


def _factors(x: torch.Tensor, epsilon: float | None) -> torch.Tensor:
    """Return the reciprocals of the root mean squares of rows, shape (rows, 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    factors: torch.Tensor = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return factors


def _wide(name: str, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a copy of rows in another type, in an array that the next call with this name overwrites."""
    return temporary(name, tuple(rows.shape), dtype).copy_(rows)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, epsilon: float, shift: float) -> torch.Tensor:
        wide = torch.promote_types(input.dtype, torch.float32)
        rows, scale = input.flatten(0, -2), weight.to(wide) + shift
        output = torch.empty(rows.shape, dtype=compute_type(input))
        factors = torch.empty(len(rows), 1, dtype=wide)
        # Where a weight is almost 0, the output does not determine the normalised input.
        known = bool((scale.abs() > 1e-6).all())
        normalised = None if known else torch.empty_like(output)
        with torch.autocast("cpu", enabled=False):
            for chunk in _chunks(rows):
                values = _wide("norm", rows[chunk], wide)
                factors[chunk] = _factors(values, epsilon)
                values.mul_(factors[chunk])
                if normalised is not None:
                    normalised[chunk] = values
                output[chunk] = values.mul_(scale)
        ctx.save_for_backward(output if known else normalised, weight, factors)
        ctx.known, ctx.shift, ctx.input_type = known, shift, input.dtype
        return output.view(input.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, weight, factors = ctx.saved_tensors
        wide = factors.dtype
        scale = weight.to(wide) + ctx.shift
        gradient, rows = outer[0].flatten(0, -2), saved.flatten(0, -2)
        to_input = torch.empty(rows.shape, dtype=ctx.input_type)
        to_scale = torch.zeros_like(scale)
        each = scale.reciprocal()
        for chunk in _chunks(rows):
            values, above = _wide("norm", rows[chunk], wide), _wide("gradient of norm", gradient[chunk], wide)
            if ctx.known:
                values.mul_(each)  # the normalised input
            product = torch.mul(above, values, out=temporary("product of norm", tuple(above.shape), wide))
            to_scale += product.sum(0)
            mean = torch.mv(product, scale).div_(len(scale)).unsqueeze(1)
            above.mul_(scale).addcmul_(values, mean, value=-1)
            to_input[chunk] = above.mul_(factors[chunk])
        return to_input.view(outer[0].shape), to_scale.to(weight.dtype), None, None


def _chunks(rows: torch.Tensor) -> Iterator[slice]:
    """Return slices of rows whose fp32 values fit in a processor's cache."""
    size = max(1, cached_values() // rows.shape[1])
    return (slice(at, at + size) for at in range(0, len(rows), size))
