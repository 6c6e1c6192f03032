"""fp32 → bf16 so that the expected value stays: what small changes add up to is not lost."""

from __future__ import annotations

import numpy as np
import torch

from finetale.speed.modules import random_16_bits


def round_stochastically(x: torch.Tensor) -> torch.Tensor:
    """A finite fp32 tensor in bf16, each value rounded up or down with the probability that keeps its mean.

    bf16 is the upper half of fp32; a random lower half is added before it is cut off (Gupta et al. 2015).
    """
    bits = x.contiguous().view(torch.int32)
    if x.device.type == "cpu":
        noise = torch.from_numpy(random_16_bits(x.numel()).astype(np.int32)).view(x.shape)
    else:
        noise = torch.randint(0, 2**16, x.shape, dtype=torch.int32, device=x.device)
    return ((bits + noise) & -(2**16)).view(torch.float32).to(torch.bfloat16)
