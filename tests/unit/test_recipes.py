"""Test the recipe of the bundled base: valid settings and correct baselines."""

from __future__ import annotations

import gzip
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetale import models
from finetale.config import Config, read_settings_file

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def baselines() -> dict[str, Any]:
    return runpy.run_path(str(RECIPES / "baselines.py"))


def test_the_recipe_gives_the_shape_of_the_bundled_model() -> None:
    config = Config.resolve(read_settings_file(RECIPES / "bundled-base.yaml"))
    width, layers, heads, positions = models.shape_of(config.model)
    bundled = models.locate("bundled").config
    assert (width, layers, heads, positions) == tuple(
        bundled[f"n_{key}"] for key in ("embd", "layer", "head", "positions")
    )
    assert config.vocab_size == bundled["vocab_size"]


def test_probabilities_of_an_ngram_model_sum_to_one(baselines: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    model = baselines["KneserNey"](rng.integers(0, 12, 4000), 12, 4)
    for context in ([], [3], rng.integers(0, 12, 10).tolist(), [0, 11, 0, 11, 3, 3, 3, 3]):
        odds = [math.exp(-model.losses(np.array([1, *context, token]))[-1]) for token in range(12)]
        assert sum(odds) == pytest.approx(1, abs=1e-9)
        assert min(odds) > 0


def test_an_ngram_model_learns_successors(baselines: dict[str, Any]) -> None:
    stream = np.array([0, *([1, 2, 3, 4, 5] * 200)])
    model = baselines["KneserNey"](stream, 6, 5)
    assert model.losses(np.array([0, 1, 2, 3, 4, 5, 1, 2, 3]))[4:].max() < 0.05
    uniform = baselines["KneserNey"](np.random.default_rng(1).integers(0, 6, 50_000), 6, 1)
    np.testing.assert_allclose(uniform.losses(np.arange(6)), math.log(6), atol=0.05)


def test_compressors_count_bits_per_byte(baselines: dict[str, Any]) -> None:
    texts = ["A heron stood in the shallows. " * 40, "Nobody came."]
    data = "\n\n".join(texts).encode()
    found = baselines["compressors"](texts)
    assert found["gzip -9"] == pytest.approx(8 * len(gzip.compress(data, 9)) / len(data), abs=1e-4)
    assert set(found) == {"gzip -9", "xz -9e", "zstd -19"}
