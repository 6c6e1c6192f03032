"""Test the deployment examples: they name existing files and commands, and pass the linters."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetale.cli import build_app

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/Dockerfile"
UNIT = ROOT / "deploy/finetale.service"


def parsed(words: list[str]) -> None:
    """Parse a `finetale` command line; raise for unknown arguments."""
    build_app().parse_args(words, exit_on_error=False, print_error=False)


def test_the_linter_reports_nothing() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint has no package for this machine")
    done = subprocess.run([linter, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


def test_the_image_copies_existing_files() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M) for word in line.split()[:-1]]
    assert copied == ["constraints.txt", "pyproject.toml", "README.md", "LICENSE", "src"]
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in kept
    entry = re.search(r"^ENTRYPOINT (\[.+\])\nCMD (\[.+\])$", text, re.M)
    assert entry
    words = [*eval(entry[1]), *eval(entry[2])]
    assert words[0] == "finetale"
    parsed(words[1:])


def test_the_systemd_unit_starts_a_valid_command() -> None:
    text = UNIT.read_text(encoding="utf-8")
    start = re.search(r"^ExecStart=(.+)$", text, re.M)
    assert start
    words = shlex.split(start[1])
    assert words[0].endswith("/finetale")
    parsed(words[1:])
    drain = float(words[words.index("--drain") + 1])
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert stop
    assert drain + 3 < int(stop[1]), "systemd waits longer than the drain time of the service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    command = tmp_path / "finetale"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/finetale/bin/finetale", str(command)))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
