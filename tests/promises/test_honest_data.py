"""Test that planted repeats, leaks and personal data are found, and that clean text is left unchanged."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetale import text
from finetale.config import TextSettings

SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed else []) for seed in range(20)]


def tales() -> list[str]:
    """Return the paragraphs of at least 40 words in the bundled tales: about 600 texts without repeats."""
    parts, _ = text.read_parts(["bundled:tales"], TextSettings.resolve({}))
    found = [block for part in parts for block in part.text.split("\n\n") if len(block.split()) >= 40]
    return sorted(set(found))


def edited(words: str, rng: random.Random) -> str:
    """Return a text with 5% of its words replaced, deleted or inserted, and some changes of case and punctuation."""
    made = words.split()
    for at in sorted(rng.sample(range(len(made)), max(1, len(made) // 20)), reverse=True):
        kind = rng.randrange(3)
        made[at : at + (kind != 2)] = [] if kind == 1 else [rng.choice(made)]
    made = [word.upper() if rng.random() < 0.05 else word.rstrip(",.") if rng.random() < 0.2 else word for word in made]
    return " ".join(made)


def luhn(digits: str) -> str:
    """Return digits followed by their Luhn check digit."""
    for last in string.digits:
        total = 0
        for place, digit in enumerate(reversed(digits + last)):
            value = int(digit) * (1 + place % 2)
            total += value - 9 * (value > 9)
        if total % 10 == 0:
            return digits + last
    raise AssertionError


def personal(rng: random.Random, number: int) -> str:
    """Return an e-mail address, telephone number, card number or key in one of its usual notations."""

    def digits(count: int) -> str:
        return str(rng.randint(1, 9)) + "".join(rng.choice(string.digits) for _ in range(count - 1))

    def letters(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
        return "".join(rng.choice(alphabet) for _ in range(count - 1)) + rng.choice(string.digits)

    name, place = letters(6, string.ascii_lowercase), letters(5, string.ascii_lowercase)
    card = luhn(rng.choice(["4", "51", "55", "2221"]).ljust(4, "7") + digits(11))
    american = f"{rng.randint(2, 9)}{digits(2)}-{rng.randint(2, 9)}{digits(2)}-{digits(4)}"
    forms = {
        0: [
            f"{name}@{place}.example",
            f"{name}.{place}+tag@mail.{place}-post.co.uk",
            f"<{name}_{digits(2)}@{place}.org>",
        ],
        1: [
            f"+{digits(2)} {digits(3)} {digits(3)} {digits(3)}",
            f"({american[:3]}) {american[4:]}",
            american,
            f"0{digits(3)} {digits(3)} {digits(4)}",
            f"call {digits(3)} {digits(4)}",
        ],
        2: [card, " ".join(card[at : at + 4] for at in range(0, 16, 4)), luhn("34" + digits(12))],
        3: [
            f"AKIA{letters(16, string.ascii_uppercase + string.digits)}",
            f"ghp_{letters(36)}",
            f"sk-{letters(32)}",
            f"api_key={letters(24)}",
            f"password: {letters(12)}",
        ],
    }[number % 4]
    return forms[number // 4 % len(forms)]


def insert(words: str, what: str, rng: random.Random) -> str:
    made = words.split(" ")
    made.insert(rng.randrange(len(made)), what)
    return " ".join(made)


class Planted:
    """A training and a test file of records, and the kind of each record, such as `exact` or `leak`."""

    def __init__(self, folder: Path, seed: int) -> None:
        rng = random.Random(seed)
        clean = tales()
        rng.shuffle(clean)
        test, train = clean[:100], clean[100:]
        rows: list[tuple[str, str]] = [("clean", words) for words in train]
        with_data = rng.sample(range(len(rows)), 50)
        self.values = {}
        for number, row in enumerate(with_data):
            value = personal(rng, number)
            rows[row] = ("personal", insert(rows[row][1], value, rng))
            self.values[rows[row][1]] = value
        clean_rows = [words for kind, words in rows if kind == "clean"]
        chosen = rng.sample(clean_rows, 100)
        rows += [("exact", words) for words in chosen[:50]]
        rows += [("near", edited(words, rng)) for words in chosen[50:]]
        leaked = rng.sample(test, 50)
        rows += [("leak", words) for words in leaked[:25]]
        rows += [("near leak", edited(words, rng)) for words in leaked[25:]]
        originals, copies = rows[: len(train)], rows[len(train) :]
        rng.shuffle(copies)
        self.rows = originals + copies
        self.train, self.test = folder / "train.jsonl", folder / "test.jsonl"
        self.train.write_text("".join(json.dumps({"text": words}) + "\n" for _, words in self.rows), encoding="utf-8")
        self.test.write_text("".join(json.dumps({"text": words}) + "\n" for words in test), encoding="utf-8")

    def read(self, **settings: Any) -> tuple[list[text.Part], dict[str, Any]]:
        resolved = TextSettings.resolve({"test": str(self.test), **settings})
        parts, report = text.read_parts([str(self.train)], resolved)
        return [part for part in parts if part.split == "train"], report.to_dict()

    def kinds(self, found: Callable[[text.Part], bool], parts: list[text.Part]) -> dict[str, float]:
        """Return the share of records of each kind for which `found` is true."""
        hits: dict[str, list[bool]] = {}
        for part in parts:
            hits.setdefault(self.rows[part.line - 1][0], []).append(found(part))
        return {kind: sum(values) / len(values) for kind, values in hits.items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_repeats_and_leaks_are_found_and_dropped_on_request(tmp_path: Path, seed: int) -> None:
    planted = Planted(tmp_path, seed)
    kept, report = planted.read()
    assert not any(part.dropped for part in kept), "nothing is dropped by default"
    parts, counted = planted.read(deduplicate="near", drop_overlap="near")
    for name in ("duplicates", "near_duplicates", "overlap", "near_overlap"):
        expected = report[name] | {"dropped": report[name]["documents"]}
        assert report[name]["dropped"] == 0
        assert counted[name] == expected, "the documents that were counted are dropped"
    reasons = {row["reason"]: row["documents"] for row in counted["dropped"]}
    assert report["duplicates"]["documents"] == reasons["duplicate"]
    assert report["overlap"]["documents"] == reasons["also in validation or test"]
    dropped = planted.kinds(lambda part: part.dropped is not None, parts)
    print(f"dropped by kind: {dropped}; {reasons}")
    assert dropped["exact"] >= 0.98
    assert dropped["leak"] >= 0.98
    assert dropped["near"] >= 0.95
    assert dropped["near leak"] >= 0.95
    assert dropped["clean"] <= 0.01
    assert dropped["personal"] <= 0.01


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_personal_data_is_found_and_masked_on_request(tmp_path: Path, seed: int) -> None:
    planted = Planted(tmp_path, seed)
    parts, report = planted.read()
    found = planted.kinds(lambda part: bool(part.personal), parts)
    print(f"found by kind: {found}; {report['personal_data']['counts']}")
    assert found["personal"] >= 0.95
    assert all(found[kind] <= 0.01 for kind in found if kind != "personal")
    assert all(value not in json.dumps(report) for value in planted.values.values()), (
        "the report contains no personal data"
    )
    assert not any("[EMAIL]" in part.text for part in parts), "nothing is masked by default"
    masked, counted = planted.read(mask_personal_data=True)
    assert counted["cleaning"]["masked_personal_data"] == sum(report["personal_data"]["counts"].values())
    left = [
        value
        for part, clean in zip(masked, parts, strict=True)
        if (value := planted.values.get(clean.text)) and value.strip("<>") in part.text
    ]
    assert len(left) <= 0.05 * len(planted.values)
    unchanged = sum(a.text == b.text for a, b in zip(masked, parts, strict=True))
    assert unchanged >= 0.99 * (len(parts) - len(planted.values))


def test_disabled_checks_do_not_run(tmp_path: Path) -> None:
    planted = Planted(tmp_path, 0)
    parts, report = planted.read(screen=False)
    assert not any(part.personal for part in parts)
    assert report["personal_data"] is report["near_duplicates"] is report["near_overlap"] is None
    assert report["duplicates"]["documents"] == 50
