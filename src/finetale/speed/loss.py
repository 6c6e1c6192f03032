"""Compute the cross-entropy over a large vocabulary without keeping the logits.

Logits are computed for one chunk of targets at a time. Their softmax is computed in fp32 for a few rows at a time. In
training, the gradients of a chunk are computed in the forward pass, as in Liger (Hsu et al. 2024). So no logits are
kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from finetale.speed.allocator import temporary

_CHUNK_BYTES, _GPU_CHUNK_BYTES = 128 * 2**20, 512 * 2**20
"""Size of a chunk's logits. More chunks cost more: each one adds to the gradient of all output weights."""
_HALF_CHUNK_BYTES = 34 * 2**20
"""The same where memory is saved by a gradient in bf16, or by none of the output weights."""
_SLICE_BYTES = 8 * 2**20
"""Size of the part of that gradient that is computed at once."""
_ROWS_BYTES = 4 * 2**20
"""Size of the fp32 logits whose softmax is computed together. They fit in a processor's cache."""
_SMALLEST = -80.0
"""Log-likelihood below which the logarithm of an fp32 softmax is imprecise; near -103 it becomes -inf."""


class TiedWeights:
    """Weights that the embedding and the output layer share. Both add to one gradient array instead of two.

    Use an object for one forward and backward pass: `embed` the tokens, then pass it to `summed_cross_entropy`.

    Args:
        padding: token whose embedding has no gradient (`padding_idx` of `nn.Embedding`), or None.
    """

    def __init__(self, weight: torch.Tensor, padding: int | None = None) -> None:
        self.weight = weight
        self.padding = padding
        self.gradient: torch.Tensor | None = None

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of the tokens, shape (*tokens.shape, width)."""
        rows: torch.Tensor = _TiedEmbedding.apply(self.weight, tokens, self)  # type: ignore[no-untyped-call]
        return rows


def summed_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    ignore: int,
    scale: float = 1.0,
    tied: TiedWeights | None = None,
    compiled: bool = False,
) -> torch.Tensor:
    """Return `scale` times the sum of the negative log-likelihoods of all labels, in nats, fp32.

    The gradients are computed in the forward pass.

    Args:
        hidden: last hidden states, shape (targets, width).
        weight: weights of the output layer, shape (vocabulary, width). Products are computed in autocast's type.
        labels: target tokens, shape (targets,). Targets equal to `ignore` do not count.
        tied: the object that embedded the tokens, if the embedding has the same weights.
        compiled: whether to fuse softmax and gradient with torch.compile; for GPUs.
    """
    total: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, ignore, scale, tied, compiled
    )
    return total


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, ignore: int
) -> torch.Tensor:
    """Return the negative log-likelihood of each label in nats, fp32, shape (targets,), without gradients.

    The arguments are those of `summed_cross_entropy`.
    """
    losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
    with torch.no_grad():
        dtype = compute_type(hidden)
        weight = weight.to(dtype)
        for chunk in _slices(len(labels), weight.shape[0] * weight.element_size(), _most_bytes(hidden.device)):
            losses[chunk] = cross_entropy(_logits(hidden[chunk].to(dtype), weight, bias), labels[chunk], ignore)
    return losses


def most_likely(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the token with the largest logit for each target, shape (targets,), without gradients.

    The arguments are those of `summed_cross_entropy`. Logits are in the type of the weights, because bf16 logits of
    different tokens are often equal.
    """
    found = torch.empty(len(hidden), dtype=torch.int64, device=hidden.device)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for chunk in _slices(len(hidden), weight.shape[0] * weight.element_size(), _most_bytes(hidden.device)):
            found[chunk] = _logits(hidden[chunk].to(weight.dtype), weight, bias).argmax(-1)
    return found


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
    """Return the negative log-likelihood of each label in nats, fp32, shape (targets,); 0 where it is `ignore`.

    On a CPU, softmax and its gradient are computed in fp32 for a few rows at a time, without an fp32 copy of all
    logits. The losses equal those of PyTorch's `cross_entropy`. The gradient has the type of the logits and equals
    PyTorch's to rounding.

    Args:
        logits: shape (targets, vocabulary), of any floating type.
        labels: shape (targets,).
    """
    if logits.device.type != "cpu":
        return F.cross_entropy(logits.float(), labels, ignore_index=ignore, reduction="none")
    losses: torch.Tensor = _RowsCrossEntropy.apply(logits, labels, ignore)  # type: ignore[no-untyped-call]
    return losses


