"""Convert a transformers model to OpenVINO's format, with the key/value cache as state and weights in int8.

The conversion traces the model's own code. The caller must compare the result with PyTorch before using it. OpenVINO's
usual exporter, optimum-intel, requires old versions of transformers, so it is not used.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from finetale import models
from finetale.environment import versions
from finetale.errors import ModelError
from finetale.export.runtimes import FolderRuntime, Scores
from finetale.export.tracing import Explicit, cache_shapes, silent, traceable
from finetale.models import LoadedModel

VERSION = 3
"""Number of the conversion. Raise it when the same weights would give a different model, here or in the server."""

_FILE = "openvino_model.xml"


@cache
def core() -> Any:
    """Return OpenVINO's runtime, with the telemetry of OpenVINO and its tools switched off."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    found = openvino.Core()
    found.set_property({"ENABLE_MMAP": False})  # overwriting a mapped file would crash the process
    return found


def last_line(error: Exception) -> str:
    """Return the last line of an error of OpenVINO, at most 200 characters; the lines before it are a stack trace."""
    return (str(error).strip().splitlines() or [""])[-1][:200]


def save(model: Any, file: Path) -> None:
    """Write a model as FILE.xml and FILE.bin.

    Raises:
        OSError: the files cannot be written. Nothing is left of them.
    """
    core()
    import openvino

    needed = sum(node.get_byte_size() for node in model.get_ops() if node.get_type_name() == "Constant")
    free = shutil.disk_usage(file.parent).free
    size = f"{max(1, round(needed / 1e6)):,} MB are needed"
    if free < needed:
        raise OSError(errno.ENOSPC, f"no space left: {size}, and {round(free / 1e6):,} MB are free", str(file))
    try:
        openvino.save_model(model, file, compress_to_fp16=False)
    except RuntimeError:  # OpenVINO raises nothing more specific, and its message names a class of C++
        for part in (file, file.with_suffix(".bin")):
            part.unlink(missing_ok=True)
        raise OSError(errno.EIO, f"writing failed ({size})", str(file)) from None


