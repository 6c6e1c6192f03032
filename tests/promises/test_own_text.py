"""Test that a started run needs neither its text nor the cache, because it keeps its tokens with a checksum."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from children import call
from finetale.config import Config
from finetale.errors import RunError
from finetale.pipeline.data import keep_standard_input
from finetale.pipeline.kept_text import check_fits, keep_inputs, kept_text
from finetale.rundir import RunDirectory, verify_folder, write_sealed_folder
from finetale.tokens import open_store
from scene import TRAIN, digest_of
from tiny import loaded, save_model, story, write_stories

NEW = (*("new:64x1" if word == "base" else word for word in TRAIN), "--vocab-size", "300")
MEASURED = ("change", "verdict", "judged_on", "memorisation", "prompts")


def no_hard_links() -> None:
    """Let os.link fail as on a file system without hard links."""

    def refused(*args: Any, **options: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    os.link = refused  # type: ignore[assignment]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def measured(run: Path) -> dict[str, Any]:
    """Return the measurements of a comparison, without the samples."""
    comparison = read(run / "comparison.json")
    sides = {
        side: {name: comparison[side][name] for name in ("validation", "test", "sample_metrics")}
        for side in ("before", "after")
    }
    return sides | {name: comparison[name] for name in MEASURED}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with two finished runs, whole/ and new/, and their base; delete the text and the cache."""
    folder = tmp_path_factory.mktemp("bare")
    write_stories(folder / "stories", 30, words=60)
    save_model(folder / "base", dropout=0.1)
    for words, name in ((TRAIN, "whole"), (NEW, "new")):
        code, output = call(folder, *words, "--out", name, "--keep-checkpoints", "9")
        assert code == 0, output
        (cached,) = (path for path in (folder / "cache/tokens").iterdir() if is_linked(path, folder / name))
        assert (cached / "tokens.bin").stat().st_nlink == 2
    for name in ("stories", "cache"):
        shutil.rmtree(folder / name)
    return folder


def is_linked(cached: Path, run: Path) -> bool:
    return (cached / "tokens.bin").samefile(run / "tokens/tokens.bin")


def copy_of(bare: Path, name: str, copy: str, *, steps: int | None = None) -> RunDirectory:
    """Copy a run and put the copy into its state before the comparison, or after some steps."""
    run = RunDirectory(bare / copy)
    shutil.copytree(bare / name, run.root)
    for step, folder in list(run.saved_checkpoints()):
        if steps is not None and step > steps:
            shutil.rmtree(folder)
    run.report.unlink()
    run.comparison.unlink()
    run.update_manifest(status="interrupted", name=name)
    return run


def test_a_finished_run_is_compared_and_reported_without_its_text(bare: Path) -> None:
    before = measured(bare / "whole")
    assert before["memorisation"]["training"]["tokens"] > 0
    (bare / "whole/report.html").unlink()
    (bare / "other.txt").write_text(story(500, 80), encoding="utf-8")
    code, output = call(bare, "compare", "whole")
    assert code == 0, output
    assert measured(bare / "whole") == before
    for words in (("report", "whole"), ("evaluate", "whole", "other.txt"), ("compare", "base", "whole")):
        code, output = call(bare, *words)
        assert code == 0, output
    assert (bare / "whole/report.html").is_file()


def test_runs_with_different_tokenizers_are_compared_without_the_text(bare: Path) -> None:
    """The run new/ has its own tokenizer, so the held-out tokens are decoded and tokenised again."""
    code, output = call(bare, "compare", "new", "whole", "--json")
    assert code == 0, output
    found = json.loads(output[output.index("{") :])
    account = read(bare / "whole/data.json")["text"]["splits"]
    for split in ("validation", "test"):
        sides = [found[side][split] for side in ("before", "after")]
        assert sides[0]["tokens"] != sides[1]["tokens"]
        assert [side["documents"] for side in sides] == [account[split]["documents"]] * 2
        # Both are measured on the same bytes.
        nats = [side["loss"] * side["tokens"] for side in sides]
        bits = [side["bits_per_byte"] for side in sides]
        assert nats[0] / bits[0] == pytest.approx(nats[1] / bits[1], rel=1e-3)


