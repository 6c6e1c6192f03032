"""Decide which tokens come before a text: those that a model was trained with, or those that its tokenizer adds.

Training puts beginning-of-text before each document. So config.json of a model that Finetale trains says
`"bos_before_text": true`. Other models do not have the key. For them the tokenizer decides, as in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetale.tokens import begin_and_end

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARK = "bos_before_text"
"""Key of config.json: whether beginning-of-text comes before each text."""


def mark_of(model: PreTrainedModel) -> bool | None:
    """Return whether config.json says that beginning-of-text comes before a text. None: the tokenizer decides."""
    found = getattr(model.config, MARK, None)
    return None if found is None else bool(found)


def set_mark(model: PreTrainedModel, value: bool) -> None:
    """Set what config.json of a model will say when the model is saved."""
    setattr(model.config, MARK, value)


def lead_of(tokenizer: PreTrainedTokenizerBase, mark: bool | None) -> tuple[int, ...]:
    """Return the ids that come before each text.

    Args:
        mark: as `mark_of` returns it.
    """
    if mark is not None:
        return begin_and_end(tokenizer)[:1] if mark else ()
    text = [int(token) for token in tokenizer("a", add_special_tokens=False)["input_ids"]]
    whole = [int(token) for token in tokenizer("a")["input_ids"]]
    places = range(len(whole) - len(text) + 1)
    return tuple(whole[: next((at for at in places if whole[at : at + len(text)] == text), 0)])


def with_lead(ids: Sequence[int], lead: Sequence[int], begin: int) -> list[int]:
    """Return the ids of a text with those that come before it.

    A text that has them already stays unchanged. An empty text is `begin`, because a model needs at least one token.

    Args:
        lead: as `lead_of` returns it.
        begin: id of beginning-of-text.
    """
    if list(ids[: len(lead)]) == list(lead):
        return list(ids) or [begin]
    return [*lead, *ids]
