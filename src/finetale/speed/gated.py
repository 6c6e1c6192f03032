"""Compute gated feed-forward layers (SwiGLU, GeGLU; Shazeer 2020) and keep only the inputs of the product.

The product and the activation are computed again in the backward pass. That costs little beside the matrix products.
Where gradients are in bf16 to save memory, one of the two inputs is computed again too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable

from finetale.speed.allocator import cast, temporary
from finetale.speed.loss import compute_type, has_half_gradient
from finetale.speed.products import takes_over
from finetale.speed.replacing import Replacement, is_simple

_PARTS = ("gate_proj", "up_proj", "down_proj")
_TOLERANCE = 1e-5
"""Largest relative difference from the original module's output in fp32."""


class FastGatedMLP(Replacement):
    """A layer down(activation(gate(x)) x up(x)) on a CPU in training. Elsewhere it is the original.

    If all three projections are plain `nn.Linear` without bias, the layer is one function. Others, such as those of an
    adapter, are called.
    """

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not takes_over(x):
            return self.original(x)  # type: ignore[no-any-return]
        parts = [getattr(self, name) for name in _PARTS]
        silu = _is_silu(self)
        if all(is_simple(part, nn.Linear) and part.bias is None for part in parts):
            output: torch.Tensor = _GatedMLP.apply(x, *(part.weight for part in parts), silu)  # type: ignore[no-untyped-call]
            return output
        product: torch.Tensor = _Product.apply(self.gate_proj(x), self.up_proj(x), silu)  # type: ignore[no-untyped-call]
        return self.down_proj(product)  # type: ignore[no-any-return]


def is_gated(module: nn.Module) -> bool:
    """Return whether a module computes down(activation(gate(x)) x up(x)) with an activation known here."""
    if [name for name, _ in module.named_children() if name != "act_fn"] != list(_PARTS) or _activation(module) is None:
        return False
    width = getattr(module.gate_proj, "in_features", None)
    if width is None or next(module.parameters()).device.type != "cpu":
        return False
    with torch.no_grad():
        x = torch.linspace(-3, 3, 2 * width).sin().view(1, 2, width)
        theirs = module(x)
        gate, up = module.gate_proj(x), module.up_proj(x)  # type: ignore[operator]
        ours = module.down_proj(_activated(gate, _is_silu(module)) * up)  # type: ignore[operator]
    return bool((theirs - ours).abs().max() <= _TOLERANCE * theirs.abs().max())


def _activation(module: nn.Module) -> str | None:
    name = type(getattr(module, "act_fn", None)).__name__
    return name if name in ("SiLU", "SiLUActivation", "PytorchGELUTanh", "GELUTanh", "FusedGELU") else None


def _is_silu(module: nn.Module) -> bool:
    return str(_activation(module)).startswith("SiLU")


def _activated(gate: torch.Tensor, silu: bool, out: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.empty_like(gate) if out is None else out
    if silu:
        torch.ops.aten.silu.out(gate, out=out)
    else:
        torch.ops.aten.gelu.out(gate, approximate="tanh", out=out)
    return out


def _gradients(
    outer: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    silu: bool,
    to_gate: torch.Tensor,
    to_up: torch.Tensor,
) -> torch.Tensor:
    """Write the gradients of gate and up into `to_gate` and `to_up`; return the product, a temporary array.

    Args:
        outer: gradient of the product. It is overwritten.
    """
    active = _activated(gate, silu, _array("product", gate))
    torch.mul(outer, active, out=to_up)
    product = active.mul_(up)
    outer.mul_(up)
    if silu:
        torch.ops.aten.silu_backward.grad_input(outer, gate, grad_input=to_gate)
    else:
        torch.ops.aten.gelu_backward.grad_input(outer, gate, approximate="tanh", grad_input=to_gate)
    return product


def _array(name: str, like: torch.Tensor) -> torch.Tensor:
    return temporary(f"gated {name}", tuple(like.shape), like.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, silu: bool) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.silu = silu
        return _activated(gate, silu).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        _gradients(_array("outer", outer[0]).copy_(outer[0]), gate, up, ctx.silu, to_gate, to_up)
        return to_gate, to_up, None


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, silu: bool
    ) -> torch.Tensor:
        dtype = compute_type(input)
        with torch.autocast("cpu", enabled=False):
            rows = input.to(dtype).flatten(0, -2)
            gated = rows @ cast(gate, dtype, "weight").t()
            again = has_half_gradient(up)  # whether the backward pass computes this product again
            above = _array("above", gated) if again else torch.empty_like(gated)
            torch.mm(rows, cast(up, dtype, "weight").t(), out=above)
            product = _activated(gated, silu, _array("product", gated)).mul_(above)
            output = product @ cast(down, dtype, "weight").t()
        ctx.save_for_backward(rows, gated, None if again else above, gate, up, down)
        ctx.silu, ctx.input_type = silu, input.dtype
        result: torch.Tensor = output.view(input.shape)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, gated, above, gate, up, down = ctx.saved_tensors
        gradient = outer[0].flatten(0, -2)
        dtype = gradient.dtype
        wanted = ctx.needs_input_grad
        if above is None:
            above = torch.mm(rows, cast(up, dtype, "weight").t(), out=_array("above", gated))
        to_product, to_gated, to_above = (_array(name, gated) for name in ("outer", "to gate", "to up"))
        torch.mm(gradient, cast(down, dtype, "weight"), out=to_product)
        product = _gradients(to_product, gated, above, ctx.silu, to_gated, to_above)
        to_down = gradient.t() @ product if wanted[3] else None
        to_gate = to_gated.t() @ rows if wanted[1] else None
        to_up = to_above.t() @ rows if wanted[2] else None
        to_input = None
        if wanted[0]:
            to_input = to_gated @ cast(gate, dtype, "weight")
            to_input = to_input.addmm_(to_above, cast(up, dtype, "weight"))
            to_input = to_input.to(ctx.input_type).view(outer[0].shape)
        return to_input, to_gate, to_up, to_down, None
