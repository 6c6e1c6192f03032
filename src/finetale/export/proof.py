"""Compare an exported model with the original: the shared proof of all formats. Knows nothing of files.

Both models read the same tokens and continue the same prompts. The perplexities, the most likely tokens and the texts
that they write are compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from finetale.errors import ModelError
from finetale.export.runtimes import Runtime
from finetale.metrics import Measurement, change
from finetale.schema import Change
from finetale.tokenizing import encode_batch

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 32, 32
"""Number of prompts to continue, their most tokens, and the new tokens of each."""
_PIECE = 64
"""Tokens per call. Each text is read in pieces, so that the comparison covers the keys and values of earlier calls."""


@dataclass(frozen=True)
class Proof:
    """The result of a comparison. Perplexities are per token; see `schema.ExportFile` for the rest."""

    original_perplexity: float
    perplexity: float
    change: Change
    same_choice: float
    greedy_tokens: int
    greedy_equal: float
    tokens_per_second: float
    original_tokens_per_second: float
    tokens: int
    documents: int


def prove(
    original: Runtime,
    exported: Runtime,
    texts: Sequence[Sequence[int]],
    vocab_size: int,
    context: int,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Proof:
    """Compare two runtimes.

    Args:
        texts: token ids, each with the beginning-of-text that the model was trained with; at least two each.
        vocab_size: size of the vocabulary; scores of larger ids are padding.
        context: maximum tokens of a text.
        progress: receives the number of tokens read, and of all.

    Raises:
        ModelError: a score of the exported model is not a number.
    """
    total = 2 * sum(map(len, texts))
    before, expected = _measure(original, texts, vocab_size, lambda done: progress(done, total))
    after, chosen = _measure(exported, texts, vocab_size, lambda done: progress(total // 2 + done, total))
    new = min(NEW_TOKENS, context // 2)
    prompts = [list(text[: min(PROMPT_TOKENS, len(text) - 1, context - new)]) for text in texts[:PROMPTS]]
    expected_texts, original_rate = _continue(original, prompts, new, vocab_size)
    new_texts, rate = _continue(exported, prompts, new, vocab_size)
    equal = sum(_common(one, other) for one, other in zip(expected_texts, new_texts, strict=True))
    written = len(prompts) * new
    return Proof(
        original_perplexity=math.exp(before.loss),
        perplexity=math.exp(min(after.loss, 700.0)),
        change=change(before, after, per="token"),
        same_choice=float(np.mean(expected == chosen)),
        greedy_tokens=written,
        greedy_equal=equal / written,
        tokens_per_second=rate,
        original_tokens_per_second=original_rate,
        tokens=int(before.tokens.sum()),
        documents=len(texts),
    )


def check_tokens(original: Runtime, exported: Runtime, texts: Sequence[str]) -> None:
    """Check that both runtimes cut texts into the same tokens: the given ones, and one of difficult characters.

    Raises:
        ModelError: shows the first difference.
    """
    if found := first_difference(original, exported, texts):
        text, ours, theirs = found
        raise ModelError(
            f"{exported.name} cuts {text!r} into other tokens: {theirs} in place of {ours}.",
            "Its tokenizer can't express that of this model. Choose another format.",
        )


def first_difference(
    original: Runtime, exported: Runtime, texts: Sequence[str]
) -> tuple[str, list[int], list[int]] | None:
    """Return (a short text, its tokens in the original, those in the exported model) if the tokens differ, else None.

    The texts are compared line by line too, because a whole text hides where the tokens begin to differ.
    """
    for text in (*difficult_texts(), *texts):
        if original.encode(text) == exported.encode(text):
            continue
        lines = [line for line in text.splitlines(keepends=True) if original.encode(line) != exported.encode(line)]
        shortest = _shortest(original, exported, min(lines, key=len, default=text))
        return shortest, original.encode(shortest)[:12], exported.encode(shortest)[:12]
    return None


def difficult_texts() -> list[str]:
    """Return texts of digits, contractions, scripts, emoji and white space, which tokenizers often cut differently."""
    return _parts("difficult-text.txt")


def general_texts(tokenizer: PreTrainedTokenizerBase, lead: Sequence[int], context: int) -> list[list[int]]:
    """Return token ids of texts of several kinds and languages, for a model without held-out text.

    Args:
        lead: ids that come before each text.
        context: maximum tokens of a text.
    """
    pieces = [[*lead, *ids.tolist()][:context] for ids in encode_batch(tokenizer, _parts("general-text.txt"))]
    return [piece for piece in pieces if len(piece) > 1]


def _parts(name: str) -> list[str]:
    return (files(__package__) / name).read_text(encoding="utf-8").split("\n---\n")


def _measure(
    runtime: Runtime, texts: Sequence[Sequence[int]], vocab_size: int, progress: Callable[[int], None]
) -> tuple[Measurement, NDArray[np.int64]]:
    """Return the losses of the texts, and the most likely next token after each token, (all tokens,)."""
    nats, best, done = [], [], 0
    for text in texts:
        ids = np.asarray(text)
        runtime.reset()
        sums = 0.0
        for start in range(0, len(ids) - 1, _PIECE):
            piece = ids[start : min(start + _PIECE, len(ids) - 1)]
            targets = ids[start + 1 : start + 1 + len(piece)]
            scores = runtime.read(piece.tolist())[:, :vocab_size].astype(np.float64)
            if not np.isfinite(scores).all():
                raise ModelError(
                    f"In {runtime.name}, scores of the exported model are not numbers.",
                    "Its weights do not fit into their type. Choose another with --weights.",
                )
            largest = scores.max(axis=1)
            normaliser = np.log(np.exp(scores - largest[:, None]).sum(axis=1)) + largest
            sums += float((normaliser - scores[np.arange(len(piece)), targets]).sum())
            best.append(scores.argmax(axis=1))
            done += len(piece)
            progress(done)
        nats.append(sums)
    counts = np.array([len(text) - 1 for text in texts], np.float64)
    return Measurement(np.array(nats), counts, counts, counts), np.concatenate(best)


def _continue(
    runtime: Runtime, prompts: Sequence[list[int]], new: int, vocab_size: int
) -> tuple[list[list[int]], float]:
    """Continue prompts with the most likely tokens; return the new tokens, and how many per second."""
    found, seconds = [], 0.0
    for prompt in prompts:
        runtime.reset()
        scores = runtime.read(prompt)
        written = [int(scores[-1, :vocab_size].argmax())]
        begin = time.perf_counter()
        while len(written) < new:
            written.append(int(runtime.read(written[-1:])[-1, :vocab_size].argmax()))
        seconds += time.perf_counter() - begin
        found.append(written)
    return found, len(prompts) * (new - 1) / seconds


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of equal tokens before the first difference."""
    pairs = zip(one, other, strict=True)
    return next((number for number, (left, right) in enumerate(pairs) if left != right), len(one))


def _shortest(original: Runtime, exported: Runtime, text: str) -> str:
    """Return a short part of a text that still has other tokens."""
    while len(text) > 1:
        half = len(text) // 2
        parts = (text[:half], text[half:], text[: len(text) - 1], text[1:])
        shorter = next((part for part in parts if original.encode(part) != exported.encode(part)), None)
        if shorter is None:
            return text
        text = shorter
    return text
