"""Engines that generate tokens for a service. Jobs join and leave at any time; each step generates one token per job.

batching        the engine: batches and samples jobs on any Rows
pytorch_rows    Rows of a transformers model; slots is their key/value cache, prefixes keeps beginnings of texts
openvino_rows   Rows of a model in OpenVINO's format, for CPUs; pages is the table of their key/value cache
selection       selection of the rows for a model, by measurement
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from finetale.config import SamplingSettings
from finetale.models.adapter_hooks import LoadedAdapter

NOT_NUMBERS = "The model's scores are not numbers (NaN)."


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its log-probability in nats, and the most likely tokens as (id, log-probability).

    The probabilities are the model's own, before temperature, penalties and other sampling settings.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Constraint(Protocol):
    """The tokens that may come next in the text of a job."""

    def mask(self) -> Tensor:
        """Return which tokens may come next, (vocabulary,), bool."""

    def accept(self, token: int) -> None:
        """Continue with a token."""


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
        constraint: the tokens that the text may have; None for all.
        late: tokens that may not be among the first `min_tokens`.
        min_tokens: see `late`.
        prompt_top: how many of the most likely tokens to report in `prompt`.
        prompt: a Token for each of `ids` but the first, if `reads_prompt`.
        tokens: generated ids.
        adapter: the adapter to generate with; None for the engine's model alone.
    """

    ids: Sequence[int]
    settings: SamplingSettings
    bias: Mapping[int, float] = field(default_factory=dict)
    sample: int = 0
    top: int | None = None
    reads_prompt: bool = False
    constraint: Constraint | None = None
    late: Sequence[int] = ()
    min_tokens: int = 0
    prompt_top: int = 0
    prompt: list[Token] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    adapter: LoadedAdapter | None = None


class Engine(Protocol):
    """Generates tokens for several jobs together. Not thread-safe.

    Attributes:
        name: name of the engine, for people.
        slots: maximum number of jobs.
        threads: number of torch threads to set in the thread that uses it.
        block: number of tokens of a prompt that attention reads together.
        mixes: whether `read` also computes the scores of the running jobs, so that the next step needs no pass.
        rounds: whether it computes with rounded weights instead of the model's own.
        rates: tokens per second of each engine that was compared for the model; empty without a comparison.
    """

    name: str
    slots: int
    threads: int
    block: int
    mixes: bool
    rounds: bool
    rates: Mapping[str, float]

    def admit(self, groups: Sequence[Sequence[Job]]) -> None:
        """Add jobs, in groups that share a prompt. Each job needs a free slot. No prompt is read yet."""

    def read(self, tokens: int) -> list[tuple[Job, Exception | None]]:
        """Read about this many more tokens of the prompts that are not read yet.

        Returns:
            The jobs whose prompt is read now, with None, and those whose prompt failed, with the error. A failed job is
            removed.
        """

    def step(self) -> list[tuple[Job, Token]]:
        """Generate the next token of each job whose prompt is read, and append it to the job's `tokens`."""

    def drop(self, job: Job) -> None:
        """Remove a job; do nothing if the engine does not have it."""

    def rest(self) -> None:
        """Return the memory of keys and values. Only for an engine without jobs."""

    @property
    def num_bytes(self) -> int:
        """Memory that keys and values take now, in bytes."""

    @property
    def active(self) -> int:
        """Number of jobs."""

    @property
    def free(self) -> int:
        """Number of jobs that can be admitted now."""

    @property
    def reading(self) -> int:
        """Number of jobs whose prompt is not read yet."""


class NoRoom(Exception):
    """The memory for keys and values is used up. Nothing has changed; there is room when a row has left."""


class Rows(Protocol):
    """A model with its key/value cache: one row per text, numbered from 0.

    Attributes:
        name: name of the engine, for people.
        slots: maximum number of rows.
        threads: number of torch threads to set in the thread that uses it.
        takes_adapters: whether a row can have an adapter.
        block: number of tokens that attention reads together.
        mixes: whether rows that read different numbers of tokens share a pass, which does all or nothing.
    """

    name: str
    slots: int
    threads: int
    takes_adapters: bool
    block: int
    mixes: bool

    def join(self, ids: Sequence[int] = (), adapter: LoadedAdapter | None = None) -> int:
        """Add a row at the end.

        Args:
            adapter: the adapter to compute the row with. Rows of different adapters never share keys and values. Only
                if `takes_adapters`, and the model has `adapter_hooks`.
            ids: a text. If the cache has the keys and values of its first tokens, the row begins with them. At least
                the last token is left to read.

        Returns:
            How many tokens of `ids` are read already.
        """

    def copy(self, row: int) -> int:
        """Add a copy of a row at the end; return its number.

        Raises:
            NoRoom: the copy needs more memory than there is.
        """

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its number."""

    def read(self, rows: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Read more tokens of some rows.

        Args:
            rows: numbers of the rows, each once.
            ids: token ids for each of them, at least one each.
            every: return the scores after every token instead of after each row's last token.

        Returns:
            Scores of the next token in fp32, (rows, vocabulary), or (all tokens, vocabulary) with the rows in order.
            The next call may overwrite them.

        Raises:
            NoRoom: the tokens need more memory than there is.
        """

    def rest(self) -> None:
        """Return the memory of keys and values. Only without rows."""

    @property
    def num_bytes(self) -> int:
        """Memory that keys and values take now, in bytes."""
