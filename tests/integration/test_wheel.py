"""Test the contents and the size of the wheel and the source distribution."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tiny import MODEL_FILES

ROOT = Path(__file__).parents[2]
LIMIT = 26_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_contains_exactly_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        metadata = [name for name in archive.namelist() if name.endswith("/METADATA")]
        assert b"License-Expression: Apache-2.0" in archive.read(metadata[0])
    list_files = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/finetale"]
    listed = subprocess.run(list_files, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        assert names == {name.removeprefix("src/") for name in listed.stdout.split()}
    model = {name.rpartition("/")[2] for name in names if name.startswith("finetale/bundled/model/")}
    assert model == set(MODEL_FILES)
    assert sum(name.startswith("finetale/bundled/tales/") for name in names) >= 120
    assert "finetale/py.typed" in names
    assert any(name.startswith("finetale/templates/") for name in names)
    assert all(name.startswith("finetale/") for name in names)
    assert sum(sizes.values()) < LIMIT
    assert wheel.stat().st_size < LIMIT


def test_the_source_distribution_is_small(wheel: Path) -> None:
    (source,) = wheel.parent.glob("*.tar.gz")
    assert source.stat().st_size < LIMIT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_installed_wheel_runs_the_demo_offline(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), "torch", str(wheel)]
    subprocess.run(install, check=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "FINETALE_CACHE": str(tmp_path / "cache")}
    command = [str(python), "-m", "finetale", "demo", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/demo/report.html").is_file()
