"""Keep the frozen matrices of a model in bf16, which halves their memory. Does not know about adapters.

Autocast casts weights to bf16 before each product anyway, so the products are the same. A token embedding that is also
the output layer is kept in bf16 too, and its rows are returned in fp32. So only the embeddings are rounded. Biases,
norms and position embeddings stay in fp32, and so do the files that the weights come from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _HalfLinear(nn.Linear):
    computes_as = nn.Linear

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, _weight_for(self, input), self.bias)


class _HalfConv1D(Conv1D):  # type: ignore[misc]
    computes_as = Conv1D

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = torch.addmm(self.bias, x.view(-1, x.size(-1)), _weight_for(self, x))
        return product.view(*x.shape[:-1], self.nf)


class _HalfEmbedding(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).float()


_HALVES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _HalfLinear,
    Conv1D: _HalfConv1D,
    nn.Embedding: _HalfEmbedding,
}


def keep_in_bf16(model: PreTrainedModel) -> int:
    """Convert the frozen matrices of linear layers and of a tied token embedding to bf16, in place.

    Returns:
        The number of bytes that are saved.
    """
    # A weight is converted only if each module that uses it can be: another one would compute with two types.
    users: dict[int, list[Any]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    saved = 0
    for modules in users.values():
        if not all(type(module) in _HALVES for module in modules):
            continue
        weight = modules[0].weight
        shared = all(module.weight is weight for module in modules)  # False for a bias
        if not shared or weight.requires_grad or weight.dtype != torch.float32:
            continue
        if all(isinstance(module, nn.Embedding) for module in modules):  # only looked up, so no product is rounded
            continue
        weight.data = weight.data.to(torch.bfloat16)
        saved += 2 * weight.numel()
        for module in modules:
            module.__class__ = _HALVES[type(module)]
    # What was read from a file is a view of its memory map, and a single view keeps all pages of the file in memory.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype != torch.bfloat16:
            tensor.data = tensor.data.clone()
    return saved


def restore_fp32(model: PreTrainedModel, read: Callable[[], PreTrainedModel]) -> None:
    """Undo `keep_in_bf16` with the weights of a model that is read again, because the rounding can't be undone.

    The model must have no speed-ups, which replace its classes.
    """
    halves = [(name, module) for name, module in model.named_modules() if type(module) in _HALVES.values()]
    if not halves:
        return
    whole = {half: plain for plain, half in _HALVES.items()}
    original = read().state_dict()
    for name, module in halves:
        weight: Any = module.weight
        weight.data = original[f"{name.replace('.base_layer', '')}.weight"].to(weight.device)
        module.__class__ = whole[type(module)]


@contextlib.contextmanager
def fast_products(model: PreTrainedModel) -> Iterator[None]:
    """Compute in bf16 inside, if `keep_in_bf16` converted the model. Otherwise each product would convert weights."""
    device = next(model.parameters()).device.type
    halves = any(isinstance(module, tuple(_HALVES.values())) for module in model.modules())
    with torch.autocast(device, dtype=torch.bfloat16, enabled=halves):
        yield


def _weight_for(module: Any, input: torch.Tensor) -> torch.Tensor:
    """Return the weight in the type of the product: autocast casts inputs to bf16, without it they are fp32."""
    weight: torch.Tensor = module.weight
    return weight if torch.is_autocast_enabled(input.device.type) else weight.to(input.dtype)
