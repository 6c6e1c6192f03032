"""Reversible speed-ups of a model: the same numbers to a stated tolerance, sooner. Knows nothing of training.

`apply` changes how modules compute, never their parameters or the config, so what is saved is the model as it came.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn as nn
import torch.nn.functional as F

M = TypeVar("M", bound=nn.Module)
_CHUNK_BYTES = 4 * 2**20
"""fp32 logits worked on at a time: they stay in the processor's cache (docs/log.md)."""


class FusedGELU(nn.GELU):
    """GELU's tanh approximation in one kernel (Hendrycks & Gimpel 2016), within 1e-6 of transformers' `gelu_new`."""

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

    On a CPU no fp32 copy of the logits is made: softmax and its gradient are computed in fp32, a few rows at a time.
    """
    if logits.device.type != "cpu":
        return F.cross_entropy(logits.float(), labels, ignore_index=ignore, reduction="none")
    losses: torch.Tensor = _ChunkedCrossEntropy.apply(logits, labels, ignore)  # type: ignore[no-untyped-call]
    return losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
        counted = labels != ignore
        targets = labels.clamp(min=0)
        normalizers = torch.empty(len(labels), dtype=torch.float32)
        for rows in _chunks(logits):
            torch.logsumexp(logits[rows].float(), dim=1, out=normalizers[rows])
        losses = normalizers - logits.gather(1, targets[:, None])[:, 0].float()
        ctx.save_for_backward(logits, targets, counted, normalizers)
        return torch.where(counted, losses, 0.0)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, targets, counted, normalizers = ctx.saved_tensors
        weights = torch.where(counted, outer[0], 0.0)[:, None]
        gradient = torch.empty_like(logits)
        for rows in _chunks(logits):
            share = (logits[rows].float() - normalizers[rows, None]).exp_()
            share.scatter_add_(1, targets[rows, None], share.new_full((len(share), 1), -1.0))
            gradient[rows] = share.mul_(weights[rows])
        return gradient, None, None


def _chunks(logits: torch.Tensor) -> list[slice]:
    size = max(1, _CHUNK_BYTES // (4 * logits.shape[1]))
    return [slice(at, at + size) for at in range(0, len(logits), size)]


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
