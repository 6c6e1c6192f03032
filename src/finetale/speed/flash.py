"""Attention over packed documents on a GPU: PyTorch's flash kernel, and a mask over all pairs as its reference."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    longest: int,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """Compute attention with PyTorch's flash kernel. Arguments and result are those of `masked_attention`.

    Args:
        longest: length of the longest document, or more.
    """
    rows = (x[0].transpose(0, 1) for x in (query, key, value))  # (time, heads, head size)
    output: torch.Tensor = _FlashAttention.apply(  # type: ignore[no-untyped-call]
        *rows, borders, longest, scale, dropout
    )
    return output[None]


class _FlashAttention(torch.autograd.Function):
    """PyTorch's own flash attention for documents of different lengths (Dao 2023), on a GPU in bf16.

    `torch.nn.attention.varlen` calls the same kernels, but has no dropout, which GPT-2's configs ask for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        borders: torch.Tensor,
        longest: int,
        scale: float,
        dropout: float,
    ) -> torch.Tensor:
        output, log_sums, random_state, unused, _ = torch.ops.aten._flash_attention_forward(
            query, key, value, borders, borders, longest, longest, dropout, True, False, scale=scale
        )
        ctx.save_for_backward(query, key, value, output, log_sums, borders, random_state, unused)
        ctx.longest, ctx.scale, ctx.dropout = longest, scale, dropout
        result: torch.Tensor = output
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sums, borders, random_state, unused = ctx.saved_tensors
        gradients = torch.ops.aten._flash_attention_backward(
            outer[0].contiguous(),
            query,
            key,
            value,
            output,
            log_sums,
            borders,
            borders,
            ctx.longest,
            ctx.longest,
            ctx.dropout,
            True,
            random_state,
            unused,
            scale=ctx.scale,
        )
        return *gradients, None, None, None, None


@lru_cache(maxsize=8)
def is_right(device: torch.device, head_size: int, dropout: float) -> bool:
    """Return whether `attention` computes what `masked_attention` does on this device, gradients included.

    The kernels are private to PyTorch, and not every build has them. With dropout only the mean is compared.
    """
    noise = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, heads, 96, head_size, generator=noise).to(device) for heads in (4, 2, 2, 4)]
    query, key, value = (x.bfloat16().requires_grad_() for x in tensors[:3])
    borders = torch.tensor([0, 40, 41, 96, 96], dtype=torch.int32, device=device)
    scale = head_size**-0.5
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autocast(device.type, enabled=False),
        ):
            ours = attention(query, key, value, borders, 55, scale, 0.0)
            exact = [x.detach().float().requires_grad_() for x in (query, key, value)]
            theirs = masked_attention(exact[0], exact[1], exact[2], borders, scale, 0.0)
            outer = tensors[3].transpose(1, 2)
            pairs = [(ours, theirs)]
            pairs += zip(
                torch.autograd.grad(ours, (query, key, value), outer.bfloat16()),
                torch.autograd.grad(theirs, exact, outer),
                strict=True,
            )
            right = all(distance(one, other) < 0.02 for one, other in pairs)
            if dropout:
                thinned = attention(query, key, torch.ones_like(value), borders, 55, scale, dropout)
                (slope,) = torch.autograd.grad(thinned.float().sum(), query)
                right &= bool(slope.isfinite().all()) and 0.9 < float(thinned.detach().float().mean()) < 1.1
                right &= distance(thinned, torch.ones_like(thinned)) > 0.01
            return right
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the norm of the difference, relative to the norm of the other."""
    one, other = one.detach().float(), other.detach().float()
    return float((one - other).norm() / other.norm())


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    """Compute attention with a mask over all pairs: the reference, and the fallback where there is no kernel.

    Args:
        query: shape (1, heads, time, head size). `key` and `value` may have fewer heads.
        borders: borders of the documents, int32, from 0 to time.

    Returns:
        The output, shape (1, time, heads, head size).
    """
    position = torch.arange(query.shape[2], device=query.device)
    document = torch.searchsorted(borders, position, right=True)
    mask = (document[:, None] == document[None, :]) & (position[:, None] >= position[None, :])
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    return output.transpose(1, 2)
