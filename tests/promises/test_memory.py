"""Test that running out of memory at any stage ends with one error sentence and exit code 1."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from children import finish, printed, start
from commands import environment
from tiny import write_stories

resource = pytest.importorskip("resource", reason="needs limits on the address space")
MB = 2**20
# fp32, because without memory for oneDNN, torch falls back to bf16 products that take minutes.
COMMANDS = {
    "train": ("train", "stories", "--model", "bundled", "--max-steps", "2", "--out", "run", "--precision", "fp32"),
    "small batch": (
        *("train", "stories", "--model", "bundled", "--max-steps", "2", "--out", "run", "--precision", "fp32"),
        *("--micro-batch-size", "1", "--no-probe"),
    ),
    "adapter": (
        *("train", "stories", "--model", "bundled", "--max-steps", "2", "--out", "run", "--precision", "fp32"),
        *("--method", "lora"),
    ),
    "plan": ("plan", "stories", "--model", "bundled", "--precision", "fp32"),
    "generate": ("generate", "bundled", "Once", "--max-new-tokens", "200"),
    "evaluate": ("evaluate", "bundled", "stories", "--precision", "fp32"),
}


def limit_memory(megabytes: int) -> None:
    """Limit the address space of this process to its present size plus some megabytes."""
    size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    limit = int(size.split()[1]) * 1024 + megabytes * MB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
@pytest.mark.parametrize(
    "megabytes", [20, 300, *[pytest.param(n, marks=pytest.mark.slow) for n in (2, 350, 262, 280, 320, 335, 400, 500)]]
)
@pytest.mark.parametrize("command", list(COMMANDS))
def test_out_of_memory_is_one_error_sentence(tmp_path: Path, command: str, megabytes: int) -> None:
    write_stories(tmp_path / "stories", 30, 300)
    code = finish(start(tmp_path, COMMANDS[command], functools.partial(limit_memory, megabytes)), 120)
    output = printed(tmp_path)
    assert code in (0, 1), output
    assert "bug" not in output
    assert "Traceback" not in output
    if megabytes <= 20:
        assert code == 1, "20 MB are too little for any command"
    if code == 1:
        errors = [line for line in output.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, output
        assert re.match(r"error: Memory (ran|would run) out", errors[0])
        assert output.splitlines()[-1].startswith("hint: ")


@pytest.mark.parametrize("gigabytes", [0.3, 0.8, 1.5])
def test_a_limit_too_low_for_the_libraries_is_refused_before_they_are_loaded(tmp_path: Path, gigabytes: float) -> None:
    # With such limits, libraries abort (exit code 134) or wait forever for memory.
    limit = int(gigabytes * 2**30)
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}));" + (
        "import sys; from finetale.cli import run; sys.exit(run(['generate', 'bundled', 'Once']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(tmp_path),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert (
        f" of {limit >> 20:,} MiB of address space are free, and Finetale needs 2,048 MiB to load PyTorch."
        in done.stderr
    )
    assert "ulimit -v unlimited" in done.stderr
    assert done.stdout == ""
