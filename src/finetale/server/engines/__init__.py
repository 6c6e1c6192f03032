"""What computes tokens for a service: sequences come in at any time, each step gives each of them a token.

batching    jobs and sampling, on any Rows: the one engine
pytorch     Rows of a transformers model; slots is their cache
openvino    Rows of a model converted for CPUs with int8 weights; conversion makes it
choice      which of them serves a model, by measurement
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from finetale.config import SamplingSettings

NOT_NUMBERS = "The model's scores are not numbers (NaN)."


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its log-probability in nats, and those of the likeliest ones as (id, log-probability).

    The probabilities are the model's own, before temperature, penalties and what else the sampling does.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, eq=False)
class Job:
    """One sample of one prompt.

    Attributes:
        ids: the prompt, with beginning-of-text before it.
        settings: how to sample; the engine looks at what concerns one token.
        bias: added to the scores of some tokens.
        sample: number of the sample, which with the seed and the prompt names its random stream.
        top: how many of the likeliest tokens are told with each token; None for no log-probabilities.
        reads_prompt: whether the prompt's own log-probabilities are wanted, in `prompt`.
        prompt: a Token for each of ids but the first, if they are wanted.
        tokens: ids that were generated.
    """

    ids: Sequence[int]
    settings: SamplingSettings
    bias: Mapping[int, float] = field(default_factory=dict)
    sample: int = 0
    top: int | None = None
    reads_prompt: bool = False
    prompt: list[Token] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class Engine(Protocol):
    """Computes tokens of several jobs at a time. Not for use by more than one thread.

    Attributes:
        threads: torch's threads in the thread that uses it.
    """

    name: str
    slots: int
    threads: int

    def admit(self, groups: Sequence[Sequence[Job]]) -> None:
        """Read prompts, each shared by a group of jobs; at most as many jobs as slots are free. All are let in, or none."""

    def step(self) -> list[tuple[Job, Token]]:
        """The next token of each job; the job's `tokens` has it then."""

    def drop(self, job: Job) -> None:
        """Forget a job that is finished or not wanted any more; one that is not known is passed over."""

    @property
    def active(self) -> int:
        """Jobs that are being worked on."""


class Rows(Protocol):
    """A model, and keys and values of the texts that it is reading: a row each, numbered from 0.

    Attributes:
        name: of the engine, for people.
        slots: rows at most.
        threads: torch's threads beside it.
    """

    name: str
    slots: int
    threads: int

    def join(self) -> int:
        """Begin a row, which is the last one then."""

    def copy(self, row: int) -> int:
        """Begin a row with the content of another, which is the last one then."""

    def leave(self, row: int) -> None:
        """Forget a row; the last one takes its number."""

    def read(self, first: int, ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Read more tokens of some rows that follow each other.

        Args:
            first: the first of the rows.
            ids: of each row, at least one.
            every: whether the scores after every token are wanted, or after each row's last alone.

        Returns:
            Scores of the token after, fp32, (rows, or tokens of one row after the other, vocabulary). The next call may
            write over them.
        """
