"""Measure a model on blocks of text: sums and counts, the figures that follow from them, and their intervals.

Every figure is a sum divided by a count, never a mean of means:

- loss = nats / tokens
- perplexity per token = exp(nats / tokens)
- perplexity per word = exp(nats / words), where white space separates words
- bits per byte = nats / ln 2 / bytes of the text in UTF-8

The 95% intervals show how far a figure could be from that of all documents like the measured ones. The document is the
unit, because the tokens of one document are alike. An interval is a jackknife over documents with a t quantile, see
`ratio_interval`. Fewer than MIN_DOCUMENTS documents have none. `docs/measures.md` has the simulated coverage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from finetale import speed
from finetale.blocks import IGNORE, Blocks
from finetale.forward import PackedForward
from finetale.ranks import ALONE, Ranks
from finetale.schema import Change, FigureIntervals, Figures, Interval

MIN_DOCUMENTS = 5
"""Minimum number of documents for an interval."""

INTERVAL_METHOD = "jackknife-t"
"""Name of the method in comparison.json."""

_LARGEST_EXPONENT = 700.0
_SMALLEST = 1e-300
_UPPER = 0.975  # of a two-sided 95% interval
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)

Floats = NDArray[np.float64]
Unit = Literal["token", "byte"]


@dataclass(frozen=True)
class Measurement:
    """Sums over the documents of one text.

    Attributes:
        nats, tokens, words, bytes: one entry per document, float64. A document that is split between training and
            held-out text has one entry: its part in this text.
        spaced: whether white space separates the words of the text.
    """

    nats: Floats
    tokens: Floats
    words: Floats
    bytes: Floats
    spaced: bool = True

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum())

    def summary(self) -> Figures:
        """Return loss, perplexity, word perplexity and bits per byte with 95% intervals, and the counts behind them.

        `interval` is None for fewer than MIN_DOCUMENTS documents. Word perplexity is None where white space does not
        separate words.
        """
        loss = _positive(ratio_interval(self.nats, self.tokens))
        word_loss = _positive(ratio_interval(self.nats, self.words)) if self._has_words else None
        bits = _positive(ratio_interval(self.nats / math.log(2), self.bytes))
        return Figures(
            loss=self.loss,
            perplexity=perplexity(self.loss),
            word_perplexity=perplexity(_ratio(self.nats, self.words)) if self._has_words else None,
            bits_per_byte=_ratio(self.nats, self.bytes) / math.log(2),
            tokens=int(self.tokens.sum()),
            words=int(self.words.sum()) if self.spaced else None,
            bytes=int(self.bytes.sum()),
            documents=len(self.nats),
            interval_unit="document" if loss else None,
            interval=FigureIntervals(
                loss=loss, perplexity=_perplexities(loss), word_perplexity=_perplexities(word_loss), bits_per_byte=bits
            )
            if loss
            else None,
        )

    @property
    def _has_words(self) -> bool:
        return self.spaced and bool(self.words.sum())


def measure(
    forward: PackedForward,
    blocks: Blocks,
    *,
    batch_size: int = 8,
    ranks: Ranks = ALONE,
    progress: Callable[[int, int], None] | None = None,
    between: Callable[[], None] | None = None,
) -> Measurement:
    """Sum the losses of all targets in blocks, by document.

    The blocks of one split contain at most one part of a document, so each part counts as a document.

    Args:
        batch_size: blocks per forward pass.
        ranks: the processes that share the work. Each takes every n-th batch, and all get the whole result.
        progress: receives (batches done, batches) after each batch.
        between: called before each batch; may raise to stop.
    """
    num_parts = len(blocks.store.parts)
    nats, counts = np.zeros(num_parts), np.zeros(num_parts)
    starts = list(range(0, len(blocks), batch_size))
    model = forward.model
    was_training = model.training
    model.eval()
    try:
        with ranks.together(), speed.kept_memory(), torch.inference_mode():
            for done, start in enumerate(starts):
                if between is not None:
                    between()
                if done % ranks.world != ranks.rank:
                    continue
                chosen = np.arange(start, min(start + batch_size, len(blocks)))
                batch = blocks.batch(chosen)
                losses = forward.token_losses(batch).cpu().double().numpy()  # (batch, time)
                counted = batch.labels != IGNORE
                ids, where = np.unique(batch.parts[counted], return_inverse=True)
                nats[ids] += np.bincount(where, losses[counted])
                counts[ids] += np.bincount(where)
                if progress is not None:
                    progress(done + 1, len(starts))
    finally:
        model.train(was_training)
    for array in (nats, counts):
        ranks.sum(torch.from_numpy(array))  # in place
    table = blocks.store.parts
    present = np.flatnonzero(counts)
    return Measurement(
        nats[present],
        counts[present],
        np.asarray(table["words"][present], np.float64),
        np.asarray(table["bytes"][present], np.float64),
    )


def change(before: Measurement, after: Measurement, *, per: Unit) -> Change:
    """Return the change from one model to the other in percent (negative is better), with a paired 95% interval.

    With per="token" the change is that of perplexity per token, which is valid for models of one tokenizer. With
    per="byte" it is that of bits per byte, which is valid for all models.

    The interval leaves out the same document for both models. It is None for fewer than MIN_DOCUMENTS documents, and
    if one tokenizer gave a document no tokens, so that the models did not read the same documents.
    """
    interval = None
    if per == "token":
        # The logarithm of the ratio of two perplexities is the difference of the losses.
        moved = after.loss - before.loss
        if len(before.nats) == len(after.nats):
            left_out = _without_each(after.nats, after.tokens) - _without_each(before.nats, before.tokens)
            interval = jackknife_interval(moved, left_out, _shares(after.tokens))
    else:
        moved = _log(_ratio(after.nats, after.bytes)) - _log(_ratio(before.nats, before.bytes))
        if len(before.nats) == len(after.nats):
            left_out = _log(_without_each(after.nats, after.bytes)) - _log(_without_each(before.nats, before.bytes))
            interval = jackknife_interval(moved, left_out, _shares(after.bytes))
    percents = None if interval is None else (_percent(interval[0]), _percent(interval[1]))
    return Change(
        percent=_percent(moved),
        interval=percents,
        excludes_zero=None if percents is None else percents[0] > 0 or percents[1] < 0,
        per=per,
    )


def ratio_interval(numerators: Floats, denominators: Floats) -> Interval | None:
    """Return the 95% interval of sum(numerators) / sum(denominators), as `jackknife_interval`.

    Args:
        numerators, denominators: one entry per document, shape (documents,).
    """
    estimate = _ratio(numerators, denominators)
    return jackknife_interval(estimate, _without_each(numerators, denominators), _shares(denominators))


def jackknife_interval(estimate: float, left_out: Floats, shares: Floats) -> Interval | None:
    """Return the 95% interval of a figure over documents: estimate ± t × standard error; None if there are too few.

    The standard error is that of the jackknife, which leaves out one document at a time (Tukey 1958; Miller 1974, "The
    jackknife: a review"; for ratios Cochran 1977, "Sampling Techniques", section 6.17).

    Args:
        estimate: the figure over all documents.
        left_out: the figure without each of the documents, shape (documents,).
        shares: the share of each document in the text, shape (documents,).
    """
    number = len(left_out)
    if number < MIN_DOCUMENTS or not np.isfinite(left_out).all():
        return None
    error = math.sqrt((number - 1) / number * float(((left_out - estimate) ** 2).sum()))
    half = t_quantile(degrees_of_freedom(shares)) * error
    return estimate - half, estimate + half


def degrees_of_freedom(shares: Floats) -> float:
    """Return the degrees of freedom of a jackknife over documents of these shares of the text (which sum to 1).

    n documents of one length give n - 1; a document that outweighs all others brings the result towards 1. Two known
    answers are joined by their geometric mean, because simulated coverage is 90% to 98% with it, too low for skewed
    losses with the first alone, and too high for unequal lengths with the second alone (docs/log.md):

    1. Kish's effective number of documents (1965, "Survey sampling", section 8.2) minus 1.
    2. Bell and McCaffrey (2002, "Bias reduction in standard errors for linear regression with multi-stage samples"):
       Satterthwaite's 2 E[v]^2 / Var[v] for the jackknife variance v, if the losses per token of all documents have
       one variance. It is tr(A)^2 / tr(A^2), where v is the quadratic form of A.
    """
    kish = 1 / float((shares**2).sum()) - 1
    # v = sum of factors * (loss of the document - loss of the whole)^2, so A = diag(factors) M M', with
    # (M M')_ij = [i = j] - p_i - p_j + sum of p^2. The sums below avoid the matrix.
    factors = (shares / (1 - shares)) ** 2
    square = float((shares**2).sum())
    trace = float((factors * (1 - 2 * shares + square)).sum())
    zeroth, first, second = (float((factors * shares**power).sum()) for power in (0, 1, 2))
    trace_of_square = float((factors**2 * ((1 - 2 * shares + square) ** 2 - (square - 2 * shares) ** 2)).sum())
    trace_of_square += square**2 * zeroth**2 + 2 * zeroth * second - 4 * square * zeroth * first + 2 * first**2
    bell_mccaffrey = trace**2 / trace_of_square
    return math.sqrt(max(1.0, kish) * max(1.0, bell_mccaffrey))


def t_quantile(freedom: float) -> float:
    """Return the 97.5% quantile of Student's t distribution for any `freedom` > 0, with an error below 1e-6.

    Newton's method on the distribution function, which is the Gauss-Legendre integral of the density.
    """
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def density(x: Any) -> Any:
        return scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)

    x = 1.0  # left of the root, from where Newton's method climbs to it: the distribution function is concave there
    for _ in range(100):
        step = (_UPPER - 0.5 - x / 2 * float(_WEIGHTS @ density(x / 2 * (_NODES + 1)))) / density(x)
        x += step
        if abs(step) < 1e-9:
            break
    return x


def perplexity(loss: float) -> float:
    """Return exp(loss), bounded so that it can be written as JSON."""
    return math.exp(min(loss, _LARGEST_EXPONENT))


def _percent(log_ratio: float) -> float:
    return 100.0 * math.expm1(min(log_ratio, _LARGEST_EXPONENT))


def _ratio(numerators: Floats, denominators: Floats) -> float:
    return float(numerators.sum() / denominators.sum())


def _shares(sizes: Floats) -> Floats:
    found: Floats = sizes / sizes.sum()
    return found


def _without_each(numerators: Floats, denominators: Floats) -> Floats:
    """Return the ratio of the sums without each of the documents. NaN if the rest is empty."""
    rest = denominators.sum() - denominators
    found: Floats = np.divide(numerators.sum() - numerators, rest, out=np.full(len(rest), np.nan), where=rest > 0)
    return found


def _log(value: Any) -> Any:
    """Return the natural logarithm, bounded below. So it exists for a loss of zero too."""
    return np.log(np.maximum(value, _SMALLEST))


def _positive(interval: Interval | None) -> Interval | None:
    """Cut an interval of a figure that can't be negative at zero."""
    return None if interval is None else (max(0.0, interval[0]), max(0.0, interval[1]))


def _perplexities(losses: Interval | None) -> Interval | None:
    return None if losses is None else (perplexity(losses[0]), perplexity(losses[1]))
