"""Describe this machine: CPU, memory, accelerator, package versions. Knows nothing about models or data.

The functions import slow packages themselves, because every command imports this module when it starts.
"""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path
from typing import Any

VERSIONED = (
    "finetale",
    "torch",
    "transformers",
    "datasets",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
)
"""Packages whose versions influence results."""


def versions(*names: str) -> dict[str, str]:
    """Return the versions of Python and of the named packages. The default is `VERSIONED`."""
    import importlib.metadata

    found = {"python": platform.python_version()}
    for name in names or VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def num_cores() -> int:
    """Return the number of cores that this process may use. Obeys the limit of a container (control group)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _cgroup_cores()
    return cores if share is None else max(1, min(cores, math.ceil(share)))


def num_physical_cores() -> int:
    """Return the number of physical cores that this process may use. If it is unknown, count logical cores."""
    import psutil

    return min(num_cores(), psutil.cpu_count(logical=False) or num_cores())


def calm_threads() -> None:
    """Limit how long OpenMP threads spin while they wait. Call this before torch is loaded.

    By default, threads of GNU OpenMP spin for milliseconds. With another process on the same cores, this reduced the
    speed by over a quarter. The shorter limit had no cost on idle cores (docs/log.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def available_memory() -> int:
    """Return how many more bytes of main memory this process can allocate.

    Obeys the limits of a container (control group) and of the address space (`ulimit -v`).
    """
    import psutil

    available = psutil.virtual_memory().available
    limit = address_space_limit()
    if limit is not None:
        available = min(available, max(0, limit - address_space()))
    limit = _cgroup_number("memory.max", "memory/memory.limit_in_bytes")
    used = _cgroup_number("memory.current", "memory/memory.usage_in_bytes")
    if limit is not None and used is not None and limit < 2**60:
        available = min(available, max(0, limit - used + _reclaimable()))
    return int(available)


def address_space() -> int:
    """Return how many bytes of address space this process uses."""
    import psutil

    return int(psutil.Process().memory_info().vms)


def address_space_limit() -> int | None:
    """Return the limit on this process's address space in bytes (`ulimit -v`), or None if there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def cpu_name() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the instruction-set flags of the CPU. Empty if the system does not list them."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    match = re.search(
        r"^(?:flags|Features)\s*:\s*(.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
    )
    return frozenset(match.group(1).split()) if match else frozenset()


def cpu_has_bf16() -> bool:
    """Return whether the CPU supports bf16 in hardware. Without support, bf16 is many times slower than fp32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def hardware() -> dict[str, Any]:
    """Return the CPU, the number of cores, the memory and the accelerators of this machine."""
    import psutil
    import torch

    found: dict[str, Any] = {
        "system": platform.platform(terse=True),
        "cpu": cpu_name(),
        "cores": num_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "cpu_bf16": cpu_has_bf16(),
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "memory_bytes": properties.total_memory,
        }
    elif torch.backends.mps.is_available():
        found["gpu"] = {"name": "Apple GPU (MPS)", "count": 1, "memory_bytes": None}
    return found


def peak_memory() -> int:
    """Return the peak memory of this process in bytes: of the accelerator if there is one, else of main memory."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    try:
        import resource
    except ImportError:  # not on Windows
        return int(psutil.Process().memory_info().rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def reset_peak_memory() -> bool:
    """Reset the value of `peak_memory`. Return False if the system does not support it (only CUDA and Linux do)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _reclaimable() -> int:
    """Return the bytes of file cache that the control group counts as used memory but can free."""
    for name in ("memory.stat", "memory/memory.stat"):
        try:
            text = (Path("/sys/fs/cgroup") / name).read_text()
        except OSError:
            continue
        match = re.search(r"^(?:total_)?inactive_file (\d+)$", text, re.MULTILINE)
        return int(match.group(1)) if match else 0
    return 0


def _cgroup_cores() -> float | None:
    """Return the number of cores that the control group may use, or None if it has no limit."""
    try:
        quota, period = (Path("/sys/fs/cgroup") / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    allowed, every = (_cgroup_number(f"cpu/cpu.cfs_{name}_us") or 0 for name in ("quota", "period"))
    return allowed / every if allowed > 0 and every > 0 else None


def _cgroup_number(*names: str) -> int | None:
    """Return the number in the first of these files of the control group that exists; None if none does."""
    for name in names:
        try:
            return int((Path("/sys/fs/cgroup") / name).read_text())
        except (OSError, ValueError):
            continue
    return None


def resolve_precision(setting: str) -> str:
    """Return "fp32" or "bf16". The setting "auto" means bf16 if the device supports it in hardware, else fp32."""
    import torch

    if setting != "auto":
        return setting
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if torch.backends.mps.is_available():
        return "fp32"
    return "bf16" if cpu_has_bf16() else "fp32"
