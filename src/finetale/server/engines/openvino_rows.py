"""Rows of a model in OpenVINO's format, with paged attention (Kwon et al. 2023): keys and values in pages of a pool.

OpenVINO GenAI runs the same kernels with its own scheduler and sampler. Finetale uses its one sampler here too, so that
all parameters of the API and log-probabilities work with every engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetale import environment
from finetale.export.openvino import core
from finetale.models.adapter_hooks import LoadedAdapter
from finetale.server.engines.pages import PageTable

_FIRST_PAGES = 16


class OpenVinoRows:
    """Rows of different lengths in one pass.

    Args:
        source: a model of `export.openvino`, or the file that it was saved to.
        context: maximum tokens per row.
        slots: maximum number of rows.
        exact: compute in fp32 instead of the fastest precision, with keys and values in fp32.
        group: number of activations that share a scale in 8-bit matrix products; 0 for OpenVINO's default.
        fp32: compute in fp32 where the weights are not rounded; a part of what `exact` does.
        memory: maximum bytes of keys and values; raised to what one row of `context` tokens needs. None for what all
            rows need.

    Raises:
        RuntimeError: OpenVINO does not recognise the model's attention, or cannot compile the model.
    """

    name = "openvino"
    takes_adapters = False
    mixes = True
    threads = 1  # OpenVINO's threads spin while they wait, so more torch threads would compete for the cores

    def __init__(
        self,
        source: Path | Any,
        *,
        context: int,
        slots: int = 16,
        exact: bool = False,
        group: int = 0,
        fp32: bool = False,
        memory: int | None = None,
    ) -> None:
        runtime = core()
        import openvino
        from openvino._offline_transformations import paged_attention_transformation

        model = runtime.read_model(source) if isinstance(source, Path) else source.clone()
        try:
            paged_attention_transformation(model)
        except RuntimeError:
            raise RuntimeError("OpenVINO does not find the model's attention") from None
        pools = [port.any_name for port in model.inputs if port.any_name.startswith(("key_cache", "value_cache"))]
        if not pools or any(port.any_name == "beam_idx" for port in model.inputs):
            raise RuntimeError("OpenVINO does not find the model's attention")
        self._picks = _insert_pick(model)
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "KV_CACHE_PRECISION": "f16",  # 8 bits would halve the memory and take 5% longer
            "INFERENCE_NUM_THREADS": environment.num_physical_cores(),
        }
        if exact:
            properties |= {
                "EXECUTION_MODE_HINT": "ACCURACY",
                "INFERENCE_PRECISION_HINT": "f32",
                "KV_CACHE_PRECISION": "f32",
            }
        if fp32:
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        if group:
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
        compiled = runtime.compile_model(model, "CPU", properties)
        self.slots = slots
        self._request = compiled.create_infer_request()
        self._tensor = openvino.Tensor
        ports = {name: compiled.input(name) for name in pools}
        self._shapes = {
            name: (port.element_type, [size.get_length() for size in list(port.partial_shape)[1:]])
            for name, port in ports.items()
        }
        size = next(shape for name, (_, shape) in self._shapes.items() if name.startswith("value"))[1]
        self.block = size  # attention handles one page of new tokens at a time
        self._page_bytes: int = sum(kind.size * math.prod(shape) for kind, shape in self._shapes.values())
        row_pages = -(-context // size)
        allowed = slots * row_pages if memory is None else max(row_pages, memory // self._page_bytes)
        self._table = PageTable(size, min(allowed, slots * row_pages))
        self._capacity = 0

    def join(self, ids: Sequence[int] = (), adapter: LoadedAdapter | None = None) -> int:
        """Add a row that begins with the stored keys and values of the first tokens of `ids`; see Rows."""
        assert adapter is None, "OpenVINO runs merged models"
        assert len(self._table.rows) < self.slots, "no slot is free"
        return self._table.join(ids)

    def copy(self, row: int) -> int:
        """Add a copy of a row."""
        pages = self._table.copy(row)
        self._grow(new for _, new in pages)
        for old, new in pages:
            for name in self._shapes:
                pool = self._request.get_tensor(name).data
                pool[new] = pool[old]
        return len(self._table.rows) - 1

    def leave(self, row: int) -> None:
        """Remove a row."""
        self._table.leave(row)

    def rest(self) -> None:
        """Return the memory of keys and values."""
        self._table.clear()
        if self._capacity > _FIRST_PAGES:
            self._allocate(_FIRST_PAGES, kept=0)

    @property
    def num_bytes(self) -> int:
        """Memory that keys and values take now, in bytes."""
        return self._capacity * self._page_bytes

    def read(self, rows: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Read more tokens of some rows; see Rows."""
        self._table.reserve(rows, [len(more) for more in ids])
        used = [self._table.rows[row] for row in rows]
        past = [row.length for row in used]
        after = [before + len(more) for before, more in zip(past, ids, strict=True)]
        # Only the pages of the tokens: a row keeps pages of a pass that failed.
        tables = [row.pages[: -(-end // self._table.size)] for row, end in zip(used, after, strict=True)]
        self._grow(chain.from_iterable(tables))
        ends = np.array([0, *accumulate(map(len, ids))], np.int32)
        places = [np.arange(before, end) for before, end in zip(past, after, strict=True)]
        feed: dict[str, NDArray[Any]] = {
            "input_ids": np.array([*chain.from_iterable(ids)], np.int64),
            "position_ids": np.concatenate(places).astype(np.int64),
            "past_lens": np.array(past, np.int32),
            "subsequence_begins": ends,
            "block_indices": np.concatenate(tables).astype(np.int32),
            "block_indices_begins": np.array([0, *accumulate(map(len, tables))], np.int32),
            "max_context_len": np.array(max(after), np.int32),
        }
        last = ends[1:].astype(np.int64) - 1
        if self._picks:
            feed["picks"] = np.arange(ends[-1], dtype=np.int64) if every else last
        for name, array in feed.items():
            self._request.set_tensor(name, self._tensor(array))
        self._request.infer()
        for row, more in zip(rows, ids, strict=True):
            self._table.fill(row, more)
        found = torch.from_numpy(self._request.get_tensor("logits").data)
        found = found.reshape(-1, found.shape[-1])
        return (found if every or self._picks else found[torch.from_numpy(last)]).float()

    def _grow(self, pages: Iterable[int]) -> None:
        """Allocate memory for these pages, and for as many again, up to the limit."""
        needed = max(pages, default=-1) + 1
        if needed > self._capacity:
            kept = self._capacity
            self._allocate(min(self._table.limit, max(needed, 2 * self._capacity, _FIRST_PAGES)), kept=kept)

    def _allocate(self, number: int, *, kept: int) -> None:
        """Replace the pools by pools of this many pages, with the first `kept` pages of the old ones."""
        # Allocate all pools before using any: if memory runs out, the old pools stay in use.
        pools = {name: self._tensor(kind, [number, *shape]) for name, (kind, shape) in self._shapes.items()}
        for name, pool in pools.items():
            if kept:
                pool.data[:kept] = self._request.get_tensor(name).data[:kept]
            self._request.set_tensor(name, pool)
        self._capacity = number


def _insert_pick(model: Any) -> bool:
    """Add an input `picks` that selects the tokens to compute scores for; return whether the model allows it.

    The last matrix product is a third of the work in small models. Between it and the scores there may only be
    operations that handle each token separately.
    """
    from openvino import opset13 as ops

    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() in ("Add", "Multiply", "Divide", "Tanh", "Convert", "Result"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul":
        return False
    picks = ops.parameter([-1], dtype=np.int64, name="picks")
    picks.output(0).get_tensor().add_names({"picks"})
    states = node.input_value(0)
    if states.get_partial_shape().rank.get_length() != 3:
        return False
    # After the transformation each token is a separate row, (tokens, 1, width).
    picked = ops.gather(states, picks, ops.constant(0, dtype=np.int64))
    node.input(0).replace_source_output(picked.output(0))
    model.add_parameters([picks])
    model.validate_nodes_and_infer_types()
    return True
