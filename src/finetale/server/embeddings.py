"""OpenAI's embeddings API: bodies, and the embedding of a text by a model in PyTorch. Knows no network.

The embedding of a text is the mean of the model's last hidden states over the tokens of the text, scaled to length 1.
The state of beginning-of-text, which is read first, is not in the mean: in many models it is a hundred times longer
than the others and hardly depends on the text.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from torch import Tensor
from transformers import PreTrainedModel

from finetale.errors import GenerationError, RequestError
from finetale.generate.reading import STATES, WHOLE, cache_name, find_way, new_cache
from finetale.models import adapter_hooks
from finetale.models.adapter_hooks import LoadedAdapter
from finetale.server import wire
from finetale.server.completion import Vocabulary
from finetale.server.engines import NOT_NUMBERS
from finetale.server.forms import Text

MAX_INPUTS = 2048
"""Maximum number of texts per request, as in OpenAI's API."""
MAX_TOKENS = 300_000
"""Maximum number of tokens per request, as in OpenAI's API."""
_CHUNK = 256
"""Tokens per pass. Between passes a request can be cancelled."""


class EmbeddingsRequest(BaseModel):
    """Body of POST /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text
    input: Annotated[Any, PlainValidator(wire.checked_prompt, json_schema_input_type=wire.AnyPrompt)] = Field(
        description=f"String, token ids, or a list of either; at most {MAX_INPUTS:,}."
    )
    encoding_format: Literal["float", "base64"] | None = Field("float", description="base64: of numbers in fp32.")
    dimensions: int | None = Field(None, ge=1, strict=True, description="Only the number that the model has.")
    user: Text | None = None

    @property
    def texts(self) -> list[str] | list[list[int]]:
        """The texts as a list of strings or of lists of token ids."""
        return wire.as_list(self.input)

    def encoded(self, vocabulary: Vocabulary) -> list[list[int]]:
        """Return the token ids of each text, with beginning-of-text.

        Raises:
            RequestError: a text is empty or too long, there are too many, or an id is not in the vocabulary.
        """
        texts = self.texts
        if len(texts) > MAX_INPUTS:
            raise RequestError(f"input: has {len(texts):,} texts; the maximum is {MAX_INPUTS:,}.", "input")
        try:
            encoded = vocabulary.encode(texts)
        except RequestError as error:
            message = error.message.replace("prompt: ", "input: ").replace("The prompt has", "A text has")
            raise RequestError(message, "input", code=error.code) from None
        found = []
        for place, ids in enumerate(encoded):
            ids = ids if ids[:1] == [vocabulary.begin] else [vocabulary.begin, *ids]
            if len(ids) < 2:
                raise RequestError(f"input[{place}]: has no text.", "input")
            if len(ids) > vocabulary.context:
                raise RequestError(
                    f"The model's context length is {vocabulary.context:,} tokens. input[{place}] has {len(ids):,} "
                    "tokens, including beginning-of-text.",
                    "input",
                    code="context_length_exceeded",
                )
            found.append(ids)
        if (total := sum(map(len, found))) > MAX_TOKENS:
            raise RequestError(f"input: has {total:,} tokens; the maximum is {MAX_TOKENS:,} per request.", "input")
        return found

    def body(self, embeddings: Tensor, num_tokens: int) -> dict[str, Any]:
        """Return the body of the response.

        Args:
            embeddings: fp32, (texts, width).
            num_tokens: number of tokens of all texts.
        """
        rows: list[Any] = embeddings.tolist()
        if self.encoding_format == "base64":
            # Little-endian, as all machines that PyTorch supports write them.
            rows = [base64.b64encode(row.numpy().astype("<f4").tobytes()).decode() for row in embeddings]
        data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return {"object": "list", "data": data, "model": self.model, "usage": usage}


def width_of(model: PreTrainedModel) -> int:
    """Return the number of numbers of an embedding."""
    head: Any = model.get_output_embeddings()
    return int(head.weight.shape[1]) if head is not None else int(model.config.get_text_config().hidden_size)


def embed(
    model: PreTrainedModel,
    ids: Sequence[int],
    adapter: LoadedAdapter | None = None,
    cancelled: threading.Event | None = None,
) -> Tensor:
    """Return the embedding of a text in fp32, (width,).

    Args:
        model: the model, which may be generating in another thread.
        ids: token ids that begin with beginning-of-text, at least two.
        adapter: the adapter to compute with.
        cancelled: set to end early.

    Raises:
        GenerationError: a state is not a number, or the work was cancelled.
    """
    total = torch.zeros(width_of(model))
    with torch.inference_mode(), adapter_hooks.using([adapter], model.device):
        for states in _states(model, torch.tensor([ids], device=model.device)):
            total += states.float().sum(0).cpu()
            if cancelled is not None and cancelled.is_set():
                raise GenerationError("The request was cancelled.", "")
    if total.isnan().any():
        raise GenerationError(NOT_NUMBERS, "")
    return torch.nn.functional.normalize(total, dim=0)


def _states(model: PreTrainedModel, ids: Tensor) -> Iterator[Tensor]:
    """Yield the last hidden states of a text without its first token, chunk by chunk, each (tokens, width)."""
    if find_way(model) == WHOLE or cache_name(model) == STATES:  # a state takes one token at a time later on
        yield _pass(model, input_ids=ids, use_cache=False)[1:]
        return
    cache = new_cache(model)
    for start, piece in zip(range(0, ids.shape[1], _CHUNK), torch.split(ids, _CHUNK, dim=1), strict=True):
        states = _pass(model, input_ids=piece, use_cache=True, past_key_values=cache)
        yield states[1:] if start == 0 else states


def _pass(model: PreTrainedModel, **values: Any) -> Tensor:
    """Return the last hidden states of one pass, (tokens, width)."""
    body = model.base_model
    if body is model:
        states: Tensor = model(output_hidden_states=True, **values).hidden_states[-1][0]
    else:  # without the scores of the vocabulary, which take a third of the time in small models
        states = body(**values)[0][0]
    return states
