"""Compute the loss of every token of a batch, and isolate the documents of a packed row from each other.

The right way to isolate documents depends on the model's code, so `find_route` tests it. A small batch of two packed
documents must give the same logits as each document alone. `find_route` tries, in this order:

1. the attention of `finetale.speed`, which receives the borders of the documents;
2. positions that restart in each document, without an attention mask, as in transformers;
3. an explicit attention mask;
4. one row per document, which always works.

It also tests whether the logits are exactly the last hidden states times the output layer. If so, the loss is computed
without keeping all logits. Does not know about training or evaluation.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetale import speed
from finetale.blocks import IGNORE, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Integers = NDArray[np.int64]
_DENSE = 0.9
"""Share of learned targets above which logits are computed for all, because to select rows costs a copy."""
_TOLERANCE = 1e-3  # largest difference of two logits that count as equal, relative to the largest logit
_BY_BORDERS = "document borders passed to attention"
_BY_POSITION = "restarting positions"
_BY_MASK = "explicit mask"
_BY_ROW = "one row per document"


@dataclass(frozen=True)
class Route:
    """A way to compute a model's losses.

    Attributes:
        isolation: the way to isolate documents.
        head: whether the logits are exactly the last hidden states times the output layer.
        tied: whether the weights of the output layer are also those of the embedding, which only looks them up.
    """

    isolation: str
    head: bool = False
    tied: bool = False

    @property
    def packs(self) -> bool:
        """Whether the attention receives the borders of the documents."""
        return self.isolation == _BY_BORDERS

    def to_dict(self) -> dict[str, str]:
        """Return a description for run.json."""
        return {"documents": self.isolation, "logits": "in chunks" if self.head else "all at once"}


class PackedForward:
    """Compute the token losses of packed batches.

    Args:
        model: a causal language model. It may be wrapped (DDP), if the wrapper takes the same arguments.
        precision: "fp32", or "bf16" for autocast.
        route: the way to compute the losses; None calls `find_route`.
        compiled: whether to use torch.compile. Then all batches should have the same shape.
    """

    def __init__(
        self, model: torch.nn.Module, *, precision: str = "fp32", route: Route | None = None, compiled: bool = False
    ) -> None:
        self.model = model
        self.precision = precision
        self.device = next(model.parameters()).device
        self.route = route or find_route(model)
        if not hasattr(model, "get_output_embeddings"):  # wrapped; the whole pass must go through the wrapper
            self.route = Route(self.route.isolation)
        self._compiled = torch.compile(_module(model, self.route), dynamic=False) if compiled else None
        self._room = 64  # documents per compiled pass

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """Return the negative log-likelihood of each target in nats, fp32, shape (batch, time); 0 where it is IGNORE.

        Computes no gradients. For training, use `loss`.
        """
        labels = _on(self.device, batch.labels)
        with self.autocast(), torch.no_grad():
            if self.route.head:
                states, head = self._outputs(batch).flatten(0, 1), _head(self.model)
                rows, flat = self._learned_rows(batch), labels.flatten()
                if rows is None:
                    losses = speed.linear_cross_entropy(states, head.weight, head.bias, flat, IGNORE)
                else:
                    losses = torch.zeros(len(flat), dtype=torch.float32, device=self.device)
                    losses[rows] = speed.linear_cross_entropy(states[rows], head.weight, head.bias, flat[rows], IGNORE)
            else:
                logits = self._outputs(batch)  # (batch, time, vocabulary)
                losses = speed.cross_entropy(logits.flatten(0, 1), labels.flatten(), IGNORE)
        return losses.view_as(labels)

    def hits(self, batch: Batch) -> torch.Tensor:
        """Return whether each target has the largest logit, shape (batch, time); False where there is no target."""
        labels = _on(self.device, batch.labels)
        with self.autocast(), torch.no_grad():
            outputs = self._outputs(batch)
            if self.route.head:
                head = _head(self.model)
                found = speed.most_likely(outputs.flatten(0, 1), head.weight, head.bias).view(labels.shape)
                return found == labels
            # Logits in bf16 are often equal; each of the largest counts as a hit.
            logits = outputs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            return (logits >= outputs.amax(-1)) & (labels != IGNORE)

    def loss(self, batch: Batch, scale: float = 1.0) -> torch.Tensor:
        """Return `scale` times the sum of the losses of a batch, fp32, with gradients."""
        labels = _on(self.device, batch.labels).flatten()
        with self.autocast():
            if not self.route.head:
                logits = self._outputs(batch)
                return speed.cross_entropy(logits.flatten(0, 1), labels, IGNORE).sum() * scale
            head = _head(self.model)
            tied = _tied(self.model) if self.route.tied and head.weight.requires_grad else None
            states = self._outputs(batch, tied).flatten(0, 1)
            if self._compiled is None and (rows := self._learned_rows(batch)) is not None:
                states, labels = states[rows], labels[rows]
            saves = speed.has_half_gradient(head.weight) or not head.weight.requires_grad
            if saves:
                speed.release_holes()
            total = speed.summed_cross_entropy(
                states, head.weight, head.bias, labels, IGNORE, scale, tied, self._compiled is not None
            )
            if saves:
                speed.release_holes()
            return total

    def _learned_rows(self, batch: Batch) -> torch.Tensor | None:
        """Return the indices of the targets to compute logits for. None if nearly all targets are learned, or none."""
        learned = np.flatnonzero(batch.labels.ravel() != IGNORE)  # on the host, so that no device is waited for
        return _on(self.device, learned) if 0 < len(learned) <= _DENSE * batch.labels.size else None

    def _outputs(self, batch: Batch, tied: speed.TiedWeights | None = None) -> torch.Tensor:
        if self._compiled is not None:
            number = len(_borders(batch.documents)) - 1
            if number > self._room:  # another shape is compiled again, so leave room for batches with more documents
                self._room = 1 << (number + number // 2).bit_length()
        return _outputs(self.model, batch, self.route, tied, self._compiled, self._room)

    def loss_bytes(self, tokens: int, vocabulary: int) -> int:
        """Return the memory for logits and their gradient in bytes, without what autograd keeps of the model."""
        each = 2 if self.precision == "bf16" else 4
        if self.route.head:
            copies = 1 if self.device.type == "cpu" else 1 + 3 * 4 // each  # the chunk and three fp32 copies
            return copies * speed.chunk_bytes(tokens, vocabulary, each, self.device)
        # On a CPU one gradient in the type of the logits (speed.cross_entropy), elsewhere three fp32 arrays.
        return (each if self.device.type == "cpu" else 3 * 4) * vocabulary * tokens

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the autocast context of a pass. Several passes in one context share the bf16 copies of the weights."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def no_autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of a backward pass inside `autocast`. It uses the types of the forward pass."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, enabled=False)
        return contextlib.nullcontext()


def find_route(model: PreTrainedModel) -> Route:
    """Return the fastest way to compute a model's losses that gives the logits of each document alone."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    lengths = (7, 5)
    inputs = np.concatenate([np.arange(7), np.arange(5) * 3 + 1]) % vocabulary
    positions = np.concatenate([np.arange(length) for length in lengths])
    rows = [row[None].astype(np.int64) for row in (inputs, inputs, positions, np.repeat([0, 1], lengths), inputs)]
    batch = Batch(*rows)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = _outputs(model, batch, Route(_BY_ROW)).float()
            scale = alone.abs().max().clamp(min=1.0)

            def agrees(route: Route) -> bool:
                try:
                    outputs = _outputs(model, batch, route, _tied(model) if route.tied else None)
                    if route.head:
                        head = _head(model)
                        outputs = torch.nn.functional.linear(outputs, head.weight.to(outputs.dtype), head.bias)
                except (TypeError, ValueError, RuntimeError, AttributeError):
                    return False
                return bool((outputs.float() - alone).abs().max() <= _TOLERANCE * scale)

            ways = [_BY_POSITION, _BY_MASK]
            if speed.packs_documents(model):
                ways.insert(0, _BY_BORDERS)
            isolation = next((way for way in ways if agrees(Route(way))), _BY_ROW)
            plain = speed.is_applied(model) and not _changes_logits(model.config)
            if not plain or not agrees(Route(isolation, head=True)):
                return Route(isolation)
            same = (
                _is_lookup(model.get_input_embeddings()) and _head(model).weight is model.get_input_embeddings().weight
            )
            return Route(isolation, head=True, tied=same and agrees(Route(isolation, head=True, tied=True)))
    finally:
        model.train(was_training)


