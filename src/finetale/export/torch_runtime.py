"""Run models with transformers and PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetale.environment import versions
from finetale.export.runtimes import Scores
from finetale.generate.reading import WHOLE, cache_name, find_way, inference, new_cache


class TorchRuntime:
    """A model in PyTorch, read by transformers. Implements Runtime."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        found = versions("torch", "transformers")
        self.name = f"transformers {found['transformers']}, torch {found['torch']}"
        self._model, self._tokenizer = model, tokenizer
        self._whole = find_way(model) == WHOLE
        self.reset()

    def encode(self, text: str) -> list[int]:
        """See Runtime."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return found

    def reset(self) -> None:
        """See Runtime."""
        self._cache = None if self._whole else new_cache(self._model)
        self._text: list[int] = []

    def read(self, ids: Sequence[int]) -> Scores:
        """See Runtime."""
        self._text += ids
        new = self._text if self._whole else ids
        cached = {} if self._whole else {cache_name(self._model): self._cache}
        with inference(self._model):
            tensor = torch.tensor([list(new)], device=self._model.device)
            logits = self._model(input_ids=tensor, use_cache=not self._whole, **cached).logits[0, -len(ids) :]
        found: Scores = logits.float().cpu().numpy()
        return found

    def close(self) -> None:
        """See Runtime. There is nothing to free."""
