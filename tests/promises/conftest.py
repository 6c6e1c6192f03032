"""Provide a folder with text, a base model and an uninterrupted run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from children import call
from scene import Place, command_of, digest_of
from tiny import save_model, write_stories


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """Return the place of a method; its run is made once per session."""

    @cache
    def made(method: str) -> Place:
        folder = tmp_path_factory.mktemp("promises")
        write_stories(folder / "stories", 30, words=60)
        save_model(folder / "base", dropout=0.1)
        code, output = call(folder, *command_of(method), "--out", "whole")
        assert code == 0, output
        return Place(folder, digest_of(folder / "whole"), method)

    return made


@pytest.fixture
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    """Return the place of all weights, or of the method that the test is parametrised with."""
    return places(getattr(request, "param", "full"))
