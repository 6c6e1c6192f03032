"""Test clients of the served model with the scripts of benchmarks/clients, as far as they are installed here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetale.models import load_tokenizer
from serving import Serving
from tiny import save_model

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "clients"
sys.path.append(str(SCRIPTS))
from table import CHECKS, CLIENTS, TEMPLATE  # noqa: E402

INSTALLED = ("openai", "ollama", "litellm", "llm")
"""Clients without tests elsewhere; OpenAI's is here because the others are built on it."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    place = tmp_path_factory.mktemp("clients")
    folder = save_model(place / "tiny", positions=4096)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    with Serving(place, "tiny", "--engine", "torch") as serving:
        yield serving


@pytest.mark.parametrize("package", INSTALLED)
def test_a_client_works(package: str, serving: Serving) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    url = {"FINETALE_URL": f"http://127.0.0.1:{serving.port}"}
    ended = subprocess.run(
        [sys.executable, SCRIPTS / f"{package}_python.py"], env=os.environ | url, capture_output=True, text=True
    )
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])["checks"]
    assert len(found) >= 4
    assert set(found.values()) == {"ok"}, found


def test_each_row_has_its_script() -> None:
    scripts = {path.name for path in SCRIPTS.iterdir() if path.stem.endswith(("_python", "_node"))}
    assert {client.script for client in CLIENTS} == scripts
    assert len(CLIENTS) == 13
    assert len(CHECKS) == 6
