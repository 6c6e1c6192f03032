"""Compute causal attention within each packed document, without a mask over all pairs of tokens.

Pairs of tokens in different documents cost almost no work. The module registers an attention implementation with
transformers. A caller that packs documents passes their borders within a single row as `cu_seq_lens_q`, as for the
flash kernels. Without this argument, as in generation, PyTorch's own attention is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from finetale.speed import flash
from finetale.speed.allocator import temporary
from finetale.speed.loss import compute_type
from finetale.speed.modules import keep_mask

NAME = "finetale"
_UNSUPPORTED_ARGUMENTS = ("sliding_window", "softcap", "position_bias", "s_aux", "indices")
"""Arguments that transformers passes for attention other than plain causal attention."""
_UNSUPPORTED_FIELDS = ("sliding_window", "attention_chunk_size", "index_topk", "attn_logit_softcapping")
"""Config fields that select attention other than plain causal attention."""
_TILE = {torch.bfloat16: 192, torch.float32: 96}
"""Queries per tile. Smaller tiles need more calls; larger tiles compute more pairs that are then masked."""
_KEPT_KEYS = 512
"""Length of a document up to which its attention weights are kept for the backward pass. Their memory grows with the
square of the length."""


def register() -> None:
    """Register the implementation with transformers. A second call changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


@cache
def has_amx() -> bool:
    """Return whether the processor has matrix instructions (AMX). With them PyTorch's flash kernel is fast."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return check is not None and bool(check())


def is_plain(config: Any) -> bool:
    """Return whether a config describes plain causal attention in all layers."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "use_sliding_window", True)  # Qwen's config has a window that is switched off
    set_names = [name for name in _UNSUPPORTED_FIELDS if getattr(config, name, None) is not None]
    if not windowed and "sliding_window" in set_names:
        set_names.remove("sliding_window")
    return kinds == {"full_attention"} and not set_names


