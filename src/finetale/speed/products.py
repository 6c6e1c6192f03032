"""Compute linear layers without keeping copies of the weights in bf16.

Autocast keeps its copy of a weight from the forward to the backward pass. Here both passes make one, which costs a
hundredth of a step and saves two bytes per weight. Products in bf16 give gradients in bf16. If the
parameter asks for it (`Tensor.grad_dtype`), they are not converted to fp32. Then a gradient takes half of the memory
and has the same value, as long as it is not added to another.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable

from finetale.speed.allocator import cast, release_holes
from finetale.speed.loss import compute_type
from finetale.speed.replacing import Replacement

_RELEASING: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Layers whose gradient is the sign that a third of the backward pass is done."""


class FastLinear(Replacement):
    """`nn.Linear` on a CPU. Elsewhere, and without gradients, it is the original."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not takes_over(input):
            return self.original(input)  # type: ignore[no-any-return]
        product: torch.Tensor = _Linear.apply(input, self.weight, self.bias, False)  # type: ignore[no-untyped-call]
        return product


class FastConv1D(Replacement):
    """transformers' `Conv1D`, a linear layer whose weight has the shape (inputs, outputs)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not takes_over(input):
            return self.original(input)  # type: ignore[no-any-return]
        product: torch.Tensor = _Linear.apply(input, self.weight, self.bias, True)  # type: ignore[no-untyped-call]
        return product


def use_half_gradients(model: nn.Module, yes: bool) -> None:
    """Choose the type of the gradients of linear layers: bf16, or that of the weights. Call it without gradients.

    Has no effect before torch 2.10, and on layers that are not replaced.
    """
    layers = _with_half_gradients(model)
    for layer in layers:
        wanted = torch.bfloat16 if yes else layer.weight.dtype
        if layer.weight.grad_dtype != wanted:
            layer.weight.grad_dtype = wanted
    for layer in layers[len(layers) // 3 :: max(1, len(layers) // 3)] if yes else ():
        if layer not in _RELEASING:
            _RELEASING.add(layer)
            layer.weight.register_post_accumulate_grad_hook(_release)  # type: ignore[no-untyped-call]


def half_gradient_bytes(model: nn.Module) -> int:
    """Return how many bytes smaller all gradients of a model are with `use_half_gradients`."""
    weights = {id(layer.weight): layer.weight for layer in _with_half_gradients(model)}
    return sum(weight.numel() * (weight.element_size() - 2) for weight in weights.values())


def _with_half_gradients(model: nn.Module) -> list[FastLinear | FastConv1D]:
    """Return the layers whose gradients can be in bf16."""
    if not hasattr(torch.Tensor, "grad_dtype"):
        return []
    return [m for m in model.modules() if isinstance(m, FastLinear | FastConv1D) and m.weight.requires_grad]


def _release(weight: torch.Tensor) -> None:
    """Return the memory of activations that the backward pass has used, before gradients scatter over all of it."""
    if weight.grad is not None and weight.grad.dtype == torch.bfloat16:
        release_holes()


def takes_over(input: torch.Tensor) -> bool:
    """Return whether the functions for training on a CPU compute this input."""
    return input.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def product_of(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, transposed: bool
) -> torch.Tensor:
    """Return the output of a linear layer for rows, in their type. `transposed`: the weight is (inputs, outputs)."""
    matrix = cast(weight, rows.dtype, "weight")
    matrix = matrix if transposed else matrix.t()
    return rows @ matrix if bias is None else torch.addmm(bias.to(rows.dtype), rows, matrix)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool
    ) -> torch.Tensor:
        dtype = compute_type(input)
        with torch.autocast("cpu", enabled=False):
            rows = input.to(dtype).flatten(0, -2)
            product = product_of(rows, weight, bias, transposed=transposed)
        ctx.save_for_backward(rows if weight.requires_grad else None, weight)
        ctx.transposed, ctx.input_type = transposed, input.dtype
        return product.view(*input.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        gradient = outer[0].flatten(0, -2)
        to_input, to_weight, to_bias = None, None, None
        if ctx.needs_input_grad[0]:
            matrix = cast(weight, gradient.dtype, "weight")
            to_input = gradient @ (matrix.t() if ctx.transposed else matrix)
            to_input = to_input.to(ctx.input_type).view(*outer[0].shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            to_weight = rows.t() @ gradient if ctx.transposed else gradient.t() @ rows
        if ctx.needs_input_grad[2]:
            to_bias = gradient.sum(0, dtype=torch.promote_types(gradient.dtype, torch.float32))
        return to_input, to_weight, to_bias, None
