"""How well a tokenizer fits a text: bytes per token, fragments of characters, and a tokenizer made for the text.

Fewer tokens mean less time and memory for the same text, and more text in a model's context. A tokenizer of the same
vocabulary size is trained on half of a sample; both are measured on the other half. Knows nothing of models.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from finetale.round_trip import TextSample, changes
from finetale.schema import TokenizerFit
from finetale.text.documents import size_in_utf8
from finetale.tokenizing import encode_batch
from finetale.tokens import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE_CHARACTERS = 1_000_000
_LEAST_BYTES = 20_000
"""Minimum size of the measured half for a comparison; a tokenizer trained on less is no measure."""
_MAX_VOCABULARY = 65_536
"""Maximum size of the tokenizer that is trained; a sample of this size has no use for more."""
_BAD_RATIO = 1.5
_MANY_FRAGMENTS = 0.1
_MANY_UNKNOWN = 0.01


def new_sample() -> TextSample:
    """Return an empty sample of the size that `measure` needs."""
    return TextSample(_SAMPLE_CHARACTERS)


def measure(tokenizer: PreTrainedTokenizerBase, sample: TextSample) -> TokenizerFit | None:
    """Return how a tokenizer fits a text, or None without text. Takes a few seconds at most.

    Args:
        sample: a sample of the training text. Its pieces 0, 2, 4 … are measured, the others train the comparison.
    """
    measured, others = sample.units[::2], sample.units[1::2]
    size = sum(map(size_in_utf8, measured))
    counts = _counts(tokenizer, measured)
    total = counts.total()
    if not total:
        return None
    fragments = sum(count for token, count in counts.items() if _is_fragment(tokenizer, token))
    unknown = counts[tokenizer.unk_token_id] if tokenizer.unk_token_id is not None else 0
    found = changes(tokenizer, measured[:200])
    own_size = own_rate = None
    if size >= _LEAST_BYTES:
        own = train_tokenizer(others, min(len(tokenizer), _MAX_VOCABULARY))
        own_size, own_rate = len(own), size / max(1, _counts(own, measured).total())
    rate, fragment_share, unknown_share = size / total, fragments / total, unknown / total
    return TokenizerFit(
        sample_bytes=size,
        vocab_size=len(tokenizer),
        bytes_per_token=round(rate, 3),
        fragments_share=round(fragment_share, 5),
        unknown_share=round(unknown_share, 5),
        changed_share=round(found.share if found else 0.0, 5),
        own_vocab_size=own_size,
        own_bytes_per_token=None if own_rate is None else round(own_rate, 3),
        advice=_advice(rate, own_rate, fragment_share, unknown_share),
    )


def _counts(tokenizer: PreTrainedTokenizerBase, units: list[str]) -> Counter[int]:
    """Return how often each token occurs."""
    if not units:
        return Counter()
    ids, counts = np.unique(np.concatenate(encode_batch(tokenizer, units)), return_counts=True)
    return Counter(dict(zip(ids.tolist(), counts.tolist(), strict=True)))


def _is_fragment(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Return whether a token holds an incomplete character."""
    return "\ufffd" in tokenizer.decode([token], clean_up_tokenization_spaces=False)


def _advice(rate: float, own_rate: float | None, fragments: float, unknown: float) -> str | None:
    """Return what to do about a tokenizer that fits badly."""
    reasons, cost = [], ""
    if own_rate is not None and own_rate >= _BAD_RATIO * rate:
        cost = " Training and generation take that much longer, and a block holds that much less text."
        reasons.append(f"it needs {own_rate / rate:.1f} times the tokens of one made for this text")
    if fragments >= _MANY_FRAGMENTS:
        reasons.append(f"{fragments:.0%} of its tokens are fragments of characters")
    if unknown >= _MANY_UNKNOWN:
        reasons.append(f"{unknown:.1%} of its tokens are unknown text")
    if not reasons:
        return None
    return (
        f"The tokenizer does not fit the text: {' and '.join(reasons)}.{cost} Choose a model whose tokenizer was "
        "made for the language of the text, or train a new model (--model new:10m): its tokenizer is made for the text."
    )
