"""Test the registry of export formats."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from finetale import export
from finetale.export import FORMATS

SHARED = {"runtimes", "chromium", "torch_runtime", "llama_cpp", "llama_process", "modelfile", "proof"}


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
    assert FORMATS["openvino"].is_installed() is False
