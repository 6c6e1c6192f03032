"""Test splits: stable, by document, contiguous parts of long documents, never empty, and without loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from finetale.config import TextSettings
from finetale.text import Part, TextReport, read_parts
from finetale.text import splits as splits_module
from finetale.text.splits import cut


def read(folder: Path, documents: Iterable[str], **settings: object) -> tuple[list[Part], TextReport]:
    import json

    path = folder / "all.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    parts, report = read_parts([str(path)], TextSettings.resolve(settings))
    return list(parts), report


def by_split(parts: list[Part]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        found[part.split].add(part.text)
    return found


def documents(count: int, start: int = 0) -> list[str]:
    return [f"Tale number {n}. There was a fox who counted to {n * 7}." for n in range(start, start + count)]


def test_the_splits_have_the_requested_shares(tmp_path: Path) -> None:
    parts, _ = read(tmp_path, documents(3000))
    found = by_split(parts)
    assert 110 < len(found["validation"]) < 190
    assert 110 < len(found["test"]) < 190
    assert sum(map(len, found.values())) == 3000


def test_adding_and_reordering_documents_keeps_their_splits(tmp_path: Path) -> None:
    before, _ = read(tmp_path, documents(300))
    after, _ = read(tmp_path, reversed(documents(700, start=0)))
    later = {part.text: part.split for part in after}
    assert len(before) == 300
    assert all(later[part.text] == part.split for part in before)


def test_a_single_document_is_cut_into_contiguous_parts(tmp_path: Path) -> None:
    text = "\n\n".join(documents(200))
    parts, report = read(tmp_path, [text])
    assert [part.split for part in parts] == ["train", "validation", "test"]
    assert "".join(part.text for part in parts) == text
    assert all(part.text.endswith("\n\n") for part in parts[:-1])
    assert len({part.digest for part in parts}) == 1
    assert report.to_dict()["split_rule"].startswith("The one document")
    assert 0.03 < len(parts[1].text) / len(text) < 0.07


def test_a_long_document_is_cut_among_others(tmp_path: Path) -> None:
    long = "\n".join(documents(100))
    parts, _ = read(tmp_path, [*documents(300), long], long_document=2000)
    pieces = [part for part in parts if len(part.text) > 100]
    assert "".join(part.text for part in pieces) == long
    assert [part.split for part in pieces] == ["train", "validation", "test"]
    assert len(parts) == 303


def test_a_split_has_at_most_one_part_of_a_document(tmp_path: Path) -> None:
    """Intervals treat each part in a split as a separate document."""
    texts = [" ".join(documents(30, start=n * 100)) for n in range(5)] + documents(40, start=5000)
    for count in (5, 45):
        parts, _ = read(tmp_path, texts[:count], long_document=1000)
        places = [(part.digest, part.split) for part in parts]
        assert len(places) > count
        assert len(set(places)) == len(places)


def test_few_documents_are_each_cut(tmp_path: Path) -> None:
    texts = [" ".join(documents(30, start=n * 100)) for n in range(5)]
    parts, report = read(tmp_path, texts)
    assert len(parts) == 15
    assert "only 5 documents" in report.to_dict()["split_rule"]
    for n, text in enumerate(texts):
        assert "".join(part.text for part in parts[3 * n : 3 * n + 3]) == text


@pytest.mark.parametrize("fraction", [0.0001, 0.1])
def test_with_enough_documents_the_smallest_hashes_fill_an_empty_split(tmp_path: Path, fraction: float) -> None:
    kept = [text for text in documents(400) if splits_module_digest(text) > splits_module.first_digest(0.2)][:40]
    parts, report = read(tmp_path, [*kept, kept[0]], validation_fraction=fraction, test_fraction=fraction)
    found = by_split(parts)
    expected = max(1, round(40 * fraction))
    assert [len(found[split]) for split in ("validation", "test")] == [expected, expected]
    order = sorted(kept, key=splits_module_digest)
    assert found["test"] | found["validation"] == set(order[: 2 * expected])
    assert not found["train"] & (found["test"] | found["validation"])
    assert "smallest hash" in report.to_dict()["split_rule"]


def splits_module_digest(text: str) -> bytes:
    from finetale.text.documents import digest_of

    return digest_of(text.encode())


def test_the_training_split_is_not_empty(tmp_path: Path) -> None:
    parts, report = read(tmp_path, documents(40), validation_fraction=0.98, test_fraction=0.0199999)
    assert len(by_split(parts)["train"]) == 1
    assert "train, which would have stayed empty" in report.to_dict()["split_rule"]


def test_a_full_buffer_fixes_the_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits_module, "BUFFER_BYTES", 20_000)
    kept = [text for text in documents(4000) if splits_module_digest(text) > splits_module.first_digest(0.2)][:300]
    parts, _ = read(tmp_path, kept)
    found = by_split(parts)
    assert sum(map(len, found.values())) == 300
    assert 1 <= len(found["test"]) <= 3  # 5% of the buffered documents, not of all


def test_fractions_of_zero_hold_out_nothing(tmp_path: Path) -> None:
    parts, report = read(tmp_path, documents(30), validation_fraction=0, test_fraction=0)
    assert {part.split for part in parts} == {"train"}
    assert report.to_dict()["split_rule"] == "Every document of the training sources is trained on."


def test_a_given_validation_text_keeps_all_training_text(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("held out")
    parts, report = read(tmp_path, documents(300), validation=str(tmp_path / "v.txt"))
    found = by_split(parts)
    assert found["validation"] == {"held out"}
    assert len(found["train"]) == 300
    assert "test" not in found
    assert "validation text comes from a separate source" in report.to_dict()["split_rule"]


def test_an_explicit_fraction_applies_beside_a_validation_text(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("held out")
    parts, _ = read(tmp_path, documents(300), validation=str(tmp_path / "v.txt"), test_fraction=0.1)
    found = by_split(parts)
    assert found["validation"] == {"held out"}
    assert 15 < len(found["test"]) < 50


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "ab",
        "   a   ",
        "word " * 30,
        "一二三四五六七八九十" * 40,
        "\n\n".join("abcdefghij" * 3),
        "a" * 999,
        "\n" * 50 + "a",
    ],
)
@pytest.mark.parametrize(("validation", "test"), [(0.05, 0.05), (0.4, 0.5), (0.1, 0), (0, 0.001)])
def test_cutting_loses_no_text_and_leaves_no_empty_part(text: str, validation: float, test: float) -> None:
    parts = cut(text, validation, test)
    assert "".join(text[start:stop] for _, start, stop in parts) == text
    assert all(text[start:stop].strip() for _, start, stop in parts) or len(parts) == 1
    assert parts[0][0] == "train"
    assert len(parts) in (1, 1 + (validation > 0) + (test > 0))


def test_few_documents_are_cut_with_any_hashes(tmp_path: Path) -> None:
    """Otherwise a figure could depend on a single held-out document."""
    path = tmp_path / "a.txt"
    for seed in range(20):
        path.write_text(
            "\n".join(f"Text {seed} number {n} of {'some words ' * 20}" for n in range(15)), encoding="utf-8"
        )
        settings = TextSettings.resolve({"documents": "line", "validation_fraction": 0.2, "test_fraction": 0.2})
        parts, report = read_parts([str(path)], settings)
        assert len(list(parts)) == 45
        assert "only 15 documents" in report.split_rule


def test_masking_does_not_change_splits(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"Text {n}: write to ada{n}@example.org about it" for n in range(200)), encoding="utf-8")
    found = []
    for mask in (False, True):
        settings = TextSettings.resolve({"documents": "line", "mask_personal_data": mask})
        parts, _ = read_parts([str(path)], settings)
        found.append([(part.line, part.split) for part in parts])
    assert found[0] == found[1]
