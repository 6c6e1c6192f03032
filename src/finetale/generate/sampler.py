"""Scores of the next token → one token a row.

Every sample has a random stream of its own, made from the seed, the prompt and the sample's number, and picks its token by
the Gumbel-max rule: the token with the largest score + noise. That is sampling from the softmax of the scores (Gumbel
1954), and a rounding difference in the scores hardly ever changes the pick, so a sample does not depend on what else is
in its batch. The noise is drawn on the CPU: the same seed gives the same noise on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from finetale.config import SamplingSettings

# In the place of a token id: every token is forbidden; the scores are not numbers.
EXHAUSTED = -1
NOT_A_NUMBER = -2
Stream = tuple[int, ...]


class Sampler:
    """Scores of the next token → one token a row.

    Args:
        settings: the same for all rows.
        vocab_size: ids from here on are padding of the vocabulary.
        holes: ids below it that are no token.
        streams: the random streams of the rows.
        bias: added to the scores of some tokens, before anything else.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        vocab_size: int,
        holes: list[int],
        streams: dict[Stream, torch.Generator],
        bias: Mapping[int, float] | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.bias = dict(bias or {})
        self.presence, self.frequency = settings.presence_penalty, settings.frequency_penalty
        self.holes = torch.tensor(holes, dtype=torch.long)
        self.streams = streams
        self.greedy = settings.temperature == 0
        # Both in the order of transformers' generate.
        self.history: list[LogitsProcessor] = []
        if settings.repetition_penalty != 1:
            self.history.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if settings.no_repeat_ngram_size:
            self.history.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
        self.warpers: list[LogitsProcessor] = []
        if not self.greedy:
            if settings.temperature != 1:
                self.warpers.append(TemperatureLogitsWarper(settings.temperature))
            if settings.top_k:
                self.warpers.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                self.warpers.append(TopPLogitsWarper(settings.top_p))
            if settings.min_p:
                self.warpers.append(MinPLogitsWarper(settings.min_p))

    def choose(
        self,
        logits: Tensor,
        ids: Tensor,
        starts: list[int],
        streams: list[Stream],
        new: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """One token id a row, or EXHAUSTED or NOT_A_NUMBER.

        Args:
            logits: scores of the next token, (rows, padded vocabulary).
            ids: prompts and what was generated so far, padded at the left, (rows, time).
            starts: where each row of ids begins.
            streams: which random stream each row has.
            new: the tokens of each row that were generated; may be None when no penalty counts them.
        """
        scores = logits[:, : self.vocab_size].float()  # (rows, vocabulary)
        if len(self.holes):
            scores = scores.index_fill(1, self.holes.to(scores.device), -torch.inf)
        if self.bias:
            places = torch.tensor(list(self.bias), device=scores.device)
            scores = scores.index_add(1, places, torch.tensor([list(self.bias.values())] * len(scores)).to(scores))
        if (self.presence or self.frequency) and new is not None:
            scores = self._penalised(scores, new)
        for processor in self.history:
            if any(starts):  # padding is no history: each row alone
                rows = zip(ids, scores, starts, strict=True)
                scores = torch.cat([processor(row[None, start:], score[None]) for row, score, start in rows])
            else:
                scores = processor(ids, scores)
        for warper in self.warpers:
            scores = warper(ids, scores)
        if not self.greedy:
            scores = scores + self._noise(streams).to(scores.device)
        best, tokens = scores.max(dim=-1)
        return tokens.masked_fill(best == -torch.inf, EXHAUSTED).masked_fill(best.isnan(), NOT_A_NUMBER)

    def _penalised(self, scores: Tensor, new: Sequence[Sequence[int]]) -> Tensor:
        """Score - presence x (whether it was generated) - frequency x (how often it was), as OpenAI's API defines it."""
        scores = scores.clone()
        for row, tokens in zip(scores, new, strict=True):
            if tokens:
                counts = torch.bincount(torch.tensor(tokens), minlength=self.vocab_size)[: self.vocab_size].to(scores)
                row -= self.presence * (counts > 0) + self.frequency * counts
        return scores

    def _noise(self, streams: list[Stream]) -> Tensor:
        """Gumbel noise, (rows, vocabulary); rows of the same stream have the same."""
        # float64: a uniform number of float32 has 24 bits, too coarse for the many rare tokens of a vocabulary.
        drawn = {
            stream: torch.rand(self.vocab_size, generator=self.streams[stream], dtype=torch.float64)
            for stream in dict.fromkeys(streams)
        }
        places = {stream: place for place, stream in enumerate(drawn)}
        noise = torch.stack(list(drawn.values())).log_().neg_().log_().neg_().float()
        return noise[[places[stream] for stream in streams]]


def random_stream(seed: int, sample: int, prompt: Sequence[int] = ()) -> torch.Generator:
    """The random stream of one sample of a prompt (token ids): neighbouring seeds and numbers give unrelated streams."""
    digest = hashlib.blake2b(f"{seed}/{sample}/{list(prompt)}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
