"""Test the description of the machine: versions, hardware, memory and processor."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from finetale import __version__, environment


def test_versions_are_those_of_the_running_packages() -> None:
    found = environment.versions()
    assert set(found) <= {"python", *environment.VERSIONED}
    assert len(found) == 1 + len(environment.VERSIONED) == 9
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["finetale"] == __version__


def test_a_missing_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "VERSIONED", ("torch", "no-such-package-anywhere"))
    assert set(environment.versions()) == {"python", "torch"}


def test_hardware_can_be_written_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = environment.hardware()
    assert set(found) == {"system", "cpu", "cores", "memory_bytes", "cpu_bf16", "gpu"}
    assert found["gpu"] is None
    assert found["memory_bytes"] == psutil.virtual_memory().total
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found


def test_accelerators_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert environment.hardware()["gpu"] == {"name": "Apple GPU (MPS)", "count": 1, "memory_bytes": None}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="Some GPU", total_memory=8 * 2**30)
    )
    assert environment.hardware()["gpu"] == {"name": "Some GPU", "count": 2, "memory_bytes": 8 * 2**30}
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 77)
    assert environment.peak_memory() == 77


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "rubbish"}, None),
        ({}, None),
    ],
)
def test_cores_respect_the_cpu_quota_of_a_container(
    files: dict[str, str], expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, *arguments: object, **more: object) -> str:
        name = str(path).removeprefix("/sys/fs/cgroup/")
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    monkeypatch.setattr(Path, "read_text", read)
    assert environment._cgroup_cores() == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert environment.num_cores() == {1.5: 2, 3.0: 3, None: 64}[expected]


def test_cores_respect_the_affinity_of_the_process() -> None:
    assert 1 <= environment.num_physical_cores() <= environment.num_cores()
    assert 1 <= environment.num_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        program = (
            "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
            "from finetale import environment; print(environment.num_cores())"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("limit", "used", "cached", "expected"),
    [
        (None, None, 0, 1000),
        (800, 300, 0, 500),
        (800, 300, 100, 600),  # the file cache counts as used, but can be freed
        (5000, 300, 0, 1000),
        (800, 900, 0, 0),
        (2**63 - 4096, 300, 0, 1000),  # "no limit" in control groups version 1
        (800, None, 0, 1000),
    ],
)
def test_available_memory_respects_the_limit_of_the_control_group(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, used: int | None, cached: int, expected: int
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(environment, "_cgroup_number", lambda *names: limit if names[0] == "memory.max" else used)
    monkeypatch.setattr(environment, "_reclaimable", lambda: cached)
    assert environment.available_memory() == expected


def test_available_memory_of_this_machine_is_within_its_memory() -> None:
    assert 0 < environment.available_memory() <= psutil.virtual_memory().total


def test_peak_memory_includes_allocated_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    resident = psutil.Process().memory_info().rss
    taken = torch.ones(max(0, environment.peak_memory() - resident) // 4 + 16 * 2**20)  # 64 MiB above the last peak
    after = environment.peak_memory()
    assert after >= resident + 0.9 * taken.numel() * 4
    del taken
    assert environment.peak_memory() >= after


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="the system does not tell")
def test_flags_and_name_of_the_processor() -> None:
    content = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = environment.cpu_flags()
    assert all(f" {flag}" in content for flag in flags)
    assert len(flags) > 5
    assert environment.cpu_name()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "avx512f"}, False),
        ({"avx512_bf16"}, True),
        ({"amx_bf16", "avx2"}, True),
        ({"asimd", "bf16"}, True),
        (set(), False),
    ],
)
def test_bf16_is_used_only_if_the_processor_supports_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: bool
) -> None:
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset(flags))
    assert environment.cpu_has_bf16() is expected
