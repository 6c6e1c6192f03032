"""Answer held-out examples with a model, and compare its answers with the references. Knows no files and no HTML.

- exact match: share of the answers that equal their reference, white space aside
- chrF (Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"): overlap of character n-grams, 0 to
  100, by the package sacrebleu; the mean over answers, so that it has an interval
- ended: share of the answers that the model ended itself, before the limit of tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finetale.chat import chat_renderer
from finetale.config import SamplingSettings
from finetale.extras import is_installed
from finetale.generate import Generator
from finetale.metrics import ratio_interval
from finetale.schema import AnswerFigures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetale.models import LoadedModel
    from finetale.tokens import TokenStore


@dataclass(frozen=True)
class Exercise:
    """A held-out example: what the model reads, and the last answer as reference."""

    prompt: str
    reference: str


def exercises(
    store: TokenStore, tokenizer: PreTrainedTokenizerBase, number: int, splits: Sequence[str]
) -> list[Exercise]:
    """Return up to `number` held-out examples, spread evenly over the first of the splits that has some."""
    for split in splits:
        parts = store.parts_of(split)
        parts = parts[store.is_example[parts]]
        if not len(parts) or not number:
            continue
        chosen = parts[np.linspace(0, len(parts) - 1, min(number, len(parts))).round().astype(int)]
        found = []
        for part in chosen.tolist():
            ids, context = store.ids(part), store.context_of(part)
            last = len(context) - 1
            if context[last, 1] == len(ids) and last:  # a template can write text after the answer
                last -= 1
            start, stop = int(context[last, 1]), int([*context[:, 0], len(ids)][last + 1])
            prompt = tokenizer.decode(ids[:start].tolist(), clean_up_tokenization_spaces=False)
            reference = tokenizer.decode(ids[start:stop].tolist(), skip_special_tokens=True)
            found.append(Exercise(prompt, reference))
        return found
    return []


def answer(
    loaded: LoadedModel,
    asked: Sequence[Exercise],
    max_new_tokens: int,
    between: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AnswerFigures | None:
    """Answer examples with the most likely tokens, and compare the answers with the references. None without examples.

    Args:
        max_new_tokens: limit of an answer.
        between: called between tokens; may raise to stop.
        progress: receives (examples done, examples).
    """
    if not asked:
        return None
    generator = Generator(loaded.model, loaded.tokenizer)
    # Exercises have no beginning-of-text, which the templates of some models write.
    writes_begin = not generator.lead and chat_renderer(loaded.tokenizer, "answers").writes_begin()
    begin = loaded.tokenizer.decode([generator.begin]) if writes_begin else ""
    greedy = SamplingSettings(max_new_tokens=max_new_tokens, temperature=0)
    written: list[str] = []
    ended = 0
    for start in range(0, len(asked), _BATCH):
        if progress is not None:
            progress(start, len(asked))
        prompts = [begin + each.prompt for each in asked[start : start + _BATCH]]
        for (sample,) in generator.generate(prompts, greedy, truncate=True, batch_size=_BATCH, between=between):
            written.append(sample.text)
            ended += sample.finish_reason == "end"
    references = [each.reference for each in asked]
    equal = sum(mine.split() == wanted.split() for mine, wanted in zip(written, references, strict=True))
    scores = chrf(written, references)
    return AnswerFigures(
        examples=len(asked),
        exact_match=equal / len(asked),
        ended=ended / len(asked),
        chrf=None if scores is None else float(np.mean(scores)),
        chrf_interval=None if scores is None else ratio_interval(np.array(scores), np.ones(len(scores))),
    )


def chrf(written: Sequence[str], references: Sequence[str]) -> list[float] | None:
    """Return the chrF of each answer, 0 to 100. None if the package sacrebleu is not installed."""
    if not is_installed("sacrebleu"):
        return None
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    return [
        float(metric.sentence_score(mine, [wanted]).score) for mine, wanted in zip(written, references, strict=True)
    ]


_BATCH = 16
