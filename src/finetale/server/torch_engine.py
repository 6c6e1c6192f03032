"""PyTorch, with continuous batching: the reference for every other engine. The same numbers as `finetale generate`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetale.config import SamplingSettings
from finetale.errors import ModelError
from finetale.generate.sampler import Sampler, Stream, random_stream
from finetale.server.engine import Job, Token
from finetale.server.slots import SlotCache

T = TypeVar("T")
_TOLERANCE = 0.02
"""Largest difference of logits, as a share of the largest, between rows together and alone: bf16 has 1%."""
_CHUNK = 256
"""Tokens of a prompt that are read in one pass."""


class TorchEngine:
    """Runs a transformers model on rows of different lengths together.

    Args:
        model: any causal language model that takes position_ids, a mask of its own shape and a cache.
        vocab_size: ids from here on are padding of the vocabulary.
        holes: ids below it that are no token.
        context: tokens of a row at most.
        slots: jobs at a time.
    """

    name = "torch"

    def __init__(
        self, model: PreTrainedModel, *, vocab_size: int, holes: Sequence[int], context: int, slots: int = 16
    ) -> None:
        self.model = model.eval()
        self.slots = slots
        self._vocab_size = vocab_size
        self._holes = list(holes)
        self._cache = SlotCache(slots, context)
        self._jobs: list[Job] = []  # by row
        self._streams: list[torch.Generator | None] = []
        # Eager attention adds its mask to the scores; the others take what is seen as such.
        self._adds_mask = getattr(model.config.get_text_config(), "_attn_implementation", "") == "eager"
        self._logits: list[Tensor | None] = []  # after the last token that was read; None where one is unread

    @property
    def active(self) -> int:
        """Jobs that are being worked on."""
        return len(self._jobs)

    def admit(self, jobs: Sequence[Job]) -> None:
        """Read the prompt that some jobs share."""
        first = jobs[0]
        assert all(job.ids == first.ids for job in jobs)
        row = self._cache.join()
        try:
            logits = self._read_prompt(row, first)
        except BaseException:
            self._cache.leave(row)
            raise
        for number, job in enumerate(jobs):
            if number:
                self._cache.copy_last()
                job.prompt = list(first.prompt)
            greedy = job.settings.temperature == 0
            self._streams.append(None if greedy else random_stream(job.settings.seed, job.sample, job.ids))
            self._jobs.append(job)
            self._logits.append(logits)

    def step(self) -> list[tuple[Job, Token]]:
        """The next token of each job."""
        unread = [row for row, logits in enumerate(self._logits) if logits is None]
        if unread:
            # Rows that have just joined have their logits already, and come last unless one before them left.
            breaks = [0, *(at for at in range(1, len(unread)) if unread[at] != unread[at - 1] + 1), len(unread)]
            for start, stop in pairwise(breaks):
                rows = unread[start:stop]
                ids = torch.tensor([[self._jobs[row].tokens[-1]] for row in rows])
                for row, logits in zip(rows, self._forward(rows[0], len(rows), ids)[:, -1], strict=True):
                    self._logits[row] = logits
        logits = torch.stack([row for row in self._logits if row is not None])
        chosen = self._choose(logits)
        tokens = self._described(logits, chosen, [job.top for job in self._jobs])
        for row, (job, token) in enumerate(zip(self._jobs, tokens, strict=True)):
            job.tokens.append(token.id)
            self._logits[row] = None
        return list(zip(self._jobs, tokens, strict=True))

    def drop(self, job: Job) -> None:
        """Forget a job."""
        if job not in self._jobs:
            return
        row = self._jobs.index(job)
        self._cache.leave(row)
        _replace_by_last(self._jobs, row)
        _replace_by_last(self._streams, row)
        _replace_by_last(self._logits, row)

    def _read_prompt(self, row: int, job: Job) -> Tensor:
        """Logits after a job's prompt, (vocabulary,); fills `job.prompt` if that is wanted."""
        ids = torch.tensor([list(job.ids)])
        logits = None
        for start in range(0, ids.shape[1], _CHUNK):
            chunk = ids[:, start : start + _CHUNK]
            if not job.reads_prompt:
                logits = self._forward(row, 1, chunk)[0, -1]
                continue
            whole = self._forward(row, 1, chunk, every=True)[0]  # (time, vocabulary)
            following = ids[0, start + 1 : start + 1 + len(whole)]
            job.prompt += self._described(whole[: len(following)], following, [job.top or 0] * len(following))
            logits = whole[-1]
        assert logits is not None
        return logits

    def _forward(self, first: int, count: int, ids: Tensor, *, every: bool = False) -> Tensor:
        positions, mask = self._cache.reading(first, count, ids.shape[1])
        device = self.model.device
        with torch.inference_mode():
            logits: Tensor = self.model(
                input_ids=ids.to(device),
                position_ids=positions.to(device),
                attention_mask=self._mask(mask),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=0 if every else 1,
            ).logits
        self._cache.read()
        return logits[..., : self._vocab_size].float()

    def _mask(self, seen: Tensor) -> Tensor:
        seen = seen.to(self.model.device)
        if not self._adds_mask:
            return seen
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device).masked_fill_(~seen, lowest)

    def check(self) -> None:
        """Try whether rows of different lengths get the logits that each gets alone; it depends on the model's code.

        Raises:
            ModelError: they do not.
        """
        rows = [list(range(2, 2 + length)) for length in (24, 5)]
        jobs = [
            Job([token % self._vocab_size for token in row], SamplingSettings.resolve({"temperature": 0}))
            for row in rows
        ]
        worst = 0.0
        try:
            for job in jobs:
                self.admit([job])
            for _ in range(3):
                self.step()
            found = self._read_ahead()
            for job, logits in zip(jobs, found, strict=True):
                with torch.inference_mode():
                    ids = torch.tensor([[*job.ids, *job.tokens]], device=self.model.device)
                    alone = self.model(input_ids=ids).logits[0, -1, : self._vocab_size].float()
                worst = max(worst, float((alone - logits).abs().max() / alone.abs().max().clamp(min=1)))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise self._unfit(f"its code fails: {type(error).__name__}") from error
        finally:
            for job in jobs:
                self.drop(job)
        if worst > _TOLERANCE:
            raise self._unfit(f"they differ by {worst:.1%}")

    def _read_ahead(self) -> list[Tensor]:
        """The logits after each row's last token."""
        ids = torch.tensor([[job.tokens[-1]] for job in self._jobs])
        return list(self._forward(0, len(self._jobs), ids)[:, -1])

    def _unfit(self, why: str) -> ModelError:
        name = self.model.config.model_type
        return ModelError(
            f"A {name} model can't be served: texts of different lengths do not get the scores that each gets alone ({why}).",
            "`finetale generate` works with it.",
        )

    def _choose(self, logits: Tensor) -> Tensor:
        """A token a row. Rows that are sampled in the same way are sampled together."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for row, job in enumerate(self._jobs):
            settings = job.settings.model_copy(update={"seed": 0, "max_new_tokens": 1, "stop": ()})
            groups.setdefault((settings.model_dump_json(), tuple(sorted(job.bias.items()))), []).append(row)
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
                logits[rows], padded.to(logits.device), starts, [(row,) for row in rows], [job.tokens for job in jobs]
            )
            chosen[rows] = found.cpu()
        return chosen

    def _described(self, logits: Tensor, chosen: Tensor, tops: Sequence[int | None]) -> list[Token]:
        """Tokens with their log-probabilities, for rows that want them; logits (rows, vocabulary), chosen (rows,)."""
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