def convert(model: PreTrainedModel) -> Any:
    """Convert a model to an `openvino.Model` in fp32.

    Its inputs are input_ids, attention_mask and position_ids of shape (rows, tokens) and beam_idx of shape (rows,); its
    output is logits. OpenVINO's own tools for language models take this form.

    Raises:
        Exception: of many types, when the model's code cannot be traced or OpenVINO lacks an operation.
    """
    core()
    import openvino

    with traceable(model), _freeing_traces():
        shapes = cache_shapes(model)
        names = ["input_ids", "attention_mask", "position_ids"]
        past = [f"past.{layer}.{part}" for layer in range(len(shapes)) for part in ("key", "value")]
        present = [name.replace("past", "present") for name in past]
        # Two rows of three tokens after two tokens. No size is 1, because tracing would make that size a constant.
        ids, mask = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
        positions = torch.arange(2, 5).repeat(2, 1)
        caches = [torch.zeros(2, heads, 2, width) for pair in shapes for heads, width in pair]
        converted = openvino.convert_model(Explicit(model), example_input=(ids, mask, positions, *caches))
    sizes = [size for pair in shapes for size in pair]
    for port, name in zip(converted.inputs, [*names, *past], strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
        shape = [-1, -1] if name in names else [-1, sizes[past.index(name)][0], -1, sizes[past.index(name)][1]]
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
    for port, name in zip(converted.outputs, ["logits", *present], strict=True):
        port.get_tensor().set_names({name})
    converted.validate_nodes_and_infer_types()
    _hold_state(converted, dict(zip(past, present, strict=True)), dict(zip(past, sizes, strict=True)))
    return converted


def check(loaded: LoadedModel) -> None:
    """See Exporter. What can't be traced is found by the conversion."""


def write(loaded: LoadedModel, folder: Path, weights: str) -> None:
    """See Exporter. The names of the files are those that OpenVINO's own tools use."""
    core()
    import openvino

    try:
        converted = convert(loaded.model)
        if weights != "fp16":
            converted = compress(converted, symmetric=False) if weights == "int8" else _in_four_bits(converted)
    except Exception as error:  # OpenVINO raises many types
        raise ModelError(
            f"OpenVINO can't convert this {loaded.model.config.model_type} model: {last_line(error)}",
            "Choose another format: finetale export MODEL --to list.",
        ) from error
    models.save(loaded.model, loaded.tokenizer, folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    if weights == "fp16":
        openvino.save_model(converted, folder / _FILE, compress_to_fp16=True)
    else:
        save(converted, folder / _FILE)


def open(folder: Path, loaded: LoadedModel) -> OpenVinoRuntime:
    """See Exporter."""
    return OpenVinoRuntime(folder)


def usage(folder: Path) -> str:
    """See Exporter."""
    return """```python
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer

model = OVModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```

OpenVINO GenAI and the OpenVINO Model Server read the same files, after
`convert_tokenizer . -o .` of the package openvino-tokenizers."""


class OpenVinoRuntime(FolderRuntime):
    """A converted model in OpenVINO, with its defaults for this processor. Implements Runtime."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.name = f"OpenVINO {versions('openvino')['openvino']}"
        self._request = core().compile_model(str(folder / _FILE), "CPU").create_infer_request()

    def reset(self) -> None:
        """See Runtime."""
        self._request.reset_state()
        self._seen = 0

    def read(self, ids: Sequence[int]) -> Scores:
        """See Runtime."""
        inputs = self.inputs_of(ids) | {"beam_idx": np.zeros(1, np.int32)}
        found: Scores = np.array(self._request.infer(inputs)["logits"][0], np.float32)
        return found

    def close(self) -> None:
        """See Runtime."""
        del self._request


def compress(converted: Any, *, symmetric: bool) -> Any:
    """Return a copy with int8 weights: a scale per row of a weight matrix, and a zero point too if not symmetric."""
    core()
    with silent():
        import nncf

        nncf.set_log_level(40)
        mode = nncf.CompressWeightsMode.INT8_SYM if symmetric else nncf.CompressWeightsMode.INT8_ASYM
        return nncf.compress_weights(converted.clone(), mode=mode)


def _in_four_bits(converted: Any) -> Any:
    """Return a copy with int4 weights in groups of 32 columns; embeddings and the output layer are in int8."""
    core()
    with silent():
        import nncf

        nncf.set_log_level(40)
        return nncf.compress_weights(
            converted.clone(), mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=32, ratio=1.0
        )


def _hold_state(converted: Any, pairs: dict[str, str], sizes: dict[str, tuple[int, int]]) -> None:
    """Turn the cache into the model's state. It is empty at first, and beam_idx reorders its rows before each pass."""
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    order = ops.parameter([-1], dtype=np.int32, name="beam_idx")
    order.output(0).get_tensor().add_names({"beam_idx"})
    converted.add_parameters([order])
    for name in pairs:
        node = converted.input(name).get_node()
        users = node.output(0).get_target_inputs()
        gathered = ops.gather(node, order, ops.constant(0, dtype=np.int64))
        for user in users:
            user.replace_source_output(gathered.output(0))
    converted.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(converted, pairs)
    zero, first = ops.constant(0, dtype=np.int64), ops.constant([0], dtype=np.int64)
    rows = ops.gather(ops.shape_of(converted.input("input_ids"), output_type="i64"), first, zero)
    for node in converted.get_ops():
        if node.get_type_name() == "ReadValue":
            shape = node.get_output_partial_shape(0)
            heads, width = shape[1].get_length(), shape[3].get_length()
            empty = ops.concat([rows, ops.constant([heads, 0, width], dtype=np.int64)], 0)
            node.set_arguments([ops.broadcast(ops.constant(0.0, dtype=np.float32), empty).output(0)])
    converted.validate_nodes_and_infer_types()


@contextlib.contextmanager
def _freeing_traces() -> Iterator[None]:
    """Free the memory that torch keeps for each traced module: 10 MB for the smallest model, until the process ends.

    PyTorch has no public function for this. In a version without these private attributes, the memory is kept.
    """
    store = getattr(torch.jit._recursive, "concrete_type_store", None)
    compiled: set[Any] = getattr(store, "methods_compiled", set())
    before = set(compiled)
    try:
        yield
    finally:
        compiled &= before
        getattr(torch._C, "_jit_clear_class_registry", lambda: None)()
