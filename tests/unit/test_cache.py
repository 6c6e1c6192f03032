"""Test that the cache detects corruption, deletes the least recently used entries first, and keeps other files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from finetale import cache
from finetale.cli import run
from finetale.config import Config
from finetale.errors import ConfigError, SourceError
from finetale.pipeline.data import keep_standard_input, tokenise, trained_tokenizer
from finetale.rundir import write_sealed_folder
from finetale.schema import Event, WarningEvent
from finetale.text.in_memory import write_texts
from tiny import story, tokenizer

DAY = 86_400.0


def warnings_of(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, WarningEvent)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def config(tmp_path: Path, root: Path) -> Config:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(30):
        (text / f"{number}.txt").write_text(story(number, 40), encoding="utf-8")
    return Config.resolve({"sources": (str(text),), "cache_dir": root, "vocab_size": 300})


def entry(root: Path, name: str, size: int = 1000, days: float = 1.0, kind: str = "tokens") -> Path:
    """Create a sealed entry that was used some days ago."""
    path = root / kind / (name * 32 if kind != "engines" else f"openvino-{name * 16}")
    write_sealed_folder(path, lambda folder: (folder / "tokens.bin").write_bytes(bytes(size)) and None)
    used = cache.time.time() - days * DAY
    os.utime(path, (used, used))
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "tokens.bin").write_bytes(b"\1" * 1000 + (path / "tokens.bin").read_bytes()[1000:]),
        lambda path: (path / "parts.npy").write_bytes((path / "parts.npy").read_bytes()[:-40]),
        lambda path: (path / "personal.npy").write_bytes(b""),
        lambda path: (path / "sources.json").write_text('{"names": ["another"]}'),
        lambda path: (path / "store.json").write_text("{}"),
        lambda path: (path / "store.json").unlink(),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text("{}"),
        lambda path: (path / "tokens.bin").unlink(),
    ],
    ids=["overwritten", "cut", "empty", "other names", "no facts", "facts gone", "unsealed", "another seal", "gone"],
)
def test_corrupted_tokens_are_reported_and_rebuilt(config: Config, root: Path, damage: object) -> None:
    first = tokenise(config, tokenizer(), lambda event: None)
    expected, sha256 = np.array(first.tokens), first.info["sha256"]
    damage(first.folder)  # type: ignore[operator]
    events: list[Event] = []
    again = tokenise(config, tokenizer(), events.append)
    (warning,) = warnings_of(events)
    assert "corrupted" in warning
    assert str(first.folder) in warning
    assert again.info["sha256"] == sha256
    assert np.array_equal(again.tokens, expected)
    events.clear()
    assert np.array_equal(tokenise(config, tokenizer(), events.append).tokens, expected)
    assert warnings_of(events) == []


def test_corrupted_tokenizers_are_reported_and_rebuilt(config: Config, root: Path) -> None:
    first = trained_tokenizer(config, lambda event: None)
    (folder,) = (root / "tokenizers").iterdir()
    file = folder / "tokenizer.json"
    rules = json.loads(file.read_text(encoding="utf-8"))
    last = max(rules["model"]["vocab"], key=rules["model"]["vocab"].get)
    rules["model"]["vocab"]["zz"] = rules["model"]["vocab"].pop(last)  # a valid tokenizer, but a different one
    rules["model"]["merges"].pop()
    file.write_text(json.dumps(rules), encoding="utf-8")
    events: list[Event] = []
    again = trained_tokenizer(config, events.append)
    assert again.get_vocab() == first.get_vocab()
    assert len(warnings_of(events)) == 1
    assert trained_tokenizer(config, lambda event: None).get_vocab() == first.get_vocab()


def test_corrupted_standard_input_is_refused(
    config: Config, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetale.text.read_standard_input", lambda: story(1, 200).encode())
    kept = keep_standard_input(config.model_copy(update={"sources": ("-",)}))
    path = Path(kept.sources[0])
    assert path.parent == root / "stdin"
    tokenise(kept, tokenizer(), lambda event: None)
    path.write_text(story(2, 200), encoding="utf-8")
    with pytest.raises(SourceError, match=rf"{path.name} is corrupted"):
        tokenise(kept, tokenizer(), lambda event: None)
    # Sending the same text again repairs the entry.
    assert keep_standard_input(config.model_copy(update={"sources": ("-",)})) == kept
    tokenise(kept, tokenizer(), lambda event: None)


def test_corrupted_text_from_memory_is_refused(config: Config, root: Path) -> None:
    texts = [story(number, 60) for number in range(30)]
    kept = config.model_copy(update={"sources": (write_texts(texts, root / "in-memory"),)})
    path = Path(kept.sources[0])
    tokenise(kept, tokenizer(), lambda event: None)
    assert sorted(each.kind for each in cache.entries(root)) == ["in-memory", "tokens"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SourceError, match=rf"{path.name} is corrupted"):
        tokenise(kept, tokenizer(), lambda event: None)


def test_each_folder_is_read_once_per_process(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tokenise(config, tokenizer(), lambda event: None)
    calls: list[Path] = []
    verify = cache.verify_folder
    monkeypatch.setattr(cache, "verify_folder", lambda path: (calls.append(path), verify(path))[1])
    for _ in range(3):
        tokenise(config, tokenizer(), lambda event: None)
    assert calls == []
    os.utime(store.folder / "tokens.bin", (1, 1))
    tokenise(config, tokenizer(), lambda event: None)
    assert calls == [store.folder]


def test_the_least_recently_used_entries_are_deleted_first(root: Path) -> None:
    old, older, young = entry(root, "a", days=2), entry(root, "b", days=3), entry(root, "c", days=1)
    held = cache.hold(older)  # reading counts as a use
    assert held is not None
    held.release()
    os.utime(older, (cache.time.time() - DAY / 2,) * 2)
    total = sum(each.bytes for each in cache.entries(root))
    assert cache.evict(root, None) == cache.evict(root, total) == []
    assert [each.path for each in cache.evict(root, total - 1)] == [old]
    assert [each.path for each in cache.evict(root, total * 2 // 3 - 1)] == [young]
    assert older.is_dir()
    assert [each.path for each in cache.evict(root, 0)] == [older]
    assert list((root / "tokens").iterdir()) == []


def test_entries_in_use_and_recent_entries_are_kept(root: Path) -> None:
    used, recent, idle = entry(root, "a", days=9), entry(root, "b", days=0), entry(root, "c", days=1)
    code = (
        "import sys; from pathlib import Path; from finetale import cache\n"
        "held = cache.hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(used)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        os.utime(used, (1, 1))
        assert {each.path: each.in_use for each in cache.entries(root)} == {used: True, recent: False, idle: False}
        assert [each.path for each in cache.evict(root, 0)] == [idle]
        gone, kept = cache.empty(root)
        assert ([each.path for each in gone], [each.path for each in kept]) == ([recent], [used])
    finally:
        child.kill()  # the lock ends with the process
        child.communicate()
    gone, kept = cache.empty(root)
    assert ([each.path for each in gone], kept) == ([used], [])


def test_an_open_store_locks_its_entry(config: Config, root: Path) -> None:
    store = tokenise(config, tokenizer(), lambda event: None)
    assert [each.in_use for each in cache.entries(root)] == [True]
    assert cache.empty(root)[0] == []
    del store
    assert [each.in_use for each in cache.entries(root)] == [False]
    assert cache.hold(root / "tokens" / "nothing") is None


def test_building_keeps_the_cache_within_its_limit(config: Config, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = entry(root, "a", size=100_000, days=5)
    tokenise(config, tokenizer(), lambda event: None)
    assert old.is_dir()
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "90kB")
    (Path(config.sources[0]) / "more.txt").write_text(story(99), encoding="utf-8")
    store = tokenise(config, tokenizer(), lambda event: None)
    assert not old.exists()
    assert store.folder.is_dir()


@pytest.mark.parametrize(
    ("value", "bytes_"),
    [
        ("", 10 * 2**30),
        ("20GB", 2 * 10**10),
        ("2 GiB", 2 * 2**30),
        ("1.5 mb", 1_500_000),
        ("0", 0),
        ("none", None),
        (" 7kB ", 7000),
    ],
)
def test_the_limit_is_given_as_a_size(monkeypatch: pytest.MonkeyPatch, value: str, bytes_: int | None) -> None:
    monkeypatch.setenv(cache.LIMIT_VARIABLE, value)
    assert cache.size_limit() == bytes_


@pytest.mark.parametrize("value", ["much", "-1", "10 apples", "1e9", "GB"])
def test_invalid_sizes_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(cache.LIMIT_VARIABLE, value)
    with pytest.raises(ConfigError, match=f"FINETALE_CACHE_LIMIT is '{value}'"):
        cache.size_limit()


def test_only_entries_and_abandoned_partial_files_are_deleted(root: Path, tmp_path: Path) -> None:
    entry(root, "a")
    entry(root, "b", kind="engines")
    entry(root, "c", kind="tokenizers")
    (root / "stdin").mkdir()
    (root / "stdin" / f"{'d' * 64}.txt").write_text("text")
    mine = [root / "notes.txt", root / "tokens" / "notes.txt", root / "stdin" / "a.txt", root / "mine" / ("e" * 32)]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("mine")
    (root / "tokens" / ("f" * 32)).symlink_to(elsewhere)
    dead, live = root / "tokens" / ".x.1-ab.tmp", root / "tokens" / ".y.1-ab.tmp"
    for path in (dead, live):
        path.mkdir()
    os.utime(dead, (1, 1))
    gone, kept = cache.empty(root)
    assert (sorted(each.kind for each in gone), kept) == (["engines", "stdin", "tokenizers", "tokens"], [])
    assert not dead.exists()
    assert live.is_dir()
    assert all(path.read_text() == "mine" for path in (*mine, elsewhere / "file"))


def test_the_place_of_the_cache_is_configurable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FINETALE_CACHE", str(tmp_path / "elsewhere"))
    assert cache.cache_root(Path("~/mine")) == tmp_path / "mine"
    assert cache.cache_root(None) == tmp_path / "elsewhere"
    monkeypatch.delenv("FINETALE_CACHE")
    assert cache.cache_root(None) == tmp_path / ".cache" / "finetale"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[None]:
    monkeypatch.setenv("FINETALE_CACHE", str(root))
    monkeypatch.setenv("COLUMNS", "200")
    return


@pytest.mark.usefixtures("shown")
def test_the_command_shows_and_empties_the_cache(
    config: Config, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache"]) == 0
    assert "empty (limit 10.0 GiB" in capsys.readouterr().out
    store = tokenise(config, tokenizer(), lambda event: None)
    entry(root, "a", days=30, kind="engines")
    assert run(["cache"]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert config.sources[0] in lines[1]
    assert lines[1].rstrip().endswith("yes")
    assert lines[2].startswith("engines")
    assert "2 entries" in lines[3]
    assert run(["cache", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [each["kind"] for each in described["entries"]] == ["tokens", "engines"]
    assert described["limit_bytes"] == 10 * 2**30
    assert described["bytes"] == sum(each["bytes"] for each in described["entries"]) > 1000
    assert run(["cache", "--empty"]) == 0
    output = capsys.readouterr().out
    assert "Deleted 1 entry" in output
    assert "1 entry is in use and stays" in output
    assert store.folder.is_dir()
    del store
    assert run(["cache", "--empty", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert len(described["deleted"]) == 1
    assert described["entries"] == []
    assert [path for kind in cache.PATTERNS for path in (root / kind).glob("*")] == []
