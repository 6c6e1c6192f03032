"""Continuous batching: jobs join and leave between steps. Sampling is that of `finetale generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from finetale.config import SamplingSettings
from finetale.errors import GenerationError
from finetale.generate.sampler import Sampler, Stream, random_stream
from finetale.server.engines import NOT_NUMBERS, Job, Rows, Token

T = TypeVar("T")
_CHUNK = 256
"""Maximum tokens of a long prompt per pass."""
_TOKENS = 1024
"""Maximum tokens of short prompts per pass."""


class BatchingEngine:
    """Runs a model on texts of different lengths together.

    Args:
        rows: the model with its cache.
        vocab_size: size of the vocabulary; the model's ids from here on are padding.
        holes: ids below `vocab_size` without a token.
    """

    def __init__(self, rows: Rows, *, vocab_size: int, holes: Sequence[int]) -> None:
        self.rows = rows
        self.name = rows.name
        self.slots = rows.slots
        self.threads = rows.threads
        self._vocab_size = vocab_size
        self._holes = list(holes)
        self._jobs: list[Job] = []  # by row
        self._streams: list[torch.Generator | None] = []
        self._kinds: list[tuple[object, ...]] = []  # jobs with equal sampling settings are sampled together
        self._logits: list[Tensor | None] = []  # after the last token; None if that token is not read yet

    @property
    def active(self) -> int:
        """Number of jobs."""
        return len(self._jobs)

    def admit(self, groups: Sequence[Sequence[Job]]) -> None:
        """Read prompts, each shared by a group of jobs. All join, or none."""
        firsts = [group[0] for group in groups]
        assert all(job.ids == first.ids for group, first in zip(groups, firsts, strict=True) for job in group)
        begin = self.active
        joined: list[int] = []
        copies: list[tuple[Job, Job, Tensor]] = []
        try:
            joined += [self.rows.join() for _ in firsts]
            scores = self._read_prompts(begin, firsts)
            for row, (group, logits) in enumerate(zip(groups, scores, strict=True), start=begin):
                for job in group[1:]:
                    joined.append(self.rows.copy(row))
                    copies.append((job, group[0], logits))
        except BaseException:
            for row in reversed(joined):
                self.rows.leave(row)
            raise
        for job, logits in zip(firsts, scores, strict=True):
            self._add(job, logits)
        for job, first, logits in copies:
            job.prompt = list(first.prompt)
            self._add(job, logits)

    def _add(self, job: Job, logits: Tensor) -> None:
        greedy = job.settings.temperature == 0
        self._streams.append(None if greedy else random_stream(job.settings.seed, job.sample, job.ids))
        settings = job.settings.model_copy(update={"seed": 0, "max_new_tokens": 1, "stop": ()})
        self._kinds.append((settings.model_dump_json(), tuple(sorted(job.bias.items()))))
        self._jobs.append(job)
        self._logits.append(logits)

    def step(self) -> list[tuple[Job, Token]]:
        """Generate the next token of each job."""
        logits = self._next_scores()
        chosen = self._choose(logits)
        tokens = self._with_logprobs(logits, chosen, [job.top for job in self._jobs])
        for row, (job, token) in enumerate(zip(self._jobs, tokens, strict=True)):
            job.tokens.append(token.id)
            self._logits[row] = None
        return list(zip(self._jobs, tokens, strict=True))

    def _next_scores(self) -> Tensor:
        """Return the scores of each job's next token, (jobs, vocabulary)."""
        unread = [row for row, logits in enumerate(self._logits) if logits is None]
        last = [[self._jobs[row].tokens[-1]] for row in unread]
        if len(unread) == len(self._jobs):
            return self._read(0, last)
        # New rows have their scores already. They come last unless an earlier row was removed.
        breaks = [at for at in range(1, len(unread)) if unread[at] != unread[at - 1] + 1]
        for start, stop in pairwise([0, *breaks, len(unread)] if unread else []):
            scores = self._read(unread[start], last[start:stop]).clone()
            self._logits[unread[start] : unread[stop - 1] + 1] = list(scores)
        return torch.stack([logits for logits in self._logits if logits is not None])

    def drop(self, job: Job) -> None:
        """Remove a job."""
        if job not in self._jobs:
            return
        row = self._jobs.index(job)
        self.rows.leave(row)
        _replace_by_last(self._jobs, row)
        _replace_by_last(self._streams, row)
        _replace_by_last(self._kinds, row)
        _replace_by_last(self._logits, row)

    def _read_prompts(self, first: int, jobs: Sequence[Job]) -> list[Tensor]:
        """Return the logits after each prompt, (vocabulary,) each; row numbers start at `first`."""
        scores: list[Tensor] = []
        together: list[Sequence[int]] = []

        def read_together() -> None:
            if together:
                scores.extend(self._read(first + len(scores), together).clone())
                together.clear()

        for job in jobs:
            alone = job.reads_prompt or len(job.ids) > _CHUNK
            if alone or sum(map(len, together)) + len(job.ids) > _TOKENS:
                read_together()
            if alone:
                scores.append(self._read_prompt(first + len(scores), job))
            else:
                together.append(job.ids)
        read_together()
        return scores

    def _read_prompt(self, row: int, job: Job) -> Tensor:
        """Return the logits after a job's prompt, (vocabulary,); fill `job.prompt` if the job wants it."""
        logits = None
        job.prompt = []
        for start in range(0, len(job.ids), _CHUNK):
            chunk = list(job.ids[start : start + _CHUNK])
            if not job.reads_prompt:
                logits = self._read(row, [chunk])[0]
                continue
            whole = self._read(row, [chunk], every=True)
            if whole.isnan().any():
                raise GenerationError(NOT_NUMBERS, "")
            following = torch.tensor(job.ids[start + 1 : start + 1 + len(whole)], dtype=torch.int64)
            job.prompt += self._with_logprobs(whole[: len(following)], following, [job.top or 0] * len(following))
            logits = whole[-1]
        assert logits is not None
        return logits.clone()

    def _read(self, first: int, ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        with torch.inference_mode():
            return self.rows.read(first, ids, every=every)[..., : self._vocab_size]

    def deviation(self, reference: Callable[[Tensor], Tensor], longest: int = 40) -> float:
        """Compare the scores of texts read together with the scores of each text read alone.

        Args:
            reference: function from ids, (1, tokens), to the scores after every token, (1, tokens, vocabulary).
            longest: tokens of the longest text; more than one block of a cache.

        Returns:
            The largest difference as a share of the largest score; infinite if a score is NaN.
        """
        jobs = [
            Job(
                [token % self._vocab_size for token in range(2, 2 + length)],
                SamplingSettings.resolve({"temperature": 0}),
            )
            for length in (longest - 4, 5)[: self.slots]
        ]
        worst = 0.0
        try:
            self.admit([[job] for job in jobs])
            for _ in range(3):
                self.step()
            for job, logits in zip(self._jobs, self._read(0, [job.tokens[-1:] for job in self._jobs]), strict=True):
                alone = reference(torch.tensor([[*job.ids, *job.tokens]]))[0, -1, : self._vocab_size].to(logits)
                far = float((alone - logits).abs().max() / alone.abs().max().clamp(min=1))
                worst = max(worst, far if far == far else float("inf"))
        finally:
            for job in jobs:
                self.drop(job)
        return worst

    def _choose(self, logits: Tensor) -> Tensor:
        """Sample one token per row. Rows with equal settings are sampled together."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for row, kind in enumerate(self._kinds):
            groups.setdefault(kind, []).append(row)
        chosen = torch.empty(len(logits), dtype=torch.int64)
        for rows in groups.values():
            jobs = [self._jobs[row] for row in rows]
            streams: dict[Stream, torch.Generator] = {
                (row,): stream for row in rows if (stream := self._streams[row]) is not None
            }
            sampler = Sampler(jobs[0].settings, self._vocab_size, self._holes, streams, jobs[0].bias)
            history = [[*job.ids, *job.tokens] for job in jobs] if sampler.history else [[0]] * len(jobs)
            width = max(map(len, history))
            starts = [width - len(ids) for ids in history]
            padded = torch.tensor([[0] * start + ids for start, ids in zip(starts, history, strict=True)])
            found = sampler.choose(
                logits if len(groups) == 1 else logits[rows],
                padded.to(logits.device),
                starts,
                [(row,) for row in rows],
                [job.tokens for job in jobs],
            )
            chosen[rows] = found.cpu()
        return chosen

    def _with_logprobs(self, logits: Tensor, chosen: Tensor, tops: Sequence[int | None]) -> list[Token]:
        """Return Tokens, with log-probabilities if `tops` says so; logits (rows, vocabulary), chosen (rows,)."""
        found = [Token(int(token)) for token in chosen]
        rows = [row for row, top in enumerate(tops) if top is not None and found[row].id >= 0]
        if not rows:
            return found
        logprobs = logits[rows].log_softmax(-1)
        most = max(top or 0 for top in tops)
        values, ids = logprobs.topk(min(most, logprobs.shape[1])) if most else (logprobs[:, :0], logprobs[:, :0])
        for place, row in enumerate(rows):
            top = tops[row] or 0
            pairs = zip(ids[place, :top].long().tolist(), values[place, :top].tolist(), strict=True)
            found[row] = Token(found[row].id, float(logprobs[place, found[row].id]), tuple(pairs))
        return found


def _replace_by_last(table: list[T], row: int) -> None:
    last = table.pop()
    if row < len(table):
        table[row] = last