def _module(model: torch.nn.Module, route: Route) -> torch.nn.Module:
    module = model.base_model if route.head else model
    assert isinstance(module, torch.nn.Module)
    return module


def _outputs(
    model: torch.nn.Module,
    batch: Batch,
    route: Route,
    tied: speed.TiedWeights | None = None,
    compiled: Any = None,
    room: int = 0,
) -> torch.Tensor:
    """Return the logits, shape (batch, time, vocabulary), or with `route.head` the last hidden states, (…, width).

    Args:
        compiled: the module as torch.compile returns it. Its shapes do not depend on the documents.
        room: largest number of documents in a compiled pass.
    """
    device = next(model.parameters()).device
    module = _module(model, route) if compiled is None else compiled

    def run(tokens: torch.Tensor, **arguments: Any) -> torch.Tensor:
        words = {"input_ids": tokens} if tied is None else {"inputs_embeds": tied.embed(tokens)}
        outputs = module(use_cache=False, **words, **arguments)
        result: torch.Tensor = outputs.last_hidden_state if route.head else outputs.logits
        return result

    inputs = _on(device, batch.inputs)
    if route.isolation == _BY_ROW:
        return _row_by_row(run, inputs, batch.documents)
    positions = _on(device, batch.positions)
    if route.isolation == _BY_BORDERS:
        borders = _borders(batch.documents)
        longest = int(np.diff(borders).max())
        if compiled is not None:  # every new shape would be compiled again
            borders, longest = np.pad(borders, (0, room + 1 - len(borders)), mode="edge"), inputs.shape[1]
        on_device = _on(device, borders)
        flat = run(
            inputs.view(1, -1),
            position_ids=positions.view(1, -1),
            attention_mask=torch.ones(
                1, 1, 1, 1, dtype=torch.bool, device=device
            ),  # so that transformers builds no mask
            cu_seq_lens_q=on_device,
            cu_seq_lens_k=on_device,
            max_length_q=longest,
            max_length_k=longest,
        )
        return flat.view(*inputs.shape, -1)
    arguments = {"position_ids": positions}
    if route.isolation == _BY_MASK:
        documents = _on(device, batch.documents)
        same = documents[:, :, None] == documents[:, None, :]
        arguments["attention_mask"] = (same & torch.ones_like(same).tril())[:, None]  # (batch, 1, query, key)
        if "position_ids" not in inspect.signature(_module(model, route).forward).parameters:
            del arguments["position_ids"]
    return run(inputs, **arguments)


