"""Continuous batching: jobs join and leave between steps. Sampling is that of `finetale generate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetale.config import SamplingSettings
from finetale.errors import GenerationError
from finetale.generate.sampler import Sampler, Stream, random_stream
from finetale.server.engines import NOT_NUMBERS, Job, NoRoom, Rows, Token

CHUNK = 256
"""Maximum tokens of one prompt per pass."""
_TOKENS = 1024
"""Tokens of all prompts per pass where nothing else waits."""


@dataclass(slots=True, eq=False)
class _Seat:
    """A job in the engine. Its text is the prompt and the tokens that were generated.

    Attributes:
        job: the job.
        number: number of its admission.
        group: jobs with the same prompt, which is read once.
        stream: its random numbers; None for the most likely tokens.
        kind: jobs of an equal kind are sampled together.
        num_read: number of tokens of the text in its row.
        logits: scores of the next token, (vocabulary,); None if the text is not read to its end.
    """

    job: Job
    number: int
    group: object
    stream: torch.Generator | None
    kind: tuple[object, ...]
    num_read: int = 0
    logits: Tensor | None = None

    @property
    def num_unread(self) -> int:
        """Number of tokens of the text that are not in the row."""
        return len(self.job.ids) + len(self.job.tokens) - self.num_read

    @property
    def is_ready(self) -> bool:
        """Whether the next step can generate a token: all of the text is read, or all but its newest token."""
        return self.logits is not None or (self.num_unread == 1 and bool(self.job.tokens))

    @property
    def reports(self) -> bool:
        """Whether the pass over the prompt must give the scores of each token."""
        return self.job.reads_prompt and not self.job.tokens

    def unread(self, most: int) -> list[int]:
        """Return the next unread tokens, at most `most`."""
        start, stop, prompt = self.num_read, self.num_read + most, len(self.job.ids)
        return [*self.job.ids[start:stop], *self.job.tokens[max(0, start - prompt) : max(0, stop - prompt)]]


class BatchingEngine:
    """Runs a model on texts of different lengths together.

    Prompts are read in chunks between the steps. If the memory for keys and values is used up, the newest job gives its
    row back. Its text is read again when another job has ended.

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
        self.block = rows.block
        self.mixes = rows.mixes
        self.rounds = False
        self.rates: Mapping[str, float] = {}
        self._vocab_size = vocab_size
        self._holes = list(holes)
        self._seats: list[_Seat] = []  # by row
        self._rowless: list[_Seat] = []
        self._num_admitted = 0
        self._is_full = False  # a job gave its row back, and none has ended since

    @property
    def num_bytes(self) -> int:
        """Memory that keys and values take now, in bytes."""
        return self.rows.num_bytes

    @property
    def active(self) -> int:
        """Number of jobs."""
        return len(self._seats) + len(self._rowless)

    @property
    def free(self) -> int:
        """Number of jobs that can be admitted now."""
        return 0 if self._is_full else self.slots - self.active

    @property
    def reading(self) -> int:
        """Number of jobs whose prompt is not read yet."""
        return len(self._rowless) + sum(not seat.is_ready for seat in self._seats)

    def admit(self, groups: Sequence[Sequence[Job]]) -> None:
        """Add jobs, in groups that share a prompt. No prompt is read yet."""
        assert sum(map(len, groups)) <= self.slots - self.active, "no slot is free"
        for group in groups:
            assert all(job.ids == group[0].ids and job.adapter is group[0].adapter for job in group)
            for job in group:
                greedy = job.settings.temperature == 0
                settings = job.settings.model_copy(update={"seed": 0, "max_new_tokens": 1, "stop": ()})
                self._rowless.append(
                    _Seat(
                        job,
                        self._num_admitted,
                        group,
                        None if greedy else random_stream(job.settings.seed, job.sample, job.ids),
                        (settings.model_dump_json(), tuple(sorted(job.bias.items()))),
                    )
                )
                self._num_admitted += 1

    def start(self, groups: Sequence[Sequence[Job]]) -> None:
        """Add jobs and read their prompts.

        Raises:
            Exception: a prompt cannot be read. None of the jobs is added.
        """
        self.admit(groups)
        while self.reading:
            for _, error in self.read(_TOKENS):
                if error is not None:
                    for job in (job for group in groups for job in group):
                        self.drop(job)
                    raise error

    def read(self, tokens: int) -> list[tuple[Job, Exception | None]]:
        """Read about this many more tokens of prompts; see Engine."""
        self._seat_more()
        behind = self._behind() if self.mixes else []
        shares = self._shares(min(max(1, tokens - len(behind)), _TOKENS))
        if shares and shares[0][0].reports:
            behind = []
        try:
            return self._read_chunks(shares, behind)
        except Exception as error:
            if len(shares) == 1 and not behind:
                return [self._failed(shares[0][0], error)]
        # Read each alone to find the prompt that fails.
        found: list[tuple[Job, Exception | None]] = []
        for seat, most in shares:
            if seat not in self._seats:  # it gave its row back
                continue
            try:
                found += self._read_chunks([(seat, most)])
            except Exception as error:
                found.append(self._failed(seat, error))
        return found

    def step(self) -> list[tuple[Job, Token]]:
        """Generate the next token of each job whose prompt is read."""
        if behind := self._behind():
            scores = self._read(behind, [seat.unread(1) for seat in behind])
            if scores is None:  # a job gave its row back
                return self.step()
            for seat, row in zip(behind, scores, strict=True):
                seat.logits = row
                seat.num_read += 1
        ready = [(seat, seat.logits) for seat in self._seats if seat.logits is not None]
        if not ready:
            return []
        seats = [seat for seat, _ in ready]
        logits = torch.stack([logits for _, logits in ready])
        chosen = self._choose(seats, logits)
        tokens = self._with_logprobs(logits, chosen, [seat.job.top for seat in seats])
        for seat, token in zip(seats, tokens, strict=True):
            seat.job.tokens.append(token.id)
            seat.logits = None
            if seat.job.constraint is not None:
                seat.job.constraint.accept(token.id)
        return [(seat.job, token) for seat, token in zip(seats, tokens, strict=True)]

    def drop(self, job: Job) -> None:
        """Remove a job."""
        self._rowless = [seat for seat in self._rowless if seat.job is not job]
        for seat in self._seats:
            if seat.job is job:
                self._give_back(seat)
                self._is_full = False
                return

    def rest(self) -> None:
        """Return the memory of keys and values."""
        self.rows.rest()

    def _seat_more(self) -> None:
        """Give rows to jobs without one: one job of each group. The others get a copy of its row."""
        if self._is_full and self._seats:
            return
        self._is_full = False
        groups = {id(seat.group) for seat in self._seats if not seat.is_ready}
        for seat in list(self._rowless):
            if id(seat.group) not in groups or seat.job.tokens:
                groups.add(id(seat.group))
                self._rowless.remove(seat)
                if seat.reports:
                    seat.job.prompt = []
                known = [] if seat.reports else [*seat.job.ids, *seat.job.tokens]
                seat.num_read = self.rows.join(known, seat.job.adapter)
                self._seats.append(seat)

    def _give_back(self, seat: _Seat) -> None:
        row = self._seats.index(seat)
        self.rows.leave(row)
        last = self._seats.pop()
        if row < len(self._seats):
            self._seats[row] = last

    def _failed(self, seat: _Seat, error: Exception) -> tuple[Job, Exception]:
        self.drop(seat.job)
        return seat.job, error

    def _shares(self, tokens: int) -> list[tuple[_Seat, int]]:
        """Return which texts to read in the next pass, with the maximum number of tokens of each.

        The oldest gets half of the tokens or more, so that it makes progress. Of the others the shortest come first, so
        that they do not wait for a long one.
        """
        waiting = [seat for seat in self._seats if not seat.is_ready]
        if not waiting:
            return []
        oldest = min(waiting, key=lambda seat: seat.number)
        if oldest.reports:
            return [(oldest, CHUNK)]
        others = [seat for seat in waiting if seat is not oldest and not seat.reports]
        shares, left = [], tokens
        for seat in (oldest, *sorted(others, key=lambda seat: seat.num_unread)):
            limit = left if seat is not oldest or not others else -(-left // 2)
            shares.append((seat, min(seat.num_unread, CHUNK, limit)))
            left -= shares[-1][1]
            if left <= 0:
                break
        return shares

    def _behind(self) -> list[_Seat]:
        """Return the jobs whose newest token must be read before the next step."""
        return [seat for seat in self._seats if seat.logits is None and seat.is_ready]

    def _read_chunks(
        self, shares: Sequence[tuple[_Seat, int]], behind: Sequence[_Seat] = ()
    ) -> list[tuple[Job, Exception | None]]:
        """Read the next tokens of some texts; return the jobs whose text is read now.

        Args:
            behind: running jobs whose newest token is read in the same pass.
        """
        if not shares:
            return []
        seats = [seat for seat, _ in shares]
        chunks = [seat.unread(most) for seat, most in shares]
        newest = [seat.unread(1) for seat in behind]
        scores = self._read([*behind, *seats], [*newest, *chunks], every=seats[0].reports)
        if scores is None:  # a job gave its row back
            return []
        scores = scores.clone()
        for seat, logits in zip(behind, scores, strict=False):
            seat.logits = logits
            seat.num_read += 1
        scores = scores[len(behind) :]
        for seat, chunk in zip(seats, chunks, strict=True):
            seat.num_read += len(chunk)
        if seats[0].reports:
            self._report(seats[0], scores)
            scores = scores[-1:]
        done: list[tuple[Job, Exception | None]] = []
        for seat, logits in zip(seats, scores, strict=True):
            if seat.num_unread == 0:
                seat.logits = logits
                done.append((seat.job, None))
                done += [(other.job, None) for other in self._copies(seat)]
        return done

    def _copies(self, read: _Seat) -> list[_Seat]:
        """Give copies of a row to the other jobs of its group; return those that got one."""
        if read.job.tokens:
            return []
        made = []
        for seat in [seat for seat in self._rowless if seat.group is read.group and not seat.job.tokens]:
            try:
                self.rows.copy(self._seats.index(read))
            except (NoRoom, MemoryError, RuntimeError):  # it is read separately later
                break
            self._rowless.remove(seat)
            self._seats.append(seat)
            seat.num_read, seat.logits = read.num_read, read.logits
            made.append(seat)
        return made

    def _report(self, seat: _Seat, scores: Tensor) -> None:
        """Append the prompt's tokens that follow these scores, (tokens, vocabulary), to the job's `prompt`."""
        if scores.isnan().any():
            raise GenerationError(NOT_NUMBERS, "")
        job, start = seat.job, seat.num_read - len(scores) + 1
        following = torch.tensor(job.ids[start : start + len(scores)], dtype=torch.int64)
        job.prompt += self._with_logprobs(scores[: len(following)], following, [job.prompt_top] * len(following))

    def _read(self, seats: Sequence[_Seat], ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor | None:
        """Return the scores; None if there was no memory, and the newest job gave its row back."""
        rows = [self._seats.index(seat) for seat in seats]
        assert all(ids), "nothing to read"
        try:
            with torch.inference_mode():
                return self.rows.read(rows, ids, every=every)[..., : self._vocab_size]
        except NoRoom:
            if len(self._seats) == 1:
                raise
        newest = max(self._seats, key=lambda seat: seat.number)
        self._give_back(newest)
        newest.num_read, newest.logits = 0, None
        self._rowless.append(newest)
        self._is_full = True
        return None

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
            self.start([[job] for job in jobs])
            for _ in range(3):
                self.step()
            scores = self._read(self._seats, [seat.unread(1) for seat in self._seats])
            assert scores is not None
            for job, logits in zip((seat.job for seat in self._seats), scores, strict=True):
                alone = reference(torch.tensor([[*job.ids, *job.tokens]]))[0, -1, : self._vocab_size].to(logits)
                far = float((alone - logits).abs().max() / alone.abs().max().clamp(min=1))
                worst = max(worst, far if far == far else float("inf"))
        finally:
            for job in jobs:
                self.drop(job)
        return worst

    def _choose(self, seats: Sequence[_Seat], logits: Tensor) -> Tensor:
        """Sample one token per seat. Seats of an equal kind are sampled together."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for place, seat in enumerate(seats):
            groups.setdefault(seat.kind, []).append(place)
        chosen = torch.empty(len(logits), dtype=torch.int64)
        for places in groups.values():
            jobs = [seats[place].job for place in places]
            streams: dict[Stream, torch.Generator] = {
                (place,): stream for place in places if (stream := seats[place].stream) is not None
            }
            sampler = Sampler(jobs[0].settings, self._vocab_size, self._holes, streams, jobs[0].bias)
            history = [[*job.ids, *job.tokens] for job in jobs] if sampler.history else [[0]] * len(jobs)
            width = max(map(len, history))
            starts = [width - len(ids) for ids in history]
            padded = torch.tensor([[0] * start + ids for start, ids in zip(starts, history, strict=True)])
            found = sampler.choose(
                logits if len(groups) == 1 else logits[places],
                padded.to(logits.device),
                starts,
                [(place,) for place in places],
                [job.tokens for job in jobs],
                self._allowed(jobs),
            )
            chosen[places] = found.cpu()
        return chosen

    def _allowed(self, jobs: Sequence[Job]) -> Tensor | None:
        """Return which tokens the jobs may choose, (jobs, vocabulary); None if all jobs may choose all."""
        waiting = [len(job.tokens) < job.min_tokens for job in jobs]
        if not any(waiting) and all(job.constraint is None for job in jobs):
            return None
        allowed = torch.ones(len(jobs), self._vocab_size, dtype=torch.bool)
        for row, job, waits in zip(allowed, jobs, waiting, strict=True):
            if job.constraint is not None:
                row.copy_(job.constraint.mask())
            if waits:
                row[list(job.late)] = False
        return allowed

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
