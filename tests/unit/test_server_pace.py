"""Reading prompts lets running streams wait for at most twice the time of a step."""

from __future__ import annotations

from finetale.server.pace import Pace


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_part_of_a_prompt_takes_as_long_as_two_steps() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.tokens(running=False) == 256
    with pace.reading(running=False) as tokens:
        clock.now += 0.001 * tokens
    with pace.stepping():
        clock.now += 0.03
    assert pace.tokens(running=True) == 60
    assert pace.tokens(running=False) == 256, "no stream waits"
    for _ in range(30):  # a long text costs more per token
        with pace.reading(running=True) as tokens:
            clock.now += 0.003 * tokens
    assert pace.tokens(running=True) == 20


def test_little_is_read_before_anything_is_measured() -> None:
    pace = Pace(Clock())
    assert pace.tokens(running=True) <= 16


def test_a_mixed_pass_takes_at_most_three_steps() -> None:
    clock = Clock()
    pace = Pace(clock, block=32, mixes=True)
    with pace.stepping():
        clock.now += 0.03
    for _ in range(30):
        with pace.reading(running=True) as tokens:
            clock.now += 0.03 + 0.0005 * tokens
        with pace.stepping():  # samples only, because the pass was mixed
            clock.now += 0.001
        assert tokens % 32 == 0
    assert tokens == 96, "two steps of 0.03 s hold 120 tokens"
    for _ in range(30):
        with pace.reading(running=True) as tokens:
            clock.now += 0.03 + 0.005 * tokens
        with pace.stepping():
            clock.now += 0.001
    assert tokens == 32
