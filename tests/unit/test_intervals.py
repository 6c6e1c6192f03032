"""Simulate coverage: with 5 documents or more, 95% intervals contain the true value in 90% to 98% of texts.

Run this file to print the table of docs/measures.md: `python tests/unit/test_intervals.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from finetale.metrics import Floats, Measurement, change

Draw = Callable[[np.random.Generator, int, Floats], tuple[Floats, Floats]]
TOKEN_NATS, PAIRED_TOKEN_NATS = 2.5, 1.0  # standard deviation of one token's loss, and of its change


@dataclass(frozen=True)
class World:
    """A population of documents.

    Attributes:
        spread: standard deviation of the logarithm of a document's length, whose median is 800 tokens.
        draw: (generator, number, logarithms of length / 800) → loss per token of each document before training, and
            its change, without the noise of the tokens.
    """

    spread: float
    draw: Draw


def normal(rng: np.random.Generator, number: int, _: Floats) -> tuple[Floats, Floats]:
    return 3.5 + 0.3 * rng.normal(size=number), -0.4 + 0.15 * rng.normal(size=number)


def tiny_change(rng: np.random.Generator, number: int, _: Floats) -> tuple[Floats, Floats]:
    return 3.5 + 0.3 * rng.normal(size=number), 0.02 * rng.normal(size=number)


def skewed(rng: np.random.Generator, number: int, _: Floats) -> tuple[Floats, Floats]:
    return 3.2 + 0.3 * rng.exponential(size=number), -0.1 - 0.3 * rng.exponential(size=number)


def heavy_tails(rng: np.random.Generator, number: int, _: Floats) -> tuple[Floats, Floats]:
    return 3.5 + 0.25 * rng.standard_t(4, number), -0.4 + 0.12 * rng.standard_t(4, number)


def longer_is_easier(rng: np.random.Generator, number: int, longer: Floats) -> tuple[Floats, Floats]:
    return 3.5 + 0.2 * rng.normal(size=number) - 0.15 * longer, -0.4 + 0.15 * rng.normal(size=number) - 0.1 * longer


def two_kinds(rng: np.random.Generator, number: int, _: Floats) -> tuple[Floats, Floats]:
    """A seventh of the documents is of another kind, such as another language."""
    other = rng.random(number) < 0.15
    return 3.5 + 0.2 * rng.normal(size=number) + 1.5 * other, -0.4 + 0.1 * rng.normal(size=number) + 0.4 * other


WORLDS = {
    "documents of one length": World(0.0, normal),
    "lengths that differ (0.5)": World(0.5, normal),
    "lengths that differ much (1.0)": World(1.0, normal),
    "hardly any change (0.8)": World(0.8, tiny_change),
    "skewed losses (0.8)": World(0.8, skewed),
    "heavy tails (0.8)": World(0.8, heavy_tails),
    "longer documents are easier (0.8)": World(0.8, longer_is_easier),
}
HOSTILE = {
    "lengths of all sizes (1.5)": World(1.5, normal),
    "two kinds of documents (0.8)": World(0.8, two_kinds),
}
"""Worlds in which no tested method has a coverage of 90% to 98% for all numbers of documents."""

FIGURES = ("loss", "bits_per_byte", "change per token", "change per byte")


def texts(world: World, number: int, rng: np.random.Generator) -> tuple[Measurement, Measurement]:
    """Return one held-out text of some documents, measured before and after training."""
    longer = world.spread * rng.normal(size=number)
    tokens = np.maximum(20.0, np.round(800 * np.exp(longer)))
    before, moved = world.draw(rng, number, longer)
    before = np.maximum(0.5, before + TOKEN_NATS * rng.normal(size=number) / np.sqrt(tokens))
    after = np.maximum(0.1, before + moved + PAIRED_TOKEN_NATS * rng.normal(size=number) / np.sqrt(tokens))
    size = 4.2 * tokens * np.exp(0.05 * rng.normal(size=number))
    one, other = (Measurement(loss * tokens, tokens, size / 6, size) for loss in (before, after))
    return one, other


def coverage(world: World, number: int, repeats: int, seed: int) -> dict[str, float]:
    """Return, for each of FIGURES, the share of intervals that contain the value of a text of a million documents."""
    rng = np.random.default_rng(seed)
    before, after = texts(world, 1_000_000, rng)
    truth = {
        "loss": before.loss,
        "bits_per_byte": before.nats.sum() / before.bytes.sum() / math.log(2),
        "change per token": 100 * math.expm1(after.loss - before.loss),
        "change per byte": 100 * (after.nats.sum() / before.nats.sum() / after.bytes.sum() * before.bytes.sum() - 1),
    }
    held = dict.fromkeys(FIGURES, 0)
    for _ in range(repeats):
        before, after = texts(world, number, rng)
        figures = before.summary().interval
        assert figures is not None
        ends = {
            "loss": figures.loss,
            "bits_per_byte": figures.bits_per_byte,
            "change per token": change(before, after, per="token").interval,
            "change per byte": change(before, after, per="byte").interval,
        }
        for name, interval in ends.items():
            assert interval is not None
            low, high = interval
            held[name] += bool(low <= truth[name] <= high)
    return {name: count / repeats for name, count in held.items()}


@pytest.mark.parametrize("number", [5, 12])
@pytest.mark.parametrize(
    "name", ["documents of one length", "lengths that differ (0.5)", "skewed losses (0.8)", "hardly any change (0.8)"]
)
def test_intervals_have_the_promised_coverage(name: str, number: int) -> None:
    found = coverage(WORLDS[name], number, 300, seed=1)
    assert all(0.90 <= share <= 0.98 for share in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("number", [5, 8, 12, 20, 50])
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_have_the_promised_coverage_in_all_worlds(name: str, number: int) -> None:
    found = coverage(WORLDS[name], number, 1500, seed=2)
    assert all(0.90 <= share <= 0.985 for share in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("number", [5, 8, 12, 20, 50])
@pytest.mark.parametrize("name", HOSTILE)
def test_intervals_keep_a_minimum_coverage_in_hostile_worlds(name: str, number: int) -> None:
    found = coverage(HOSTILE[name], number, 1500, seed=3)
    assert all(0.86 <= share <= 0.992 for share in found.values()), found


def test_intervals_treat_documents_as_the_units() -> None:
    """With 5 documents of many similar tokens, the width follows from the spread between documents."""
    rng = np.random.default_rng(0)
    losses = 3 + 0.3 * rng.normal(size=5)
    short, long = (
        Measurement(losses * size, np.full(5, size), np.full(5, size), np.full(5, size))
        .summary()
        .to_dict()["interval"]["loss"]
        for size in (100.0, 1e6)
    )
    assert short == pytest.approx(long)
    assert long[1] - long[0] == pytest.approx(2 * 2.776445 * losses.std(ddof=1) / math.sqrt(5))


if __name__ == "__main__":
    numbers = (5, 8, 12, 20, 50)
    print("| documents | " + " | ".join(map(str, numbers)) + " |")
    print("|:--|" + "--:|" * len(numbers))
    for title, world in (WORLDS | HOSTILE).items():
        cells = []
        for number in numbers:
            found = coverage(world, number, 2000, seed=4)
            cells.append(f"{100 * min(found.values()):.0f} to {100 * max(found.values()):.0f}%")
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
