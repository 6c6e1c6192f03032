"""Compare an accelerator's results with the CPU's.

Releases of PyTorch have computed wrong results on MPS (pytorch#109457, pytorch#107294).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from finetale import speed
from finetale.blocks import Batch
from finetale.forward import PackedForward, find_route

_VOCABULARY, _WIDTH, _ROWS = 50_257, 768, 48
"""Sizes of the checked operations: GPT-2's vocabulary and hidden size, and a number of tokens."""
_TOLERANCE = 1e-3
"""Maximum difference, relative to the largest value. In fp32, another order of summation changes less than 1e-5."""
During = Callable[[], contextlib.AbstractContextManager[object]]
"""Returns a context manager to enter while the device computes."""


@dataclass(frozen=True)
class DeviceCheck:
    """One operation on a device, compared with the CPU. `difference` is None if the operation raised an error."""

    name: str
    passed: bool
    difference: float | None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the check as a JSON object."""
        return asdict(self)


def check_device(device: torch.device, during: During = contextlib.nullcontext) -> list[DeviceCheck]:
    """Run the main operations of training and generation on a device and on the CPU, and compare the results.

    Args:
        during: context of the work on the device. Tests inject errors with it.
    """
    checks = {
        f"linear layer of {_VOCABULARY:,} outputs": _linear,
        f"softmax over {_VOCABULARY:,} logits": _softmax,
        "loss of packed documents": _packed_loss,
        "gradient of packed documents": _packed_gradient,
    }
    return [_compared(name, compute, device, during) for name, compute in checks.items()]


def _compared(
    name: str, compute: Callable[[torch.device], torch.Tensor], device: torch.device, during: During
) -> DeviceCheck:
    expected = compute(torch.device("cpu"))
    try:
        with during():
            found = compute(device).cpu()
    except Exception as error:  # report any failure, of whatever kind
        return DeviceCheck(name, False, None, next(iter(str(error).splitlines()), type(error).__name__))
    difference = float((found - expected).abs().max() / expected.abs().max())
    return DeviceCheck(name, difference <= _TOLERANCE, difference)  # NaN does not pass


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _linear(device: torch.device) -> torch.Tensor:
    hidden, weights = _random(2, _ROWS // 2, _WIDTH), _random(_VOCABULARY, _WIDTH)
    return torch.nn.functional.linear(hidden.to(device), weights.to(device))


def _softmax(device: torch.device) -> torch.Tensor:
    return torch.softmax(4 * _random(_ROWS, _VOCABULARY).to(device), dim=-1)


def _packed_loss(device: torch.device) -> torch.Tensor:
    forward, batch = _tiny(device)
    return forward.token_losses(batch)


def _packed_gradient(device: torch.device) -> torch.Tensor:
    forward, batch = _tiny(device)
    forward.model.train()
    forward.loss(batch).backward()  # type: ignore[no-untyped-call]
    gradients = [
        parameter.grad.flatten().cpu() for parameter in forward.model.parameters() if parameter.grad is not None
    ]
    return torch.cat(gradients)


def _tiny(device: torch.device) -> tuple[PackedForward, Batch]:
    """Return a small GPT-2 with random weights on a device, and a batch of one row with two packed documents."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=512, n_positions=64, n_embd=64, n_layer=2, n_head=2)
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            setattr(config, name, 0.0)
        model = GPT2LMHeadModel(config)
    model = speed.apply(model.eval()).to(device)
    if not speed.has_kernel(model, precision="fp32", training=True):
        speed.use_documents(model, False)
    lengths = (37, 27)
    positions = np.concatenate([np.arange(length) for length in lengths])
    tokens = np.arange(65) * 7 % 512
    rows = (tokens[:-1], tokens[1:], positions, np.repeat([0, 1], lengths), np.zeros(64, np.int64))
    return PackedForward(model, route=find_route(model)), Batch(*(row[None].astype(np.int64) for row in rows))
