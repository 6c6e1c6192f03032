"""The device of this process: the one place that builds an Accelerator. Knows nothing of models.

Accelerate reads dozens of variables from the environment, and `ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4` once changed a
run's gradients. Here Finetale's own settings decide; variables of a launcher (RANK, WORLD_SIZE, MASTER_ADDR …) still
count.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from finetale.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

_FOREIGN = ("ACCELERATE_", "FSDP_", "FP8_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
"""Prefixes of the variables by which Accelerate is configured."""
_HARMLESS = ("ACCELERATE_DEBUG_MODE", "ACCELERATE_DISABLE_RICH", "ACCELERATE_ENABLE_RICH", "ACCELERATE_LOG_LEVEL")
_ASKS_FOR_NOTHING = frozenset({"", "0", "default", "f", "false", "n", "no", "none", "off"})
"""Values with which `accelerate launch` marks a feature as not requested."""
_PROCESS_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def accelerator() -> Accelerator:
    """Return an Accelerator with Finetale's settings, without its mixed precision, accumulation and compilation.

    Raises:
        TrainingError: the program has built an Accelerator with other settings, which Accelerate shares.
    """
    from accelerate import Accelerator

    with _foreign_settings_hidden():
        try:
            return Accelerator(mixed_precision="no", gradient_accumulation_steps=1)
        except ValueError as error:
            if "already been initialized" not in str(error):
                raise
            raise TrainingError(
                "This program has built an Accelerator with other settings, and Accelerate allows one set per process.",
                "Restart the Python process or the notebook's kernel before you call Finetale.",
            ) from error


def device() -> torch.device:
    """Return the device to compute on: the accelerator if there is one, else the CPU."""
    chosen: torch.device = accelerator().device
    return chosen


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


def check_one_process() -> None:
    """Refuse to start as one of several processes, which would all write to one run.

    Raises:
        TrainingError: names the launcher's variable.
    """
    for name in _PROCESS_COUNTS:
        value = os.environ.get(name, "1")
        if not value.isdigit() or int(value) > 1:
            raise TrainingError(
                f"Several processes were started ({name}={value}), and a run takes one so far.",
                "Start `finetale` without torchrun, mpirun or accelerate launch.",
            )


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


@contextlib.contextmanager
def _foreign_settings_hidden() -> Iterator[None]:
    hidden = {name: value for name, value in os.environ.items() if name.startswith(_FOREIGN)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
