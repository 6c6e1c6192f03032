"""Read the texts of a batch token by token, in a way that gives each text the scores that it has alone.

The right way depends on the model's code, so `find_way` tests it on a few tokens. It tries, in this order:

1. with a cache, where texts of different lengths share a batch and shorter ones are padded on the left;
2. with a cache, where only texts of one length share a batch;
3. without a cache: the whole texts are read again for each token. This is slow, and right for every causal model.

Some models ignore the cache that they are given (RWKV), and some keep a state of their own between calls
(RecurrentGemma): they would write wrong text without an error. Does not know about sampling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from finetale import models
from finetale.errors import ModelError

PADDED = "with a cache, texts of any length together"
UNPADDED = "with a cache, texts of one length together"
WHOLE = "without a cache"
FAILURES = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError)
"""Errors of a model's code that does not support a way to call it."""
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 0.03
"""Largest difference of two scores that count as equal, relative to the largest distance of a score from the mean, in
fp32 and in types of 16 bits."""
_PROMPT, _NEW = 7, 3
"""Number of tokens of a longer prompt in the test, and of the tokens that the test reads after a prompt."""
STATES = "cache_params"
"""Name of the argument for the cache of models that keep a state instead of keys and values (Mamba)."""
_FOUND: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


class Reader(Protocol):
    """Reads the texts of a batch. Each text ends in the last column; `starts` are the columns where they begin."""

    def read(self, ids: Tensor, starts: Sequence[int]) -> Tensor:
        """Return the scores of the next token, (rows, vocabulary). `ids`, (rows, columns), holds all tokens so far."""

    def select(self, rows: Tensor) -> None:
        """Continue with the given rows, in that order. A row can occur several times."""


class CachedReader:
    """Reads only new columns; the model's cache holds what it needs of those before."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.accepted = inspect.signature(model.forward).parameters  # models with ALiBi (BLOOM) take no positions
        self.name, self.cache = cache_name(model), new_cache(model)
        self.seen = 0

    def read(self, ids: Tensor, starts: Sequence[int]) -> Tensor:
        """See Reader."""
        columns = torch.arange(ids.shape[1], device=ids.device)
        mask = (columns >= torch.tensor(starts, device=ids.device)[:, None]).long()  # (rows, columns)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, self.seen :]
        if self.name == STATES:  # without attention; the mask is that of the new columns
            mask = mask[:, self.seen :]
        options = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}
        logits: Tensor = self.model(
            input_ids=ids[:, self.seen :],
            use_cache=True,
            **{self.name: self.cache},
            **{name: value for name, value in options.items() if name in self.accepted},
        ).logits
        self.seen = ids.shape[1]
        return logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """See Reader."""
        self.cache.reorder_cache(rows)


class WholeReader:
    """Reads all tokens of the texts each time, those of one length together."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.accepted = inspect.signature(model.forward).parameters

    def read(self, ids: Tensor, starts: Sequence[int]) -> Tensor:
        """See Reader."""
        found: list[Tensor] = [ids] * len(starts)
        for start in sorted(set(starts)):
            rows = [row for row, other in enumerate(starts) if other == start]
            for row, scores in zip(rows, self._read(ids[rows, start:]), strict=True):
                found[row] = scores
        return torch.stack(found)

    def _read(self, ids: Tensor) -> Tensor:
        options = {"logits_to_keep": 1} if "logits_to_keep" in self.accepted else {}
        logits: Tensor = self.model(input_ids=ids, use_cache=False, **options).logits
        return logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """See Reader. There is nothing to select."""


def new_reader(model: PreTrainedModel) -> Reader:
    """Return a reader for a batch, of the way that `find_way` chose."""
    return WholeReader(model) if find_way(model) == WHOLE else CachedReader(model)


def find_way(model: PreTrainedModel) -> str:
    """Return PADDED, UNPADDED or WHOLE: the fastest way to read texts that gives the scores of each text alone.

    A second call for the same model returns the first result.

    Raises:
        ModelError: the scores after a text change with what follows it. The model is not causal.
    """
    if model not in _FOUND:
        with inference(model):
            _FOUND[model] = _find_way(model)
    return _FOUND[model]


def cache_name(model: PreTrainedModel) -> str:
    """Return the name of the argument that takes the cache."""
    accepted = inspect.signature(model.forward).parameters
    return STATES if "past_key_values" not in accepted and STATES in accepted else "past_key_values"


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache for a model."""
    return DynamicCache(config=model.config)


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Disable gradients and dropout inside; restore the mode of every module afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _find_way(model: PreTrainedModel) -> str:
    test = _Test(model)
    if not test.expected or not all(bool(scores.isfinite().all()) for scores in test.expected):
        return PADDED  # too few positions to test, or corrupted weights, which sampling reports
    if test.passes(CachedReader, [[0, 2, 1]]):
        return PADDED
    if test.passes(CachedReader, [[0, 1], [2]]):
        return UNPADDED
    if test.passes(WholeReader, [[0, 2, 1]]):
        return WHOLE
    raise ModelError(
        f"A {model.config.model_type} model can't continue texts: "
        "its scores after a text change with the text that follows, so it is not a causal language model.",
        "Choose a model such as gpt2 or EleutherAI/pythia-160m.",
    )


class _Test:
    """Two texts of one length and a short one, with the scores after each token of each text alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        context = models.positions_of(model.config.get_text_config().to_dict()) or _PROMPT + _NEW
        longest = min(_PROMPT, context - _NEW)
        self.prompts = [longest, longest, 1] if longest > 1 else []
        vocabulary = model.get_input_embeddings().weight.shape[0]
        self.texts = [
            (torch.arange(length + _NEW, device=model.device) * (2 * number + 3) + number + 1) % vocabulary
            for number, length in enumerate(self.prompts)
        ]
        self.expected = [model(input_ids=text[None], use_cache=False).logits[0].float() for text in self.texts]
        self.tolerance = _TOLERANCE if model.dtype == torch.float32 else _HALF_TOLERANCE

    def passes(self, new: Callable[[PreTrainedModel], Reader], batches: list[list[int]]) -> bool:
        """Return whether readers give the expected scores.

        Args:
            new: returns a reader.
            batches: the numbers of the texts in each batch. The batches take turns.
        """
        try:
            readers = [new(self.model) for _ in batches]
            for number in range(_NEW + 1):
                for place, (reader, rows) in enumerate(zip(readers, batches, strict=True)):
                    if not self._agrees(reader, rows, number):
                        return False
                    stay = list(range(len(rows)))[::-1] if number == 0 else list(range(max(1, len(rows) - 1)))
                    reader.select(torch.tensor(stay, device=self.model.device))
                    batches[place] = [rows[row] for row in stay]
        except FAILURES:
            return False
        return True

    def _agrees(self, reader: Reader, rows: list[int], new: int) -> bool:
        """Return whether the scores after `new` new tokens are the expected ones."""
        lengths = [self.prompts[row] + new for row in rows]
        width = max(lengths)
        ids = torch.zeros(len(rows), width, dtype=torch.long, device=self.model.device)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[place, width - length :] = self.texts[row][:length]
        found = reader.read(ids, [width - length for length in lengths]).float()
        for scores, row, length in zip(found, rows, lengths, strict=True):
            expected = self.expected[row][length - 1]
            scale = float((expected - expected.mean()).abs().max())
            if not float((scores - expected).abs().max()) <= self.tolerance * scale:  # False for NaN, too
                return False
        return True