def has_kernel(device: torch.device, head_size: int, dropout: float) -> bool:
    """Return whether there is a kernel for packed documents: tiles on a CPU, flash attention on newer GPUs in bf16."""
    if device.type == "cpu":
        return True
    if device.type != "cuda" or head_size % 8 or head_size > 256 or torch.cuda.get_device_capability(device)[0] < 8:
        return False
    return flash.is_right(device, head_size, dropout)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention. transformers calls this function with its own signature.

    Args:
        query: shape (batch, heads, time, head size). `key` and `value` may have fewer heads.
        cu_seq_lens_q: borders of the documents, int32, from 0 to time. If it is given, batch must be 1.
        max_length_q: length of the longest document, in tokens.

    Returns:
        The output, shape (batch, time, heads, head size), and None instead of the attention weights.

    Raises:
        ValueError: if documents are packed and the model asks for more than plain causal attention.
    """
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return output, None
    unsupported = [name for name in _UNSUPPORTED_ARGUMENTS if options.get(name) is not None]
    if unsupported:
        raise ValueError(f"packed attention does not support {unsupported[0]}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Rotary embeddings leave query and key in fp32 under autocast. PyTorch's attention casts them too.
    dtype = compute_type(query)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.device.type == "cpu":
        return _tiled(query, key, value, cu_seq_lens_q, scale, dropout), None
    if query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16):
        longest = query.shape[2] if max_length_q is None else max_length_q
        return flash.attention(query, key, value, cu_seq_lens_q, longest, scale, dropout), None
    return flash.masked_attention(query, key, value, cu_seq_lens_q, scale, dropout), None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _tiled(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    output: torch.Tensor = _TiledAttention.apply(  # type: ignore[no-untyped-call]
        query[0], key[0], value[0], tuple(borders.tolist()), scale, dropout
    )
    return output[None]


@dataclass(frozen=True)
class Tile:
    """Queries [start, stop) that are computed together, and their keys [first, stop).

    `hidden`, shape (stop - start, stop - start), is True where a query must not see a key. It covers the last
    stop - start keys. All queries of the tile see the keys before those.
    """

    start: int
    stop: int
    first: int
    hidden: torch.Tensor
    _addends: dict[tuple[int, torch.dtype], torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def addend(self, groups: int, dtype: torch.dtype) -> torch.Tensor:
        """Return `hidden` as -inf and 0, each row once per group, shape ((stop - start) x groups, stop - start)."""
        if (groups, dtype) not in self._addends:
            addend = torch.zeros(self.hidden.shape, dtype=dtype).masked_fill_(self.hidden, float("-inf"))
            self._addends[groups, dtype] = addend.repeat_interleave(groups, dim=0)
        return self._addends[groups, dtype]


@lru_cache(maxsize=8)
def tiles_of(borders: tuple[int, ...], size: int) -> tuple[Tile, ...]:
    """Return tiles of at most `size` queries. A tile holds a piece of a long document, or several short documents."""
    future = torch.ones(size, size, dtype=torch.bool).triu(1)
    tiles = []
    number, last = 0, len(borders) - 1
    while number < last:
        start, stop = borders[number], borders[number + 1]
        following = number + 1
        if stop - start > size:
            for at in range(start, stop, size):
                end = min(stop, at + size)
                tiles.append(Tile(at, end, start, future[: end - at, : end - at]))
        else:
            while following < last and borders[following + 1] - start <= size:
                following += 1
            stop = borders[following]
            if stop > start:
                hidden = _hidden(borders[number : following + 1]) | future[: stop - start, : stop - start]
                tiles.append(Tile(start, stop, start, hidden))
        number = following
    return tuple(tiles)


def _hidden(borders: Sequence[int]) -> torch.Tensor:
    """Return True for each pair of positions in different documents, shape (positions, positions)."""
    lengths = torch.tensor(borders).diff()
    document = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return document[:, None] != document[None, :]


class _TiledAttention(torch.autograd.Function):
    """Attention tile by tile, with batched matrix products. On a CPU faster than PyTorch's flash kernels.

    Query heads that share a key head are rows of one product, so keys and values are not repeated. The attention
    weights of long documents are computed again in the backward pass; those of others are kept. On processors with AMX
    the output of long documents comes from PyTorch's flash kernel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        borders: tuple[int, ...],
        scale: float,
        dropout: float,
    ) -> torch.Tensor:
        heads, time, _ = query.shape
        groups = heads // len(key)
        rows, borders = _equal_rows(borders)
        tiles = tiles_of(borders, _TILE.get(query.dtype, 128))
        long = {start: stop for start, stop in pairwise(borders) if stop - start > _KEPT_KEYS}
        flash = has_amx() and query.dtype == torch.bfloat16 and not dropout
        with torch.autocast("cpu", enabled=False):  # the arguments already have the right type
            query, key, value = _folded(query * scale, rows, groups), _folded(key, rows), _folded(value, rows)
            output = query.new_empty(rows, time // rows, len(key) // rows, groups, value.shape[2])
            kept = _masks(tiles, len(query), groups, dropout)
            weights: list[torch.Tensor | None] = []
            for number, tile in enumerate(tiles):
                if tile.first in long and flash:
                    weights.append(None)
                    continue
                again = tile.first in long  # whether the backward pass computes the weights again
                weight = _weights(query, key, tile, groups, temporarily=again)
                weights.append(None if again else weight)
                if kept:
                    weight = torch.mul(weight, kept[number], out=_array("used", weight))
                mixed = torch.bmm(
                    weight, value[:, tile.first : tile.stop]
                )  # (rows x key heads, queries x groups, size)
                mixed = mixed.view(rows, -1, tile.stop - tile.start, groups, mixed.shape[2])
                output[:, tile.start : tile.stop] = mixed.transpose(1, 2)
            for start, stop in long.items() if flash else ():
                asked = query[:, start * groups : stop * groups].view(len(query), -1, groups, query.shape[2])
                keys, values = (x[:, None, start:stop] for x in (key, value))
                mixed = F.scaled_dot_product_attention(
                    asked.transpose(1, 2), keys, values, is_causal=True, scale=1.0, enable_gqa=True
                )  # (rows x key heads, groups, time, size)
                output[:, start:stop] = mixed.view(rows, -1, *mixed.shape[1:]).permute(0, 3, 1, 2, 4)
        ctx.save_for_backward(query, key, value, *kept, *weights)
        ctx.rows, ctx.groups, ctx.tiles, ctx.scale, ctx.dropout = rows, groups, tiles, scale, dropout
        output = output.view(time, heads, -1)
        return output.mul_(1 / (1 - dropout)) if dropout else output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *rest = ctx.saved_tensors
        groups, count = ctx.groups, len(ctx.tiles)
        kept, weights = (rest[:count], rest[count:]) if ctx.dropout else ([], rest)
        gradient = _folded(outer[0].transpose(0, 1), ctx.rows, groups)
        if ctx.dropout:
            gradient = gradient * (1 / (1 - ctx.dropout))
        to_query = torch.empty_like(query)
        wide = torch.promote_types(key.dtype, torch.float32)
        to_key, to_value = (torch.zeros_like(x, dtype=wide) for x in (key, value))
        for number, tile in enumerate(ctx.tiles):
            asked, seen = slice(tile.start * groups, tile.stop * groups), slice(tile.first, tile.stop)
            weight = weights[number]
            if weight is None:
                weight = _weights(query, key, tile, groups, temporarily=True)
            used = torch.mul(weight, kept[number], out=_array("used", weight)) if kept else weight
            # Not `+=`, which copies the slice onto itself after the addition.
            to_value[:, seen].add_(torch.bmm(used.transpose(1, 2), gradient[:, asked]))
            to_scores = torch.bmm(gradient[:, asked], value[:, seen].transpose(1, 2), out=_array("to scores", weight))
            if kept:
                to_scores *= kept[number]
            torch.ops.aten._softmax_backward_data.out(to_scores, weight, 2, weight.dtype, grad_input=to_scores)
            to_query[:, asked] = torch.bmm(to_scores, key[:, seen])
            to_key[:, seen].add_(torch.bmm(to_scores.transpose(1, 2), query[:, asked]))
        to_query = _unfolded(to_query.mul_(ctx.scale), ctx.rows, groups)
        return to_query, *(_unfolded(x.to(key.dtype), ctx.rows) for x in (to_key, to_value)), None, None, None


def _weights(query: torch.Tensor, key: torch.Tensor, tile: Tile, groups: int, *, temporarily: bool) -> torch.Tensor:
    """Return the attention weights of a tile, shape (rows x key heads, queries x groups, keys).

    `query` is scaled and folded with its groups, `key` is folded.
    """
    asked = query[:, tile.start * groups : tile.stop * groups]
    seen = key[:, tile.first : tile.stop]
    shape = (len(query), asked.shape[1], seen.shape[1])
    scores = temporary("weights", shape, query.dtype) if temporarily else query.new_empty(shape)
    torch.bmm(asked, seen.transpose(1, 2), out=scores)
    # An addition is many times as fast as masked_fill_, which PyTorch computes value by value.
    scores[:, :, tile.start - tile.first :].add_(tile.addend(groups, scores.dtype))
    return torch.softmax(scores, dim=2, out=scores)


def _array(name: str, like: torch.Tensor) -> torch.Tensor:
    return temporary(f"attention {name}", tuple(like.shape), like.dtype)


def _equal_rows(borders: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return the number of rows and the borders within each row.

    If all documents have the same length, each is a row of a batch. Otherwise there is one row with all documents.
    """
    number = len(borders) - 1
    length = borders[-1] // number
    if all(border == index * length for index, border in enumerate(borders)):
        return number, (0, length)
    return 1, borders


def _folded(x: torch.Tensor, rows: int, groups: int = 1) -> torch.Tensor:
    """Reshape (heads, time, size) to (rows x heads / groups, time / rows x groups, size), contiguous.

    The heads of a group are next to each other for each position, so that a range of positions is a range of rows.
    """
    heads, time, size = x.shape
    folded = x.reshape(heads // groups, groups, rows, time // rows, size).permute(2, 0, 3, 1, 4)
    return folded.reshape(rows * heads // groups, time // rows * groups, size).contiguous()


def _unfolded(x: torch.Tensor, rows: int, groups: int = 1) -> torch.Tensor:
    """Invert `_folded`."""
    both, length, size = x.shape
    heads, time = both // rows * groups, length // groups * rows
    unfolded = x.view(rows, heads // groups, time // rows, groups, size).permute(1, 3, 0, 2, 4)
    return unfolded.reshape(heads, time, size)


def _masks(tiles: tuple[Tile, ...], batch: int, groups: int, dropout: float) -> list[torch.Tensor]:
    """Return a dropout mask for the weights of each tile, True where a weight is kept. Empty without dropout."""
    if not dropout:
        return []
    shapes = [(batch, (tile.stop - tile.start) * groups, tile.stop - tile.first) for tile in tiles]
    sizes = [a * b * c for a, b, c in shapes]
    pieces = torch.split(keep_mask(sum(sizes), 1 - dropout), sizes)
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
