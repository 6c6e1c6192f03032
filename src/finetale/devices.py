"""The device of this process. Knows nothing of models.

Finetale's own settings decide how it computes. Variables with which `accelerate launch` asks for something else are
reported and have no effect.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from finetale import ranks

if TYPE_CHECKING:
    import torch

_HARMLESS = ("ACCELERATE_DEBUG_MODE", "ACCELERATE_DISABLE_RICH", "ACCELERATE_ENABLE_RICH", "ACCELERATE_LOG_LEVEL")
_ASKS_FOR_NOTHING = frozenset({"", "0", "default", "f", "false", "n", "no", "none", "off"})
"""Values with which `accelerate launch` marks a feature as not requested."""


def device() -> torch.device:
    """Return the device to compute on: the accelerator if there is one, else the CPU.

    Each of several processes on one machine has an accelerator of its own.
    """
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return torch.device("cpu")
    return torch.device(found.type, ranks.local_rank()) if ranks.world_size() > 1 else found


def ignored_settings() -> list[str]:
    """Return the environment's settings for Accelerate that Finetale ignores, as NAME=VALUE."""
    return [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith("ACCELERATE_")
        and name not in _HARMLESS
        and value.strip().lower() not in _ASKS_FOR_NOTHING
        and (name, value.strip()) != ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    ]


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its queued work, so that elapsed time can be measured."""
    module = _module(device)
    if module is not None:
        module.synchronize()


def empty_cache(device: torch.device) -> None:
    """Release the memory that PyTorch caches on an accelerator."""
    module = _module(device)
    if module is not None:
        module.empty_cache()


def _module(device: torch.device) -> Any:
    import torch

    return {"cuda": torch.cuda, "mps": torch.mps}.get(device.type)
