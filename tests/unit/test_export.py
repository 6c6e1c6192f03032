"""Test the registry of export formats."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from finetale import export
from finetale.export import FORMATS

SHARED = {"runtimes", "chromium", "torch_runtime", "tracing", "llama_cpp", "llama_process", "modelfile", "proof"}


def test_each_module_of_the_package_is_a_format_or_shared() -> None:
    folder = Path(export.__file__).parent
    modules = {file.stem for file in folder.glob("*.py") if file.stem != "__init__"}
    assert modules == set(FORMATS) | SHARED
    assert "openvino" in modules


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_each_format_implements_the_exporter_interface(name: str) -> None:
    found = FORMATS[name]
    assert found.name == name
    exporter = found.exporter
    assert vars(exporter)["__name__"] == f"finetale.export.{name}"
    assert all(callable(getattr(exporter, each)) for each in ("check", "write", "open", "usage"))
    assert all(bound.bits >= 4 and 0 < bound.same_choice < 1 for bound in found.weights.values())


def test_a_format_is_installed_if_all_its_packages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: asked.append(name) or object())
    assert FORMATS["openvino"].is_installed() is True
    assert asked == ["openvino", "nncf"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else object())
    assert FORMATS["openvino"].missing() == "pip install 'finetale[serve]'"


def test_a_format_for_browsers_is_installed_if_there_is_a_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "browser"
    monkeypatch.setenv("CHROMIUM", str(browser))
    assert FORMATS["html"].missing() == "Install Chromium, or set the variable CHROMIUM to the path of one."
    browser.write_text("#!/bin/sh\n", encoding="utf-8")
    browser.chmod(0o755)
    assert FORMATS["html"].missing() is None


@pytest.mark.parametrize("name", [name for name in sorted(FORMATS) if FORMATS[name].packages])
def test_a_format_is_read_without_its_packages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in FORMATS[name].packages:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"finetale.export.{name}", raising=False)
    importlib.import_module(f"finetale.export.{name}")
