"""Modules put in place of a model's own: the same function in fewer passes over memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn as nn
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

_LANES = 2**16
"""Values of one random number: a dropout rate is kept to 1 part in so many."""


class FusedGELU(nn.GELU):
    """GELU's tanh approximation (Hendrycks & Gimpel 2016) in one kernel; within 2e-6 of `gelu_new` in fp32."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__(approximate="tanh")
        self.replaced = (replaced,)  # in a tuple, so that it is no submodule


class FastDropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014). On a CPU its random numbers cost a tenth of what PyTorch's cost.

    The same distribution and seeded by torch's generator, but other numbers than `nn.Dropout` draws from the same seed.
    """

    def __init__(self, replaced: nn.Dropout) -> None:
        super().__init__(replaced.p, replaced.inplace)
        self.training = replaced.training
        self.replaced = (replaced,)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or self.p == 1 or input.device.type != "cpu":
            return super().forward(input)
        dropped: torch.Tensor = _Dropout.apply(input, 1.0 - self.p)  # type: ignore[no-untyped-call]
        return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, keep: float) -> torch.Tensor:
        mask = keep_mask(x.numel(), keep).view(x.shape)
        ctx.save_for_backward(mask)
        ctx.keep = keep
        return (x * mask).mul_(1 / keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (outer[0] * mask).mul_(1 / ctx.keep), None


def keep_mask(size: int, keep: float) -> torch.Tensor:
    """A boolean vector on the CPU, each value true with probability `keep`, to 16 bits."""
    return torch.from_numpy(random_16_bits(size) < round(keep * _LANES))


def random_16_bits(size: int) -> NDArray[np.uint16]:
    """Integers from 0 to 65,535, shape (size,).

    PyTorch draws 32 bits a value with the Mersenne Twister; here 16 bits a value come from SFC64, seeded by one draw of
    PyTorch's generator, so a seeded run repeats itself.
    """
    seed = int(torch.randint(2**63 - 1, ()))
    return np.random.SFC64(seed).random_raw(-(-size // 4)).view(np.uint16)[:size]
