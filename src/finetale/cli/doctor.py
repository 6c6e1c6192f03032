"""`finetale doctor`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from rich.markup import escape

from finetale.cli.output import Json, print_json, quiet_libraries, stdout
from finetale.formatting import size


def command(*, as_json: Json = False) -> int:
    """Show what Finetale uses on this machine, whether the accelerator computes correctly, and advice."""
    quiet_libraries()
    from finetale.cache import cache_root
    from finetale.environment import available_memory, hardware, versions

    machine, found = hardware(), versions()
    checks = [] if machine["gpu"] is None else _check_accelerator()
    advice = _advice(machine, checks)
    cache = cache_root(None)
    free = shutil.disk_usage(_existing(cache)).free
    if as_json:
        print_json(
            {
                "hardware": machine,
                "versions": found,
                "available_memory_bytes": available_memory(),
                "cache": str(cache),
                "cache_disk_free_bytes": free,
                "device_checks": checks,
                "advice": advice,
            }
        )
        return 0
    console = stdout()
    gpu = machine["gpu"]
    console.print(
        f"Processor   {escape(machine['cpu'])}, {machine['cores']} cores, "
        f"{'supports bf16' if machine['cpu_bf16'] else 'no bf16'}"
    )
    console.print(f"Memory      {size(machine['memory_bytes'])}, {size(available_memory())} free")
    console.print(f"GPU         {escape(gpu['name']) if gpu else 'none'}")
    for check in checks:
        console.print(f"            {_describe(check)}")
    console.print(f"Cache       {cache} ({size(free)} free on its disk)")
    console.print(f"Versions    {', '.join(f'{name} {version}' for name, version in found.items())}", soft_wrap=True)
    for line in advice:
        console.print(f"Advice      {line}", soft_wrap=True)
    return 0


def _check_accelerator() -> list[dict[str, Any]]:
    from finetale import devices
    from finetale.pipeline.device_check import check_device

    return [check.to_dict() for check in check_device(devices.device())]


def _describe(check: dict[str, Any]) -> str:
    if check["error"] is not None:
        return f"{check['name']}: fails ({escape(check['error'])})"
    result = "same as the CPU" if check["passed"] else "WRONG"
    return f"{check['name']}: {result} (largest difference {check['difference']:.1e})"


def _advice(machine: dict[str, Any], checks: list[dict[str, Any]]) -> list[str]:
    lines = []
    wrong = [check["name"] for check in checks if not check["passed"]]
    if wrong:
        lines.append(
            f"With this version of PyTorch, the accelerator computes wrong results ({', '.join(wrong)}). "
            "Install another version of PyTorch before you train or generate on this machine."
        )
    if machine["gpu"] is None:
        lines.append(
            "PyTorch finds no GPU. Small models (bundled, new:1m to 10m, distilgpt2) train well on a CPU. For "
            "gpt2-medium and larger models a GPU is many times faster."
        )
        if not machine["cpu_bf16"]:
            lines.append("This CPU does not support bf16, so training runs in fp32.")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and threads.isdigit() and int(threads) < machine["cores"]:
        lines.append(f"OMP_NUM_THREADS={threads} limits PyTorch to fewer threads than the {machine['cores']} cores.")
    if shutil.disk_usage(_existing(Path.cwd())).free < 5e9:
        lines.append(
            "Less than 5 GB of disk space is free in this folder. A run of gpt2 needs about 5 GB for two checkpoints "
            "and the best model."
        )
    return lines or ["None. This machine is ready for training."]


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