def chunk_bytes(targets: int, vocabulary: int, each: int, device: torch.device) -> int:
    """Return the size of a chunk's logits in bytes. A logit takes `each` bytes."""
    return _slice_size(targets, vocabulary * each, _most_bytes(device)) * vocabulary * each


def _most_bytes(device: torch.device) -> int:
    return _GPU_CHUNK_BYTES if device.type == "cuda" else _CHUNK_BYTES


def compute_type(tensor: torch.Tensor) -> torch.dtype:
    """Return the type of matrix products with a tensor: autocast's if it is enabled, else the tensor's own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def has_half_gradient(weight: torch.Tensor) -> bool:
    """Return whether a weight asks for its gradient in bf16."""
    return getattr(weight, "grad_dtype", None) == torch.bfloat16


class _RowsCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
        losses = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
        for rows in _row_slices(logits):
            losses[rows] = F.cross_entropy(logits[rows].float(), labels[rows], ignore_index=ignore, reduction="none")
        ctx.save_for_backward(logits, labels)
        ctx.ignore = ignore
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        counted = labels != ctx.ignore
        targets, weights = torch.where(counted, labels, 0), torch.where(counted, outer[0], 0.0)
        gradient = torch.empty_like(logits)
        for rows in _row_slices(logits):
            share = _softmax(logits[rows])
            gradient[rows] = _minus_target(share, targets[rows], weights[rows])
        return gradient, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        ignore: int,
        scale: float,
        tied: TiedWeights | None,
        compiled: bool,
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad
        dtype = compute_type(hidden)
        counted = labels != ignore
        targets, weights = torch.where(counted, labels, 0), torch.where(counted, scale, 0.0)
        into_gradient = _compiled_gradient() if compiled else _loss_and_gradient
        vocabulary = len(weight)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = _padded(weight.to(dtype))
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            to_hidden = torch.empty_like(hidden) if wanted[0] else None
            to_weight, to_bias = None, None
            half = dtype == torch.bfloat16 and has_half_gradient(weight)
            small = half or (not wanted[1] and hidden.device.type == "cpu")  # then chunks add to no gradient
            most = _HALF_CHUNK_BYTES if small else _most_bytes(hidden.device)
            for chunk in _slices(len(labels), matrix.shape[0] * matrix.element_size(), most):
                states = hidden[chunk].to(dtype)
                logits = _logits(states, matrix, None if bias is None else _padded(bias))
                logits[:, vocabulary:] = float("-inf")
                part, logits = into_gradient(logits, targets[chunk], weights[chunk])
                total += part
                if to_hidden is not None:
                    to_hidden[chunk] = logits @ matrix
                if wanted[1] and half:
                    to_weight = _added_in_slices(to_weight, logits[:, :vocabulary], states)
                elif wanted[1]:
                    to_weight = _added(to_weight, (logits.t() @ states)[:vocabulary])
                if wanted[2]:
                    to_bias = _added(to_bias, logits.sum(0, dtype=torch.float32)[:vocabulary])
                del logits  # before those of the next chunk are allocated
        ctx.save_for_backward(to_hidden, to_weight, to_bias)
        ctx.tied = tied
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = ctx.saved_tensors
        # On a GPU, reading the value would cost more than the multiplication: it waits for the device.
        if outer[0].device.type != "cpu" or float(outer[0]) != 1.0:
            gradients = tuple(None if gradient is None else gradient * outer[0] for gradient in gradients)
        to_hidden, to_weight, to_bias = gradients
        if ctx.tied is not None:  # the backward pass of the embedding adds to this gradient and returns it
            ctx.tied.gradient, to_weight = to_weight, None
        return to_hidden, to_weight, to_bias, None, None, None, None, None


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, tokens: torch.Tensor, tied: TiedWeights) -> torch.Tensor:
        ctx.save_for_backward(tokens)
        ctx.tied = tied
        return F.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        total, ctx.tied.gradient = ctx.tied.gradient, None
        tokens, gradient = tokens.flatten(), outer[0].flatten(0, -2)
        if ctx.tied.padding is not None:
            gradient = gradient.masked_fill((tokens == ctx.tied.padding)[:, None], 0.0)
        if total.dtype == torch.bfloat16:  # the sum over equal tokens needs more digits
            used, places = torch.unique(tokens, return_inverse=True)
            total[used] = total[used].float().index_add_(0, places, gradient.float()).to(total.dtype)
        else:
            total.index_add_(0, tokens, gradient.to(total.dtype))
        return total, None, None


def _added(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    return part.float() if total is None else total.add_(part)


def _added_in_slices(total: torch.Tensor | None, logits: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Add the gradient of the output weights to `total`, a few rows at a time, so that no second array is needed."""
    first = total is None
    if total is None:
        total = states.new_empty(logits.shape[1], states.shape[1])
    for rows in _slices(len(total), 2 * states.shape[1], _SLICE_BYTES):
        total[rows].addmm_(logits[:, rows].t(), states, beta=0 if first else 1)
    return total


