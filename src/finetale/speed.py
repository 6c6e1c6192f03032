"""What makes a model faster with the same numbers, to the tolerance stated with each. Knows nothing of training.

`apply` changes how modules compute, never their parameters or the config, so what is saved is the model as it came; `undo`
takes it back.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

M = TypeVar("M", bound=nn.Module)
_CHUNK_BYTES = 4 * 2**20
"""Size of the fp32 logits worked on at a time: little enough to stay in a processor's cache."""


class FusedGELU(nn.GELU):
    """GELU's tanh approximation in one kernel (Hendrycks & Gimpel 2016), within 2e-6 of transformers' `gelu_new` in fp32."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__(approximate="tanh")
        self.replaced = (replaced,)  # in a tuple, so that it is no submodule


def apply(model: M) -> M:
    """Put the fused GELU in place of each `gelu_new`, which takes eight passes over the widest activations. Returns the model."""
    for parent, name, child in _children(model):
        if type(child).__name__ == "NewGELUActivation":
            setattr(parent, name, FusedGELU(child))
    return model


def undo(model: M) -> M:
    """Put back what `apply` replaced. Returns the model."""
    for parent, name, child in _children(model):
        if isinstance(child, FusedGELU):
            setattr(parent, name, child.replaced[0])
    return model


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
    """Negative log likelihood in nats of each label, fp32, shape (targets,); 0 where the label is `ignore`.

    Args:
        logits: shape (targets, vocabulary), of any floating type.
        labels: shape (targets,).

    On a CPU no fp32 copy of the logits is made: softmax and its gradient are computed in fp32, a few rows at a time. The losses
    are PyTorch's own; the gradient is its own to rounding, in the type of the logits.
    """
    if logits.device.type != "cpu":
        return F.cross_entropy(logits.float(), labels, ignore_index=ignore, reduction="none")
    losses: torch.Tensor = _ChunkedCrossEntropy.apply(logits, labels, ignore)  # type: ignore[no-untyped-call]
    return losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
        losses = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
        for rows in _chunks(logits):
            losses[rows] = F.cross_entropy(logits[rows].float(), labels[rows], ignore_index=ignore, reduction="none")
        ctx.save_for_backward(logits, labels)
        ctx.ignore = ignore
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        counted = labels != ctx.ignore
        weights = torch.where(counted, outer[0], 0.0)[:, None]
        targets = torch.where(counted, labels, 0)[:, None]
        gradient = torch.empty_like(logits)
        for rows in _chunks(logits):
            share = torch.softmax(logits[rows].float(), dim=1)
            share.scatter_add_(1, targets[rows], share.new_full((len(share), 1), -1.0))
            gradient[rows] = share.mul_(weights[rows])
        return gradient, None, None


def _chunks(logits: torch.Tensor) -> list[slice]:
    size = max(1, _CHUNK_BYTES // (4 * logits.shape[1]))
    return [slice(at, at + size) for at in range(0, len(logits), size)]


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
