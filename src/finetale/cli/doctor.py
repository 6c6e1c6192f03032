"""`finetale doctor`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from rich.markup import escape

from finetale.cli.output import Json, print_json, quiet_libraries, stdout
from finetale.display import size


def command(*, as_json: Json = False) -> int:
    """This machine: what Finetale would use, and what would make it faster."""
    quiet_libraries()
    from finetale.cache import cache_root
    from finetale.environment import available_memory, hardware, versions

    machine, found = hardware(), versions()
    advice = _advice(machine)
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
                "advice": advice,
            }
        )
        return 0
    console = stdout()
    gpu = machine["gpu"]
    console.print(
        f"Processor   {escape(machine['cpu'])}, {machine['cores']} cores, {'computes in bf16' if machine['cpu_bf16'] else 'no bf16'}"
    )
    console.print(f"Memory      {size(machine['memory_bytes'])}, {size(available_memory())} free")
    console.print(f"GPU         {escape(gpu['name']) if gpu else 'none'}")
    console.print(f"Cache       {cache} ({size(free)} free on its disk)")
    console.print(f"Versions    {', '.join(f'{name} {version}' for name, version in found.items())}", soft_wrap=True)
    for line in advice:
        console.print(f"Advice      {line}", soft_wrap=True)
    return 0


def _advice(machine: dict[str, Any]) -> list[str]:
    lines = []
    if machine["gpu"] is None:
        lines.append(
            "There is no GPU that torch can use. Small models (bundled, new:1m to 10m, distilgpt2) train well on a processor; for gpt2-medium and larger a GPU is many times faster."
        )
        if not machine["cpu_bf16"]:
            lines.append("This processor does not compute in bf16, so training runs in fp32.")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and threads.isdigit() and int(threads) < machine["cores"]:
        lines.append(f"OMP_NUM_THREADS={threads} keeps torch from using all {machine['cores']} cores.")
    if shutil.disk_usage(_existing(Path.cwd())).free < 5e9:
        lines.append(
            "Less than 5 GB of disk are free here; a run of gpt2 keeps about 5 GB (two checkpoints and the best model)."
        )
    return lines or ["Nothing stands in the way."]


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