def _padded(weights: torch.Tensor) -> torch.Tensor:
    """On a GPU, append zeros up to a multiple of 64 rows, because its matrix products are then faster."""
    missing = -len(weights) % 64
    if weights.device.type != "cuda" or not missing:
        return weights
    return F.pad(weights, (0, 0) * (weights.ndim - 1) + (0, missing))


def _loss_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sum of the losses of a chunk and its gradient, which overwrites the logits."""
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for rows in _row_slices(logits) if logits.device.type == "cpu" else [slice(None)]:
        share = _softmax(logits[rows])
        likelihood = share.gather(1, targets[rows, None])[:, 0].log()
        total -= torch.where(
            weights[rows] == 0, 0.0, _exact(likelihood, logits[rows], targets[rows]) * weights[rows]
        ).sum()
        logits[rows] = _minus_target(share, targets[rows], weights[rows])
    return total, logits


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """Return the softmax of logits in fp32; on a CPU in an array that the next call overwrites."""
    if logits.device.type != "cpu" or logits.dtype == torch.float64:
        return torch.softmax(logits.float(), dim=1)
    share = temporary("softmax", tuple(logits.shape), torch.float32).copy_(logits)
    return torch.softmax(share, dim=1, out=share)


def _exact(likelihood: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return `likelihood`, computed from softmax, or the result of log-softmax where softmax is too imprecise."""
    if logits.device.type == "cpu" and not bool((likelihood < _SMALLEST).any()):
        return likelihood
    return torch.log_softmax(logits.float(), dim=1).gather(1, targets[:, None])[:, 0]


@cache
def _compiled_gradient() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return a version of `_loss_and_gradient` that torch.compile fuses into two passes over the logits.

    It overwrites nothing: torch 2.11 read the likelihoods from logits that the same kernel had overwritten.
    """

    def fused(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_share = torch.log_softmax(logits.float(), dim=1)
        likelihood = log_share.gather(1, targets[:, None])[:, 0]
        at_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
        gradient = (log_share.exp() - at_target.float()) * weights[:, None]
        return -torch.where(weights == 0, 0.0, likelihood * weights).sum(), gradient.to(logits.dtype)

    return torch.compile(fused)


def _minus_target(share: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Turn softmax into the gradient of the loss in place: subtract 1 at each target, multiply by the weight."""
    share.scatter_add_(1, targets[:, None], share.new_full((len(share), 1), -1.0))
    return share.mul_(weights[:, None])


def _logits(states: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return states @ matrix.t() if bias is None else torch.addmm(bias.to(matrix.dtype), states, matrix.t())


def _row_slices(logits: torch.Tensor) -> list[slice]:
    return _slices(len(logits), 4 * logits.shape[1], _ROWS_BYTES)


def _slices(rows: int, row_bytes: int, most_bytes: int) -> list[slice]:
    """Return slices of equal size that hold at most `most_bytes`, but at least one row."""
    size = _slice_size(rows, row_bytes, most_bytes)
    return [slice(at, min(rows, at + size)) for at in range(0, rows, size)]


def _slice_size(rows: int, row_bytes: int, most_bytes: int) -> int:
    count = max(1, -(-rows * row_bytes // most_bytes))
    return max(1, -(-rows // count))
