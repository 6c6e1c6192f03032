"""Run several adapters on one copy of their base's weights: each text of a batch can use another adapter, or none.

`add_hooks` puts a hook on each linear layer. Within `using`, the hook adds the low-rank part of a text's adapter to
what the layer computes for that text, as in S-LoRA (Sheng et al. 2023, arXiv:2311.03285). The weights do not change, so
an adapter can be loaded, replaced and dropped while the model computes. Knows nothing of training.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from finetale.models import adapter_files, adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HOOKED = "finetale_adapter_hooks"
_PROBE_RANK = 2


@dataclass(frozen=True, slots=True)
class LayerUpdate:
    """What an adapter adds to one layer.

    Attributes:
        down: matrix A, (inputs, rank).
        up: matrix B with its factor, (rank, outputs).
        scale: factor of the layer's own product, (outputs,); None for 1. DoRA has one.
        shift: what the scale must not multiply: bias x (1 - scale), (outputs,); None without a bias or a scale.
    """

    down: Tensor
    up: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None

    def added_to(self, output: Tensor, input: Tensor) -> Tensor:
        """Return the layer's output with the adapter's part, (…, outputs), for an input of shape (…, inputs)."""
        if self.scale is not None:
            output = output * self.scale
            if self.shift is not None:
                output = output + self.shift
        return output + input @ self.down @ self.up


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """An adapter in memory, in the type and on the device of its base. It never changes.

    Attributes:
        name: name of the adapter.
        updates: what it adds, by the names of the layers.
        number: a number that no other adapter has.
    """

    name: str
    updates: Mapping[str, LayerUpdate]
    number: int = field(default_factory=itertools.count(1).__next__)

    @property
    def num_bytes(self) -> int:
        """Memory of the matrices, in bytes."""
        tensors = [tensor for each in self.updates.values() for tensor in (each.down, each.up, each.scale, each.shift)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def load_adapter(model: PreTrainedModel, folder: Path, name: str) -> LoadedAdapter:
    """Read an adapter folder for a model, which stays as it is.

    Raises:
        ModelError: the files can't be read, the adapter is of another kind, or it does not fit the model.
    """
    fit = adapters.fit_of(model, folder, name)
    tensors = adapters.without_copies(model, adapter_files.read_tensors(folder), name)
    updates = {}
    for layer, module in fit.layers.items():
        down, up, *magnitude = (tensors[key].float() for key in fit.tensors_of(layer))
        updates[layer] = _update(module, down.t(), up.t() * fit.factor, magnitude[0] if magnitude else None)
    return LoadedAdapter(name, updates)


@torch.no_grad()
def _update(module: torch.nn.Module, down: Tensor, up: Tensor, magnitude: Tensor | None) -> LayerUpdate:
    """Return the update of a layer: down (inputs, rank), up (rank, outputs), magnitude (outputs,)."""
    weight = adapters.matrix_of(module)
    down, up = down.to(weight.device), up.to(weight.device)

    def placed(tensor: Tensor) -> Tensor:
        return tensor.to(weight.dtype).contiguous()

    if magnitude is None:
        return LayerUpdate(placed(down), placed(up))
    norms = (weight.float() + (down @ up).t()).norm(dim=1)
    scale = magnitude.float().to(weight.device) / norms
    bias: Any = getattr(module, "bias", None)
    shift = None if bias is None else placed(bias.float() * (1 - scale))
    return LayerUpdate(placed(down), placed(up * scale), placed(scale), shift)


def probe(model: PreTrainedModel) -> LoadedAdapter:
    """Return an adapter of all linear layers with small random values, to test how a model's code takes adapters."""
    drawn = torch.Generator().manual_seed(0)
    updates = {}
    for layer, module in adapters.adaptable_layers(model):
        weight = adapters.matrix_of(module).detach()
        outputs, inputs = weight.shape
        # As large as the layer's own outputs, so that a text with the wrong adapter is noticed.
        down = torch.randn(inputs, _PROBE_RANK, generator=drawn)
        up = torch.randn(_PROBE_RANK, outputs, generator=drawn) * weight.float().std().cpu()
        updates[layer] = LayerUpdate(down.to(weight), up.to(weight))
    return LoadedAdapter("probe", updates)


class _Current(threading.local):
    """The adapters of the pass that a thread computes.

    Attributes:
        texts: number of texts in the pass.
        parts: each adapter with the numbers of its texts; None for all texts.
    """

    texts = 0
    parts: tuple[tuple[LoadedAdapter, Tensor | None], ...] = ()


_current = _Current()


@contextmanager
def using(chosen: Sequence[LoadedAdapter | None], device: torch.device | str = "cpu") -> Iterator[None]:
    """Compute with the given adapters inside the context, in this thread.

    Args:
        chosen: the adapter of each text of the batch, None for the base alone. One for all texts is computed whatever
            shape the layers' inputs have. Several need inputs of shape (texts, tokens, width) or (texts x tokens,
            width), else the hook raises a ValueError.
        device: device of the model.
    """
    before = _current.texts, _current.parts
    found: dict[LoadedAdapter, list[int]] = {}
    for text, adapter in enumerate(chosen):
        if adapter is not None:
            found.setdefault(adapter, []).append(text)
    _current.texts = len(chosen)
    _current.parts = tuple(
        (adapter, None if len(texts) == len(chosen) else torch.tensor(texts, device=device))
        for adapter, texts in found.items()
    )
    try:
        yield
    finally:
        _current.texts, _current.parts = before


def add_hooks(model: PreTrainedModel) -> None:
    """Put the hooks on all layers that an adapter can have matrices for. A second call changes nothing."""
    if getattr(model, _HOOKED, False):
        return
    for name, module in adapters.adaptable_layers(model):
        module.register_forward_hook(_hook_of(name))
    setattr(model, _HOOKED, True)


def _hook_of(layer: str) -> Any:
    def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not _current.parts:
            return None
        for adapter, texts in _current.parts:
            update = adapter.updates.get(layer)
            if update is not None:
                output = _added(update, texts, inputs[0], output)
        return output

    return hook


def _added(update: LayerUpdate, texts: Tensor | None, input: Tensor, output: Tensor) -> Tensor:
    """Return the output with an update for some texts of the batch, or for all."""
    if texts is None:
        return update.added_to(output, input)
    if input.ndim > 3 or (input.ndim == 3 and len(input) != _current.texts) or len(input) % _current.texts:
        raise ValueError(f"a layer's input has the shape {tuple(input.shape)} for {_current.texts} texts")
    shape = output.shape
    output = output.reshape(_current.texts, -1, shape[-1])
    mine = input.reshape(_current.texts, -1, input.shape[-1])[texts]
    output[texts] = update.added_to(output[texts], mine)
    return output.reshape(shape)
