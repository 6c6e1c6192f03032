"""How many tokens of prompts to read between two steps, from measured times. Knows no engine and no requests.

A stream waits while parts of other requests' prompts are read between its tokens. Reading takes at most twice the time
of a step, as far as the smallest part allows: with a long text before it, even that can take longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_RATIO = 2.0
"""Largest time of reading between two steps, relative to the time of a step."""
_ALONE = 256
"""Tokens to read at a time while no stream waits. A client that leaves frees its slot after these."""
_LEAST = 8
_WEIGHT = 0.3
"""Weight of the newest measurement in the averages."""


class Pace:
    """Measures steps and reading.

    Args:
        clock: returns the time in seconds.
        block: number of tokens that take as long as one less.
        mixes: whether running streams take part in a pass that reads prompts, so that it includes a step.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, *, block: int = 1, mixes: bool = False) -> None:
        self._clock = clock
        self._least = max(_LEAST, block)
        self._block = block
        self._mixes = mixes
        self._is_mixed = False  # the last pass
        self._step_seconds: float | None = None
        self._token_seconds: float | None = None  # of one token of a prompt

    def tokens(self, running: bool) -> int:
        """Return how many tokens of prompts to read now.

        Args:
            running: whether streams wait for it.
        """
        if not running:
            return _ALONE
        if self._step_seconds is None or self._token_seconds is None:
            return self._least
        found = int(_RATIO * self._step_seconds / max(self._token_seconds, 1e-9))
        return max(self._least, min(_ALONE, found // self._block * self._block))

    @contextmanager
    def reading(self, running: bool) -> Iterator[int]:
        """Measure the reading of prompts; give the number of tokens to read."""
        tokens = self.tokens(running)
        started = self._clock()
        yield tokens
        seconds = self._clock() - started
        self._is_mixed = self._mixes and running
        if self._is_mixed:
            seconds -= self._step_seconds or 0.0
        self._token_seconds = _averaged(self._token_seconds, max(0.0, seconds) / tokens)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Measure a step. One after a mixed pass does not count."""
        started = self._clock()
        yield
        if not self._is_mixed:
            self._step_seconds = _averaged(self._step_seconds, self._clock() - started)
        self._is_mixed = False


def _averaged(before: float | None, new: float) -> float:
    return new if before is None else (1 - _WEIGHT) * before + _WEIGHT * new
