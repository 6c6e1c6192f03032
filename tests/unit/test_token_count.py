"""Test token counts: exact for small texts, estimated from a sample with an error bound for large ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from finetale import token_count
from finetale.models import load_tokenizer
from finetale.text import Part
from finetale.text.documents import digest_of
from finetale.token_count import TokenCount, TokenCounter
from finetale.tokenizing.batches import batches
from finetale.tokens import build_store

TEXT = "the fox and hen, went “home” through 12 snowy fields. Naïve 今天 owls sang"
WORDS = TEXT.split()


def part(text: str, split: Any = "train", dropped: str | None = None, *, ends: bool = True) -> Part:
    return Part(text, "a.txt", 1, split, digest_of(text.encode()).hex(), dropped, ends)


def parts(*, long: bool) -> list[Part]:
    """Return lines of many lengths in all splits, or one document in three parts."""
    rng = random.Random(3)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(3000)]
    if long:
        whole = ["\n".join(texts[:2600]), "\n".join(texts[2600:2800]), "\n".join(texts[2800:])]
        return [
            part(text, split, ends=split == "test")
            for text, split in zip(whole, ("train", "validation", "test"), strict=True)
        ]
    splits = rng.choices(["train", "validation", "test"], [8, 1, 1], k=len(texts))
    found = [part(text, split) for text, split in zip(texts, splits, strict=True)]
    return found + [part(text, "train", "duplicate") for text in texts[:300]]


def counted(found: list[Part]) -> TokenCount:
    counter = TokenCounter(load_tokenizer("bundled"))
    for batch in batches(iter(found)):
        counter.add(batch)
    return counter.result()


@pytest.mark.parametrize("long", [False, True])
def test_an_exact_count_equals_the_account_of_the_store(long: bool, tmp_path: Path) -> None:
    found = parts(long=long)
    store = build_store(iter(found), load_tokenizer("bundled"), tmp_path / "store", report=dict)
    count = counted(found)
    assert count.error is None
    assert {"tokens": count.account, "dropped": count.dropped} == store.account
    assert count.warnings == store.warnings


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("exact_bytes", [0, 100_000])
def test_an_estimate_is_repeatable_and_within_twice_its_error(
    long: bool, exact_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = parts(long=long)
    true = counted(found)
    monkeypatch.setattr(token_count, "EXACT_BYTES", exact_bytes)
    monkeypatch.setattr(token_count, "_SLICE_CHARACTERS", 500)
    count = counted(found)
    assert count == counted(found)
    assert count.error is not None
    assert 0 < count.error < 0.05 * true.account["read"]
    assert abs(count.account["read"] - true.account["read"]) <= 2 * count.error
    assert count.account["read"] == sum(number for name, number in count.account.items() if name != "read")
    assert [row["documents"] for row in count.dropped] == [row["documents"] for row in true.dropped]
    for name, number in true.account.items():
        assert abs(count.account[name] - number) <= 0.05 * true.account["read"]


def test_95_percent_of_intervals_contain_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts(long=False)
    true = counted(found).account["read"]
    monkeypatch.setattr(token_count, "EXACT_BYTES", 0)
    held = 0
    for seed in range(40):
        monkeypatch.setattr(token_count, "_SEED", seed)
        count = counted(found)
        held += abs(count.account["read"] - true) <= (count.error or 0)
    assert held >= 34


def test_end_of_text_tokens_outside_of_the_sample_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [part(f"number {number} <|endoftext|> and on") for number in range(500)]
    true = counted(found)
    monkeypatch.setattr(token_count, "EXACT_BYTES", 0)
    assert counted(found).warnings == true.warnings
    assert "500 end-of-text markers" in true.warnings[0]


def test_examples_with_context_are_counted_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parts(long=False)
    for number, each in enumerate(found[:900]):
        place = each.text.find(" ")
        each.context = ((0, place),) if place > 0 and number % 3 else ()
    store = build_store(iter(found), load_tokenizer("bundled"), tmp_path / "store", report=dict)
    assert store.account["tokens"]["context"] > 0
    assert {"tokens": counted(found).account, "dropped": counted(found).dropped} == store.account
    examples = [each for each in found if each.context]
    true = counted(examples)
    monkeypatch.setattr(token_count, "EXACT_BYTES", 0)
    assert counted(examples) == true
    assert counted(found).account["context"] == store.account["tokens"]["context"]


def test_check_marks_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import finetale as ft
    from finetale.cli import run

    monkeypatch.setattr(token_count, "EXACT_BYTES", 1000)
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(each.text for each in parts(long=False)), encoding="utf-8")
    exact = ft.check(str(path), documents="line", model="bundled", exact_tokens=True)
    about = ft.check(str(path), documents="line", model="bundled")
    assert (exact.estimated, exact.tokens_error) == (False, None)
    assert about.estimated
    assert about.tokens_error
    assert about.tokens
    assert exact.tokens
    assert abs(about.tokens.read - exact.tokens.read) <= 2 * about.tokens_error
    assert about.text == exact.text
    assert run(["check", str(path), "--documents", "line", "--model", "bundled", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert f"about {about.tokens.read:,} tokens read = " in out
    assert "estimated from a sample: ±" in out
    assert "--exact-tokens counts all" in out
    assert run(["check", str(path), "--documents", "line", "--model", "bundled", "--quiet", "--exact-tokens"]) == 0
    out = capsys.readouterr().out
    assert "about" not in out
