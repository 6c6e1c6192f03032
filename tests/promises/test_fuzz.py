"""Test that arbitrary text passes unchanged through the pipeline, and that arbitrary bytes never crash a reader."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetale import text as reading
from finetale import tokens
from finetale.blocks import IGNORE, Blocks, pack, windows
from finetale.cli import run
from finetale.config import Config, TextSettings, read_settings_file
from finetale.errors import ConfigError, FinetaleError, RunError
from finetale.rundir import read_json, verify_folder, write_sealed_folder
from finetale.tokens import TokenStore
from tiny import part, tokenizer

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
MANY = settings(FEW, max_examples=1000)
EXAMPLES = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]

characters = st.characters(exclude_categories=("Cs",))  # UTF-8 has no surrogates
texts = st.lists(st.text(characters, max_size=200), min_size=1, max_size=8)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def texts_in(store: TokenStore, blocks: Blocks) -> dict[int, str]:
    """Return the text of each part, decoded from the labels of all blocks."""
    pieces: dict[int, list[tuple[int, list[int]]]] = {}
    for block in range(len(blocks)):
        batch = blocks.batch(np.array([block]))
        at = 0
        for start, count, number, skip in blocks.segments[blocks.offsets[block] : blocks.offsets[block + 1]].tolist():
            labels = batch.labels[0, at : at + count]
            assert (labels[:skip] == IGNORE).all()
            assert (labels[skip:] != IGNORE).all()
            assert (batch.parts[0, at : at + count] == number).all()
            pieces.setdefault(number, []).append((start + skip, labels[skip:].tolist()))
            at += count
        assert (batch.labels[0, at:] == IGNORE).all()
    found = {}
    for number, of_part in pieces.items():
        ids = [token for _, labels in sorted(of_part) for token in labels]
        if store.parts["ends"][number]:
            assert ids.pop() == tokens.begin_and_end(tokenizer())[1]
        found[number] = str(tokenizer().decode(ids, skip_special_tokens=False))
    return found


@pytest.mark.parametrize("effort", EXAMPLES)
def test_the_text_can_be_rebuilt_from_the_targets(effort: Any) -> None:
    marker = tokens.END_OF_TEXT

    @effort
    @given(texts, st.integers(2, 64), st.booleans(), st.integers(1, 63))
    def check(given_texts: list[str], size: int, fill: bool, stride: int) -> None:
        kept = [item.replace(marker, "") for item in given_texts]
        kept = [item for item in kept if item] or ["x"]
        with tempfile.TemporaryDirectory() as folder:
            parts = [part(item, ends=number % 3 != 2) for number, item in enumerate(kept)]
            store = tokens.build_store(iter(parts), tokenizer(), Path(folder) / "store", report=dict)
            expected = dict(enumerate(kept))
            assert texts_in(store, pack(store, "train", size, fill=fill)) == expected
            assert texts_in(store, windows(store, "train", size, min(stride, size))) == expected

    check()


@pytest.mark.parametrize("effort", EXAMPLES)
def test_documents_equal_the_texts_in_the_file(effort: Any) -> None:
    plain = TextSettings.resolve(
        {"strip": False, "clean_newlines": False, "clean_control": False, "validation_fraction": 0, "test_fraction": 0}
    )

    @effort
    @given(texts)
    def check(given_texts: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "texts.jsonl"
            lines = [
                json.dumps({"text": item}, ensure_ascii=number % 2 == 0) for number, item in enumerate(given_texts)
            ]
            file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
            try:
                parts, _ = reading.read_parts((str(file),), plain)
                found = [(item.text, item.dropped) for item in parts]
            except FinetaleError:
                assert not any(item.strip() for item in given_texts)
                return
        assert [item for item, dropped in found if dropped is None] == [item for item in given_texts if item]

    check()


@pytest.mark.parametrize("effort", EXAMPLES)
def test_arbitrary_bytes_in_a_checksum_file_are_reported(effort: Any, tmp_path: Path) -> None:
    write_sealed_folder(tmp_path / "sealed", lambda folder: (folder / "a").write_bytes(b"a") and None)
    manifest = tmp_path / "sealed/manifest.json"
    whole = manifest.read_bytes()

    @effort
    @given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
    def check(data: bytes) -> None:
        manifest.write_bytes(data)
        assert verify_folder(tmp_path / "sealed")
        with contextlib.suppress(RunError):
            assert isinstance(read_json(manifest), dict)

    check()
    manifest.write_bytes(whole)
    assert verify_folder(tmp_path / "sealed") == []


@pytest.mark.parametrize("effort", EXAMPLES)
def test_arbitrary_settings_files_resolve_or_raise_config_error(effort: Any, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    names = st.sampled_from(sorted(Config.model_fields)) | st.text(max_size=8)
    mapping = st.dictionaries(names, json_values, max_size=4).map(lambda value: yaml.safe_dump(value).encode())

    @effort
    @given(st.binary(max_size=100) | mapping)
    def check(data: bytes) -> None:
        file.write_bytes(data)
        try:
            resolved = Config.resolve(read_settings_file(file))
        except ConfigError:
            return
        file.write_text(resolved.to_yaml(), encoding="utf-8")
        assert Config.resolve(read_settings_file(file)) == resolved

    check()


@pytest.mark.parametrize("effort", EXAMPLES)
def test_arbitrary_run_json_never_crashes_a_command(
    effort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is 0 or 1, never the one for a bug."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/one"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("sources: [nowhere.txt]\n", encoding="utf-8")
    keys = ("status", "base", "config", "name", "steps", "best_step", "process", "created", "seed", "schema_version")
    values = st.fixed_dictionaries({}, optional=dict.fromkeys(keys, json_values))

    @effort
    @given(values)
    def check(manifest: dict[str, Any]) -> None:
        (folder / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
        for words in (["runs", "--json"], ["runs"], ["resume", "runs/one"], ["report", "runs/one"]):
            assert run(words) in (0, 1), words

    check()
