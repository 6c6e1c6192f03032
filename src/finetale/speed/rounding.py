"""Round fp32 to bf16 with an unbiased random choice, so that many small updates are not lost."""

from __future__ import annotations

import numpy as np
import torch

from finetale.speed.modules import random_16_bits


def round_stochastically(x: torch.Tensor) -> torch.Tensor:
    """Round a finite fp32 tensor to bf16, up or down with the probabilities that preserve the expected value.

    bf16 is the upper half of fp32. A random lower half is added before the lower half is cut off (Gupta et al. 2015).
    """
    bits = x.contiguous().view(torch.int32)
    if x.device.type == "cpu":
        noise = torch.from_numpy(random_16_bits(x.numel()).astype(np.int32)).view(x.shape)
    else:
        noise = torch.randint(0, 2**16, x.shape, dtype=torch.int32, device=x.device)
    return ((bits + noise) & -(2**16)).view(torch.float32).to(torch.bfloat16)
