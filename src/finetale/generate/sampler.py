"""Choose one token per row from the scores of the next token.

Every sample has a random stream of its own, made from the seed, the prompt and the sample's number. It picks its token
by the Gumbel-max rule: the token with the largest score + noise. That is sampling from the softmax of the scores
(Gumbel 1954), and a rounding difference in the scores hardly ever changes the pick, so a sample does not depend on what
else is in its batch. The noise is drawn on the CPU: the same seed gives the same noise on every device.
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

# Returned instead of a token id: every token is excluded; the scores are NaN.
EXHAUSTED = -1
NOT_A_NUMBER = -2
Stream = tuple[int, ...]
_MARGIN = 1e-3
"""A bound on the change of a score by rounding."""
_SORTED = 1024
"""Number of the largest scores that top_p sorts first. It sorts all scores only if these are not enough."""


class Sampler:
    """Choose one token per row from the scores of the next token.

    Args:
        settings: the same for all rows.
        vocab_size: ids from here on are padding of the vocabulary.
        holes: ids below it that are not tokens.
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
                self.warpers.append(_TopP(settings.top_p))
            if settings.min_p:
                self.warpers.append(MinPLogitsWarper(settings.min_p))

    @torch.no_grad()
    def choose(
        self,
        logits: Tensor,
        ids: Tensor,
        starts: list[int],
        streams: list[Stream],
        new: Sequence[Sequence[int]] | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Return one token id per row, or EXHAUSTED or NOT_A_NUMBER.

        Args:
            logits: scores of the next token, (rows, padded vocabulary).
            ids: prompts and what was generated so far, padded at the left, (rows, time).
            starts: where each row of ids begins.
            streams: index of each row's random stream.
            new: the generated tokens of each row; may be None if no penalty counts them.
            allowed: which tokens each row may choose, (rows, vocabulary), bool; None for all.
        """
        scores = logits[:, : self.vocab_size].float()  # (rows, vocabulary)
        if len(self.holes):
            scores = scores.index_fill(1, self.holes.to(scores.device), -torch.inf)
        if allowed is not None:
            scores = scores.masked_fill(~allowed.to(scores.device), -torch.inf)
        if self.bias:
            places = torch.tensor(list(self.bias), device=scores.device)
            scores = scores.index_add(1, places, torch.tensor([list(self.bias.values())] * len(scores)).to(scores))
        if (self.presence or self.frequency) and new is not None:
            scores = self._penalised(scores, new)
        for processor in self.history:
            if any(starts):  # rows have padding, which is not part of their history
                rows = zip(ids, scores, starts, strict=True)
                scores = torch.cat([processor(row[None, start:], score[None]) for row, score, start in rows])
            else:
                scores = processor(ids, scores)
        for warper in self.warpers:
            scores = warper(ids, scores)
        best, tokens = _largest(scores)
        if not self.greedy and scores.device.type == "cpu":
            tokens = self._drawn(scores, best, tokens, streams)
        elif not self.greedy:
            best, tokens = (scores + self._noise(streams).to(scores.device)).max(dim=-1)
        return tokens.masked_fill(best == -torch.inf, EXHAUSTED).masked_fill(best.isnan(), NOT_A_NUMBER)

    def _penalised(self, scores: Tensor, new: Sequence[Sequence[int]]) -> Tensor:
        """Subtract presence × (was it generated) + frequency × (how often), as OpenAI's API defines it."""
        scores = scores.clone()
        for row, tokens in zip(scores, new, strict=True):
            if tokens:
                counts = torch.bincount(torch.tensor(tokens), minlength=self.vocab_size)[: self.vocab_size].to(scores)
                row -= self.presence * (counts > 0) + self.frequency * counts
        return scores

    def _drawn(self, scores: Tensor, best: Tensor, likeliest: Tensor, streams: list[Stream]) -> Tensor:
        """Return the tokens with the largest score + noise, as `_noise` gives it, without computing most of the noise.

        Noise grows with the random number, so the largest number gives the largest noise. A token is excluded whose
        score plus that noise is below the likeliest token's score plus its own noise.
        """
        drawn: dict[Stream, tuple[Tensor, Tensor]] = {}
        found = likeliest.clone()
        for row, stream in enumerate(streams):
            if stream not in drawn:
                numbers = torch.rand(self.vocab_size, generator=self.streams[stream], dtype=torch.float64)
                drawn[stream] = numbers, numbers.max()
            numbers, largest = drawn[stream]
            own, most = _gumbel(torch.stack([numbers[likeliest[row]], largest])).tolist()
            if not float("-inf") < float(best[row]) < float("inf"):
                continue
            least = float(best[row]) + own - most - _MARGIN
            places = (scores[row] >= least).nonzero()[:, 0]
            found[row] = places[(scores[row, places] + _gumbel(numbers[places])).argmax()]
        return found

    def _noise(self, streams: list[Stream]) -> Tensor:
        """Return Gumbel noise, (rows, vocabulary). Rows of one stream get the same noise."""
        # float64: a uniform number of float32 has 24 bits, too coarse for the many rare tokens of a vocabulary.
        drawn = {
            stream: torch.rand(self.vocab_size, generator=self.streams[stream], dtype=torch.float64)
            for stream in dict.fromkeys(streams)
        }
        places = {stream: place for place, stream in enumerate(drawn)}
        noise = _gumbel(torch.stack(list(drawn.values())))
        order = [places[stream] for stream in streams]
        return noise if order == list(range(len(noise))) else noise[order]


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest score of each row and its index; NaN if there is one. NumPy is ten times as fast on a CPU."""
    if scores.device.type != "cpu":
        best, places = scores.max(dim=-1)
        return best, places
    places = torch.from_numpy(scores.numpy().argmax(-1))
    return scores.gather(-1, places[:, None])[:, 0], places


def _gumbel(numbers: Tensor) -> Tensor:
    """Convert uniform numbers between 0 and 1 (float64) to Gumbel noise (fp32)."""
    return numbers.log().neg_().log_().neg_().float()


class _TopP(LogitsProcessor):  # type: ignore[misc]
    """Keep the likeliest tokens with a joint probability of `top_p` (Holtzman et al. 2020), as TopPLogitsWarper does.

    That one sorts the whole vocabulary, which takes longer than a small model's step. Here the largest scores alone are
    sorted, and all only where those are not enough.
    """

    def __init__(self, top_p: float) -> None:
        self.top_p = top_p
        self.sorts_all = TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with those of the other tokens at -inf."""
        if scores.shape[1] <= 2 * _SORTED:
            found: Tensor = self.sorts_all(input_ids, scores)
            return found
        largest, places = scores.topk(_SORTED)  # (rows, _SORTED), descending
        # A token is kept while those before it have less than top_p together.
        whole = scores.logsumexp(-1, keepdim=True)
        above = (largest - whole).exp().cumsum(-1).roll(1, -1)
        above[:, 0] = 0.0
        kept = above < self.top_p
        enough = ~kept[:, -1]
        found = torch.full_like(scores, -torch.inf)
        found.scatter_(1, places, largest.masked_fill(~kept, -torch.inf))
        if not bool(enough.all()):
            found[~enough] = self.sorts_all(input_ids, scores[~enough])
        return found


def random_stream(seed: int, sample: int, prompt: Sequence[int] = ()) -> torch.Generator:
    """Return the random stream of one sample of a prompt (token ids); neighbouring seeds give unrelated streams."""
    digest = hashlib.blake2b(f"{seed}/{sample}/{list(prompt)}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