def _row_by_row(run: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, documents: Integers) -> torch.Tensor:
    """Unpack documents into one row each, run the model, and pack the outputs again.

    The rows are padded on the right, where causal attention does not look.
    """
    pieces = list(torch.split(inputs.flatten(), np.diff(_borders(documents)).tolist()))
    outputs = run(torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True))
    flat = torch.cat([outputs[index, : len(piece)] for index, piece in enumerate(pieces)])
    return flat.view(*inputs.shape, -1)


def _borders(documents: Integers) -> NDArray[np.int32]:
    """Return the first position of each document in the flattened rows, and the end of the last one.

    A new row always begins a new document.
    """
    starts = np.ones(documents.shape, bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return np.append(np.flatnonzero(starts), documents.size).astype(np.int32)


def _head(model: torch.nn.Module) -> torch.nn.Linear:
    head: torch.nn.Linear = model.get_output_embeddings()  # type: ignore[operator]
    return head


def _tied(model: Any) -> speed.TiedWeights:
    return speed.TiedWeights(_head(model).weight, model.get_input_embeddings().padding_idx)


def _is_lookup(embedding: torch.nn.Module) -> bool:
    """Return whether an embedding does nothing but look up rows."""
    if type(embedding) is not torch.nn.Embedding:
        return False
    return embedding.max_norm is None and not embedding.scale_grad_by_freq and not embedding.sparse


def _changes_logits(config: Any) -> bool:
    """Return whether a config caps or scales the logits. The small batch of `find_route` may not reveal it."""
    config = config.get_text_config()
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return any(getattr(config, name, None) not in (None, 1, 1.0) for name in names)


def _on(device: torch.device, array: np.ndarray[Any, Any]) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
