"""Test atomic writes, manifests and checksums."""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path

import pytest

from finetale.errors import RunError
from finetale.rundir import (
    RunDirectory,
    read_json,
    recover,
    verify_folder,
    write_bytes,
    write_folder,
    write_json,
    write_sealed_folder,
)
from finetale.schema import Process, RunManifest

OLD = Path(__file__).parents[1] / "old_runs/version-1"


def fill_two(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"abc")
    (folder / "b.txt").write_text("b")


def test_a_failed_write_keeps_the_old_content_and_leaves_no_files(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"a": float("nan")})
    assert read_json(file) == {"a": 1}

    def fail(folder: Path) -> None:
        fill_two(folder)
        raise OSError(28, "No space left on device")

    write_folder(tmp_path / "f", fill_two)
    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path / "f", fail)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "x.json"]
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["a.bin", "b.txt"]


def test_a_folder_is_replaced_atomically(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", fill_two)
    write_folder(tmp_path / "f", lambda folder: write_bytes(folder / "c", b"c"))
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["c"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    def fill(folder: Path) -> None:
        fill_two(folder)
        (folder / "a.bin").chmod(0o600)  # libraries write files with other permissions
        (folder / "b.txt").chmod(0o755)

    before = os.umask(umask)
    try:
        write_sealed_folder(tmp_path / "f", fill)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "f").iterdir()} == {mode}


def test_files_of_other_running_writers_are_not_deleted(tmp_path: Path) -> None:
    long_ago = time.time() - 5000
    for name in (".a.1.tmp", ".b.2.tmp", ".c.3.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
        os.utime(tmp_path / name, (long_ago, long_ago))
        os.utime(tmp_path / name / "x", (long_ago, long_ago))
    (tmp_path / ".a.1.tmp" / "x").write_text("y")  # still running
    recover(tmp_path, untouched=3600)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.1.tmp", "c"]
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_the_manifest_detects_corruption(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    write_sealed_folder(folder, fill_two)
    assert verify_folder(folder) == []
    (folder / "a.bin").write_bytes(b"abd")
    assert verify_folder(folder) == ["a.bin: content differs from its SHA-256"]
    (folder / "a.bin").unlink()
    assert verify_folder(folder) == ["a.bin: missing"]
    entries = {"schema_version": 1, "files": {"../x": {"sha256": "", "bytes": 0}}}
    write_json(folder / "manifest.json", entries)
    assert verify_folder(folder) == ["../x: is outside the folder"]
    (folder / "manifest.json").write_text("{")
    assert len(verify_folder(folder)) == 1


def test_opening_a_folder_without_a_run_fails(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        RunDirectory.open(tmp_path / "nope")
    with pytest.raises(RunError, match="is not a run directory"):
        RunDirectory.open(tmp_path)
    RunDirectory(tmp_path).update_manifest(status="running")
    assert RunDirectory.open(tmp_path).read_manifest() == RunManifest(status="running")


def test_only_fields_of_the_schema_are_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.update_manifest(status="running", process={"pid": 1, "host": "a"})
    before = run.manifest.read_bytes()
    with pytest.raises(TypeError, match=r"^run\.json has no field colour$"):
        run.update_manifest(colour="red")
    with pytest.raises(ValueError, match="valid integer"):
        run.update_manifest(steps="3")
    assert run.manifest.read_bytes() == before
    run.update_manifest(steps=3)
    assert run.read_manifest() == RunManifest(status="running", process=Process(pid=1, host="a"), steps=3)
    assert "config" not in read_json(run.manifest)


@pytest.mark.parametrize("filler", [[], {}, "text", 7.5, True, None])
@pytest.mark.parametrize("name", ["run.json", "data.json", "comparison.json"])
def test_values_of_a_wrong_type_are_refused_by_name_or_harmless(tmp_path: Path, name: str, filler: object) -> None:
    """Each value of a file, two levels deep, is replaced in turn."""
    run = RunDirectory(tmp_path)
    read = {"run.json": run.read_manifest, "data.json": run.read_data, "comparison.json": run.read_comparison}[name]
    whole = json.loads((OLD / name).read_text("utf-8"))
    tried, messages = 0, []
    for keys in [(key,) for key in whole] + [(a, b) for a in whole if isinstance(whole[a], dict) for b in whole[a]]:
        changed = copy.deepcopy(whole)
        place = changed if len(keys) == 1 else changed[keys[0]]
        place[keys[-1]] = filler
        write_json(tmp_path / name, changed)
        try:
            read()
        except RunError as error:
            messages.append((keys[0], error.message))
        tried += 1
    assert tried >= 15
    assert len(messages) >= 5
    assert all(f"{name} is corrupted: " in message and key in message for key, message in messages)


def test_only_complete_checkpoints_are_listed_newest_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (5, 200, 30):
        write_sealed_folder(run.checkpoint(step), fill_two)
    (run.checkpoints / "step-00000999").mkdir()
    (run.checkpoints / ".step-00000400.1.tmp").mkdir()
    assert [step for step, _ in run.saved_checkpoints()] == [200, 30, 5]
