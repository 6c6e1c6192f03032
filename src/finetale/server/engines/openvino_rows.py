"""Rows of a model in OpenVINO's format, with paged attention (Kwon et al. 2023): keys and values in blocks of a pool.

OpenVINO GenAI runs the same kernels with its own scheduler and sampler. Finetale uses its one sampler here too, so that
all parameters of the API and log-probabilities work with every engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetale import environment
from finetale.export.openvino import core

_FIRST_BLOCKS = 16


class OpenVinoRows:
    """Rows of different lengths in one pass.

    Args:
        source: a model of `export.openvino`, or the file that it was saved to.
        context: maximum tokens per row.
        slots: maximum number of rows.
        exact: compute in fp32 instead of the fastest precision, for comparisons.
        group: number of activations that share a scale in 8-bit matrix products; 0 for OpenVINO's default.

    Raises:
        RuntimeError: OpenVINO does not recognise the model's attention, or cannot compile the model.
    """

    name = "openvino"
    threads = 1  # OpenVINO's threads spin while they wait, so more torch threads would compete for the cores

    def __init__(
        self, source: Path | Any, *, context: int, slots: int = 16, exact: bool = False, group: int = 0
    ) -> None:
        runtime = core()
        import openvino
        from openvino._offline_transformations import paged_attention_transformation

        model = runtime.read_model(source) if isinstance(source, Path) else source.clone()
        try:
            paged_attention_transformation(model)
        except RuntimeError:
            raise RuntimeError("OpenVINO does not find the model's attention") from None
        self._pools = [port.any_name for port in model.inputs if port.any_name.startswith(("key_cache", "value_cache"))]
        if not self._pools or any(port.any_name == "beam_idx" for port in model.inputs):
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
        if group:
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
        compiled = runtime.compile_model(model, "CPU", properties)
        self.slots = slots
        self._request = compiled.create_infer_request()
        self._tensor = openvino.Tensor
        ports = {name: compiled.input(name) for name in self._pools}
        self._shapes = {
            name: (port.element_type, [size.get_length() for size in list(port.partial_shape)[1:]])
            for name, port in ports.items()
        }
        value_shape = next(shape for name, (_, shape) in self._shapes.items() if name.startswith("value"))
        self._block = value_shape[1]
        self._max_blocks = slots * -(-context // self._block)
        self._free: list[int] = []
        self._number = 0
        self._blocks: list[list[int]] = []  # by row
        self._lengths: list[int] = []

    def join(self) -> int:
        """Add an empty row."""
        assert len(self._lengths) < self.slots, "no slot is free"
        self._blocks.append([])
        self._lengths.append(0)
        return len(self._lengths) - 1

    def copy(self, row: int) -> int:
        """Add a copy of a row."""
        old = self._blocks[row]
        new = self._take(len(old))
        for name in self._pools:
            pool = self._request.get_tensor(name).data
            pool[new] = pool[old]
        made = self.join()
        self._blocks[made], self._lengths[made] = new, self._lengths[row]
        return made

    def leave(self, row: int) -> None:
        """Remove a row."""
        self._free += self._blocks[row]
        for table in (self._blocks, self._lengths):
            last: Any = table.pop()
            if row < len(table):
                table[row] = last

    def read(self, first: int, ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Read more tokens of consecutive rows; see Rows."""
        rows = range(first, first + len(ids))
        for row, more in zip(rows, ids, strict=True):
            missing = -(-(self._lengths[row] + len(more)) // self._block) - len(self._blocks[row])
            if missing > 0:
                self._blocks[row] += self._take(missing)
        past = [self._lengths[row] for row in rows]
        tables = [self._blocks[row] for row in rows]
        after = [before + len(more) for before, more in zip(past, ids, strict=True)]
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
        self._lengths[first : first + len(ids)] = after
        found = torch.from_numpy(self._request.get_tensor("logits").data)
        found = found.reshape(-1, found.shape[-1])
        return (found if every or self._picks else found[torch.from_numpy(last)]).float()

    def _take(self, number: int) -> list[int]:
        while len(self._free) < number:
            self._grow()
        taken, self._free = self._free[:number], self._free[number:]
        return taken

    def _grow(self) -> None:
        """Double the pool, up to the need of all slots."""
        old, number = self._number, min(self._max_blocks, max(2 * self._number, _FIRST_BLOCKS))
        assert number > old, "more blocks are asked for than rows can have"
        # Allocate all pools before using any: if memory runs out, the old pools stay in use.
        pools = {name: self._tensor(kind, [number, *shape]) for name, (kind, shape) in self._shapes.items()}
        for name, pool in pools.items():
            if old:
                pool.data[:old] = self._request.get_tensor(name).data
            self._request.set_tensor(name, pool)
        self._number = number
        self._free += range(old, number)


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
