"""Engines that generate tokens for a service. Jobs join and leave at any time; each step generates one token per job.

batching        the engine: batches and samples jobs on any Rows
pytorch_rows    Rows of a transformers model; slots is their key/value cache
openvino_rows   Rows of a model in OpenVINO's format, for CPUs
selection       selection of the rows for a model, by measurement
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
    """A token with its log-probability in nats, and the most likely tokens as (id, log-probability).

    The probabilities are the model's own, before temperature, penalties and other sampling settings.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, eq=False)
class Job:
    """One sample of one prompt.

    Attributes:
        ids: token ids of the prompt, with beginning-of-text.
        settings: sampling settings; the engine uses those that concern one token.
        bias: values to add to the scores of tokens, by id.
        sample: number of the sample; with the seed and the prompt it selects the random stream.
        top: how many of the most likely tokens to report with each token; None for no log-probabilities.
        reads_prompt: whether to report the prompt's log-probabilities in `prompt`.
        prompt: a Token for each of `ids` but the first, if `reads_prompt`.
        tokens: generated ids.
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
    """Generates tokens for several jobs together. Not thread-safe.

    Attributes:
        name: name of the engine, for people.
        slots: maximum number of jobs.
        threads: number of torch threads to set in the thread that uses it.
    """

    name: str
    slots: int
    threads: int

    def admit(self, groups: Sequence[Sequence[Job]]) -> None:
        """Read prompts, each shared by a group of jobs. All jobs join, or none; they need a free slot each."""

    def step(self) -> list[tuple[Job, Token]]:
        """Generate the next token of each job and append it to the job's `tokens`."""

    def drop(self, job: Job) -> None:
        """Remove a job; do nothing if the engine does not have it."""

    @property
    def active(self) -> int:
        """Number of jobs."""


class Rows(Protocol):
    """A model with its key/value cache: one row per text, numbered from 0.

    Attributes:
        name: name of the engine, for people.
        slots: maximum number of rows.
        threads: number of torch threads to set in the thread that uses it.
    """

    name: str
    slots: int
    threads: int

    def join(self) -> int:
        """Add an empty row at the end; return its number."""

    def copy(self, row: int) -> int:
        """Add a copy of a row at the end; return its number."""

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its number."""

    def read(self, first: int, ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Read more tokens of consecutive rows.

        Args:
            first: number of the first row.
            ids: token ids for each row, at least one each.
            every: return the scores after every token instead of after each row's last token.

        Returns:
            Scores of the next token in fp32, (rows, vocabulary), or (all tokens, vocabulary) with the rows in order.
            The next call may overwrite them.
        """
