"""Apply rotary position embeddings (Su et al. 2021) in one function that keeps only the sines and cosines.

A rotation is undone by the rotation in the other direction, so its backward pass needs nothing of the input. The
model's own attention code runs unchanged, with this function in place of `apply_rotary_pos_emb`.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable

from finetale.speed.allocator import cached_values, temporary
from finetale.speed.loss import compute_type
from finetale.speed.products import takes_over
from finetale.speed.replacing import Replacement

_NAME = "apply_rotary_pos_emb"
_TOLERANCE = 1e-6
Pair = tuple[torch.Tensor, torch.Tensor]


class FastRotary(Replacement):
    """Attention whose code calls `apply_rotary_pos_emb`. On a CPU in training, that is `rotate`."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        hidden = arguments[0] if arguments else options.get("hidden_states")
        if isinstance(hidden, torch.Tensor) and takes_over(hidden):
            return _with_rotate(self.replaced.forward)(self, *arguments, **options)
        return self.original(*arguments, **options)


def uses_rotary(module: nn.Module) -> bool:
    """Return whether a module's code calls a function `apply_rotary_pos_emb` that computes the same as `rotate`."""
    forward = type(module).forward
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    if _NAME not in names or getattr(forward, "__closure__", None) or not callable(forward.__globals__.get(_NAME)):
        return False
    return _computes_the_same(forward.__globals__[_NAME])


@lru_cache(maxsize=64)
def _computes_the_same(original: Callable[..., Pair]) -> bool:
    """Compare a model's own function with `rotate`, where whole heads are rotated and where a part of each is."""
    query, key = torch.linspace(-1, 1, 120).sin().view(1, 3, 5, 8), torch.linspace(-2, 2, 40).cos().view(1, 1, 5, 8)
    same = []
    for size in (8, 4):
        angles = torch.linspace(0, 1.5, 5 * size // 2).view(1, 5, -1).repeat(1, 1, 2)
        try:
            theirs = original(query, key, angles.cos(), angles.sin())
        except (TypeError, ValueError, RuntimeError, IndexError):
            same.append(size < 8)  # a function for whole heads
            continue
        ours = rotate(query, key, angles.cos(), angles.sin())
        same.append(all(bool((a - b).abs().max() <= _TOLERANCE) for a, b in zip(theirs, ours, strict=True)))
    return all(same)


@lru_cache(maxsize=64)
def _with_rotate(forward: types.FunctionType) -> Callable[..., Any]:
    """Return a function with the code of `forward` that calls `rotate`."""
    words = forward.__globals__ | {_NAME: rotate}
    copied = types.FunctionType(forward.__code__, words, forward.__name__, forward.__defaults__)
    copied.__kwdefaults__ = forward.__kwdefaults__
    return copied


def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Pair:
    """Rotate queries and keys; return them in the type of the matrix products.

    Args:
        q: shape (batch, heads, time, size), or with heads and time exchanged. `k` may have another number of heads.
        cos: shape (batch, time, size), or smaller in the last dimension: then the rest of each head is not rotated.
            Its halves are equal, as those of `sin`.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    query, key = (_Rotation.apply(x, cos, sin) for x in (q, k))  # type: ignore[no-untyped-call]
    return query, key


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.input_type = x.dtype
        return _rotated(x, cos, sin, compute_type(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(outer[0], cos, -sin, ctx.input_type), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x1 cos - x2 sin and x2 cos + x1 sin, where x1 and x2 are the halves of what is rotated of each head.

    A few heads at a time are computed in fp32, so that they stay in a processor's cache.
    """
    size = cos.shape[-1]
    half = size // 2
    output = torch.empty_like(x, dtype=dtype)
    output[..., size:] = x[..., size:]
    heads = max(1, cached_values() // max(1, x[:, :1].numel())) if cos.shape[1] == 1 else x.shape[1]
    with torch.autocast("cpu", enabled=False):
        for at in range(0, x.shape[1], heads):
            part = slice(at, at + heads)
            rotating = x[:, part, :, :size]
            shape, exact = tuple(rotating.shape), torch.promote_types(x.dtype, cos.dtype)
            wide = temporary("heads", shape, exact).copy_(rotating)
            rotated = torch.mul(wide, cos, out=temporary("rotated heads", shape, exact))
            rotated[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-1)
            rotated[..., half:].addcmul_(wide[..., :half], sin[..., half:])
            output[:, part, :, :size] = rotated
    return output
