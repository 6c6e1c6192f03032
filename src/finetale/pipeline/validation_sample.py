"""How much of the validation text each evaluation within a run measures. Knows nothing of models.

An evaluation costs about a third of the time of training on as many tokens. So that all evaluations of a run take at
most a tenth of its time, each measures at most a quarter of the tokens that are trained on between two of them. The
sample depends only on the text, so it is the same for the whole run, also after a resume.
"""

from __future__ import annotations

import numpy as np

from finetale.blocks import Blocks
from finetale.training import StepBudget

MIN_TOKENS = 16_384
"""Minimum number of validation tokens to measure. With fewer, the loss is too noisy to be useful."""
_SHARE = 0.25


def choose_eval_tokens(validation: Blocks, train: Blocks, budget: StepBudget) -> int | None:
    """Return how many validation tokens each evaluation of a run measures; None for all."""
    steps = budget.total_steps
    evaluations = sum(budget.evaluates(step) for step in range(steps + 1))
    share = min(budget.total_blocks, steps * budget.batch_size) / max(1, len(train))
    most = max(MIN_TOKENS, round(_SHARE * train.num_targets * share / evaluations))
    return most if validation.num_targets > most else None


def sample_blocks(blocks: Blocks, tokens: int | None) -> Blocks:
    """Return blocks with at least `tokens` targets in all, drawn by a hash of the text; all blocks for None."""
    if tokens is None or blocks.num_targets <= tokens:
        return blocks
    seed = int(blocks.store.info["sha256"][:16], 16)
    order = np.random.default_rng(seed).permutation(len(blocks))
    number = int(np.searchsorted(np.cumsum(blocks.learned[order]), tokens)) + 1
    return blocks.subset(np.sort(order[:number]))
