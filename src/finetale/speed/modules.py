"""Replace activation and dropout modules with ones that compute the same function in less time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn as nn
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

_LANES = 2**16
"""Number of values of a 16-bit random number. Dropout rates are rounded to a multiple of 1/65,536."""


class FusedGELU(nn.GELU):
    """GELU in its tanh approximation (Hendrycks & Gimpel 2016), as one kernel; within 2e-6 of `gelu_new` in fp32."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__(approximate="tanh")
        self.replaced = (replaced,)  # a tuple, so that torch does not register it as a submodule


class FastDropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014) whose random numbers take a tenth of PyTorch's time on a CPU.

    The distribution is that of `nn.Dropout`, and torch's generator seeds it. The same seed gives other numbers than
    `nn.Dropout` draws.
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
    """Return booleans on the CPU, shape (size,), each True with probability `keep` (rounded to 16 bits)."""
    return torch.from_numpy(random_16_bits(size) < round(keep * _LANES))


def random_16_bits(size: int) -> NDArray[np.uint16]:
    """Return uniform random integers from 0 to 65,535, shape (size,).

    PyTorch draws 32 bits per value with the Mersenne Twister. This function draws 16 bits per value with SFC64. One
    draw of PyTorch's generator seeds it, so a seeded run is reproducible.
    """
    seed = int(torch.randint(2**63 - 1, ()))
    return np.random.SFC64(seed).random_raw(-(-size // 4)).view(np.uint16)[:size]