@pytest.mark.parametrize("steps", [3, 6])
def test_a_stopped_run_resumes_without_its_text(bare: Path, steps: int) -> None:
    run = copy_of(bare, "whole", f"stopped-{steps}", steps=steps)
    code, output = call(bare, "resume", run.root.name)
    assert code == 0, output
    assert f"The text {bare / 'stories'} is gone. The run uses the tokens that it keeps." in output
    assert digest_of(run.root) == digest_of(bare / "whole")
    assert measured(run.root) == measured(bare / "whole")


def test_a_new_model_without_a_checkpoint_restarts_without_its_text(bare: Path) -> None:
    run = copy_of(bare, "new", "begun", steps=0)
    assert list(run.saved_checkpoints()) == []
    code, output = call(bare, "resume", "begun")
    assert code == 0, output
    assert digest_of(run.root) == digest_of(bare / "new")


@pytest.mark.parametrize("damage", ["overwritten", "cut", "deleted"])
def test_corrupted_tokens_are_read_again_from_the_text(bare: Path, damage: str) -> None:
    run = copy_of(bare, "whole", damage, steps=3)
    file = run.tokens / "tokens.bin"
    if damage == "deleted":  # as in a run of an older version
        shutil.rmtree(run.tokens)
    else:
        file.write_bytes(b"\1" * 1000 + file.read_bytes()[1000:] if damage == "overwritten" else file.read_bytes()[:99])
    code, output = call(bare, "resume", damage)
    assert code == 1, output
    assert f"{bare / 'stories'}" in output
    assert ("are corrupted (tokens.bin: content differs" in output) == (damage != "deleted")
    write_stories(bare / "stories", 30, words=60)
    try:
        code, output = call(bare, "resume", damage)
    finally:
        shutil.rmtree(bare / "stories")
    assert code == 0, output
    assert digest_of(run.root) == digest_of(bare / "whole")
    assert verify_folder(run.tokens) == []
    code, output = call(bare, "compare", damage)
    assert code == 0, output


def test_tokens_are_copied_if_hard_links_are_not_supported(bare: Path) -> None:
    write_stories(bare / "stories", 30, words=60)
    try:
        code, output = call(bare, *TRAIN, "--out", "copied", hook=no_hard_links)
    finally:
        shutil.rmtree(bare / "stories")
    assert code == 0, output
    assert verify_folder(bare / "copied/tokens") == []
    assert (bare / "copied/tokens/tokens.bin").stat().st_nlink == 1
    assert (bare / "copied/tokens/tokens.bin").read_bytes() == (bare / "whole/tokens/tokens.bin").read_bytes()


def test_a_run_keeps_text_from_standard_input_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetale.text.read_standard_input", lambda: story(1, 200).encode())
    given = Config.resolve({"sources": ("-", str(tmp_path / "other.txt")), "cache_dir": tmp_path / "cache"})
    config = keep_inputs(RunDirectory(tmp_path / "run"), keep_standard_input(given))
    shutil.rmtree(tmp_path / "cache")
    own, other = config.sources
    assert Path(own).parent == tmp_path / "run/stdin"
    assert Path(own).read_text(encoding="utf-8") == story(1, 200)
    assert other == given.sources[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("start", 5), ("start", -1), ("targets", 10**9), ("targets", 0), ("split", 3), ("split", 9), ("source", 999)],
)
def test_inconsistent_tokens_are_refused(bare: Path, tmp_path: Path, field: str, value: int) -> None:
    """A malicious run directory can have valid checksums."""
    whole = RunDirectory(bare / "whole").tokens
    parts = np.load(whole / "parts.npy")
    parts[field][3] = value

    def fill(folder: Path) -> None:
        for file in whole.iterdir():
            if file.name != "manifest.json":
                shutil.copyfile(file, folder / file.name)
        np.save(folder / "parts.npy", parts)

    write_sealed_folder(tmp_path / "tokens", fill)
    assert verify_folder(tmp_path / "tokens") == []
    with pytest.raises(RunError, match="are inconsistent"):
        open_store(tmp_path / "tokens")


def test_ids_outside_the_vocabulary_are_refused(bare: Path) -> None:
    store = kept_text(RunDirectory(bare / "whole"), lambda event: None)
    assert store is not None
    model = loaded()
    check_fits(store, model)
    model.model.resize_token_embeddings(100)
    with pytest.raises(RunError, match=f"hold the id {store.largest_id}, and the model has only 100 embeddings"):
        check_fits(store, model)
