"""Write a model as ONNX with its key/value cache, in the folder layout of transformers.js, for onnxruntime.

PyTorch's exporter traces the model's own code. Inputs and outputs have the names that Optimum and transformers.js use:
input_ids, attention_mask, position_ids and past_key_values.N.key/value; logits and present.N.key/value.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetale import models
from finetale.environment import num_cores, versions
from finetale.errors import ModelError
from finetale.export.runtimes import FolderRuntime, Scores
from finetale.export.tracing import Explicit, cache_shapes, traceable
from finetale.models import LoadedModel

MOST_BYTES = 2_000_000_000
"""Most bytes of the weights in fp32; a file of ONNX holds at most 2 GiB."""
OPSET = 18
_FILES = {"fp32": "model.onnx", "int8": "model_quantized.onnx"}
"""Names of the files by type of weights; transformers.js finds them by these names."""
_BLOCK = 32
"""Weights that share a scale in a matrix of 8 bits."""
_PAST, _PRESENT = "past_key_values", "present"
_PYTHON = """import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("onnx/FILE")
cache = {
    each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
    for each in session.get_inputs()
    if each.name.startswith("past_key_values")
}
text = tokenizer.encode("PROMPT").ids
new, seen = text, 0
for _ in range(50):
    total = seen + len(new)
    inputs = {
        "input_ids": np.array([new]),
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(seen, total)[None],
    }
    scores, *values = session.run(None, inputs | cache)
    cache, seen = dict(zip(cache, values)), total
    new = [int(scores[0, -1].argmax())]
    text += new
print(tokenizer.decode(text))
"""
"""A program that writes text without Finetale."""


def check(loaded: LoadedModel) -> None:
    """See Exporter. What can't be traced is found by the conversion."""
    size = 4 * sum(each.numel() for each in loaded.model.parameters())
    if size > MOST_BYTES:
        raise ModelError(
            f"The model has {size / 1e9:.1f} GB in fp32; at most {MOST_BYTES / 1e9:.0f} GB can be written to ONNX.",
            "Choose --to gguf or --to openvino for a model of this size.",
        )


def convert(loaded: LoadedModel) -> Any:
    """Return the model as an `onnx.ModelProto` in fp32.

    Raises:
        Exception: of many types, when the model's code cannot be traced.
    """
    model = loaded.model
    with traceable(model), _no_log():
        shapes = [size for pair in cache_shapes(model) for size in pair]
        parts = [f"{layer}.{part}" for layer in range(len(shapes) // 2) for part in ("key", "value")]
        # Two rows of three tokens after two tokens. No size is 1, because tracing would make that size a constant.
        ids, mask = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
        positions = torch.arange(2, 5).repeat(2, 1)
        past = [torch.zeros(2, heads, 2, width) for heads, width in shapes]
        new = {0: "batch_size", 1: "sequence_length"}
        program = torch.onnx.export(
            Explicit(model).eval(),
            (ids, mask, positions, *past),
            input_names=["input_ids", "attention_mask", "position_ids", *(f"{_PAST}.{part}" for part in parts)],
            output_names=["logits", *(f"{_PRESENT}.{part}" for part in parts)],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(
                new,
                {0: "batch_size", 1: "total_sequence_length"},
                new,
                tuple({0: "batch_size", 2: "past_sequence_length"} for _ in past),
            ),
            optimize=False,
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
    _strip(proto)
    return proto


def write(loaded: LoadedModel, folder: Path, weights: str) -> None:
    """See Exporter."""
    import onnx

    try:
        proto = convert(loaded)
    except Exception as error:  # the exporter raises many types
        raise ModelError(
            f"PyTorch can't convert this {loaded.model.config.model_type} model to ONNX: {_first_line(error)}",
            "Choose another format: finetale export MODEL --to list.",
        ) from error
    if weights == "int8":
        _round(proto)
    models.save(loaded.model, loaded.tokenizer, folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    target = folder / "onnx" / _FILES[weights]
    target.parent.mkdir()
    onnx.save(proto, str(target))


def open(folder: Path, loaded: LoadedModel) -> OnnxRuntime:
    """See Exporter."""
    return OnnxRuntime(folder)


def usage(folder: Path) -> str:
    """See Exporter."""
    kind = next(kind for kind, name in _FILES.items() if (folder / "onnx" / name).is_file())
    dtype = "q8" if kind == "int8" else kind
    prompt = f"{_begin(folder)}Once upon a time"
    return f"""In a browser or in Node, with transformers.js (`npm install @huggingface/transformers`). The folder is
`models/my-model` on the web server, or below `env.localModelPath` in Node:

```js
import {{ env, pipeline }} from "@huggingface/transformers";

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "models/";
const writer = await pipeline("text-generation", "my-model", {{ dtype: "{dtype}" }});
const [text] = await writer("{prompt}", {{ max_new_tokens: 50 }});
console.log(text.generated_text);
```

In Python, with onnxruntime, numpy and tokenizers, the most likely tokens:

```python
{_PYTHON.replace("FILE", _FILES[kind]).replace("PROMPT", prompt)}```"""


def _begin(folder: Path) -> str:
    """Return the text of the token that a program must put before each text, because the tokenizer does not."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return (
        str(names.get("bos_token") or names.get("cls_token") or names.get("eos_token") or "")
        if config.get(models.MARK)
        else ""
    )


class OnnxRuntime(FolderRuntime):
    """A model in onnxruntime, on the CPU. Implements Runtime.

    Raises:
        ModelError: onnxruntime can't load the file.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        super().__init__(folder)
        self.name = f"onnxruntime {versions('onnxruntime')['onnxruntime']}"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = num_cores()
        file = next((folder / "onnx").glob("*.onnx"))
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own types, none of them documented
            raise ModelError(
                f"onnxruntime can't load the exported model: {_first_line(error)}", "Choose another format."
            ) from error
        # (1, heads, 0 tokens, width) of each tensor of the cache
        self._empty = {
            each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
            for each in self._session.get_inputs()
            if each.name.startswith(_PAST)
        }
        self.reset()

    def reset(self) -> None:
        """See Runtime."""
        self._cache, self._seen = self._empty, 0

    def read(self, ids: Sequence[int]) -> Scores:
        """See Runtime."""
        logits, *cache = self._session.run(None, self.inputs_of(ids) | self._cache)
        self._cache = dict(zip(self._empty, cache, strict=True))
        scores: Scores = logits[0]
        return scores

    def close(self) -> None:
        """See Runtime."""
        del self._session


def _round(proto: Any) -> None:
    """Round the matrices of a model to 8 bits, with a scale per 32 weights, in onnxruntime's operator MatMulNBits.

    A table of embeddings that is also the output layer is stored once.
    """
    from onnx import numpy_helper

    graph = proto.graph
    matrices = {each.name: each for each in graph.initializer if len(each.dims) == 2}
    rounded: dict[tuple[str, bool], list[str]] = {}

    def names_of(name: str, transposed: bool) -> list[str]:
        """Return the names of the rounded matrix, (outputs, blocks, 32), and of its scales, (outputs, blocks)."""
        key = (name, transposed)
        if key not in rounded:
            values = numpy_helper.to_array(matrices[name])
            rounded[key] = [f"{name}.{part}{'.rows' if transposed else ''}" for part in ("int8", "scales")]
            for new, array in zip(rounded[key], _in_blocks(values if transposed else values.T), strict=True):
                graph.initializer.append(numpy_helper.from_array(array, new))
        return rounded[key]

    turned = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in matrices
    }
    nodes = []
    for node in graph.node:
        nodes += _rounded_node(node, matrices, turned, names_of)
    used = {name for node in nodes for name in node.input} | {each.name for each in graph.output}
    nodes = [node for node in nodes if node.op_type != "Transpose" or node.output[0] in used]
    used = {name for node in nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    from onnx import helper

    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _rounded_node(
    node: Any, matrices: dict[str, Any], turned: dict[str, str], names_of: Callable[[str, bool], list[str]]
) -> list[Any]:
    """Return the nodes that take the place of a node: itself, if it has no matrix to round."""
    from onnx import helper

    result = node.output[0]
    if node.op_type in ("MatMul", "Gemm") and (node.input[1] in matrices or node.input[1] in turned):
        values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        is_turned = (node.input[1] in turned) != bool(values.get("transB"))
        name = turned.get(node.input[1], node.input[1])
        rows, columns = matrices[name].dims
        inner, outputs = (columns, rows) if is_turned else (rows, columns)
        has_bias = len(node.input) > 2
        product = helper.make_node(
            "MatMulNBits",
            [node.input[0], *names_of(name, is_turned)],
            [f"{result}.product" if has_bias else result],
            domain="com.microsoft",
            K=inner,
            N=outputs,
            bits=8,
            block_size=_BLOCK,
            accuracy_level=4,  # products in integers; five to ten times as fast as in fp32
        )
        return (
            [product, helper.make_node("Add", [product.output[0], node.input[2]], [result])] if has_bias else [product]
        )
    if node.op_type == "Gather" and node.input[0] in matrices and matrices[node.input[0]].dims[1] % _BLOCK == 0:
        codes, scales = names_of(node.input[0], True)
        each = [f"{result}.{part}" for part in ("codes", "values", "centred", "scales", "scale", "blocks", "shape")]
        return [
            helper.make_node("Gather", [codes, node.input[1]], [each[0]]),
            helper.make_node("Cast", [each[0]], [each[1]], to=1),
            helper.make_node("Constant", [], [f"{result}.zero"], value_float=128.0),
            helper.make_node("Sub", [each[1], f"{result}.zero"], [each[2]]),
            helper.make_node("Gather", [scales, node.input[1]], [each[3]]),
            helper.make_node("Constant", [], [f"{result}.last"], value_ints=[-1]),
            helper.make_node("Unsqueeze", [each[3], f"{result}.last"], [each[4]]),
            helper.make_node("Mul", [each[2], each[4]], [each[5]]),
            helper.make_node("Constant", [], [each[6]], value_ints=[0, 0, -1]),
            helper.make_node("Reshape", [each[5], each[6]], [result]),
        ]
    return [node]


def _in_blocks(rows: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return a matrix (outputs, inputs) as codes (outputs, blocks, 32) around 128, and scales (outputs, blocks)."""
    blocks = -(-rows.shape[1] // _BLOCK)
    padded = np.zeros((len(rows), blocks * _BLOCK), np.float32)
    padded[:, : rows.shape[1]] = rows
    values = padded.reshape(len(rows), blocks, _BLOCK)
    scales = np.abs(values).max(2) / np.float32(127)
    codes = np.rint(values / np.where(scales, scales, 1)[..., None]) + 128
    return codes.astype(np.uint8), scales


def _strip(proto: Any) -> None:
    """Delete the exporter's notes, which contain paths of this machine."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """Suppress the log of the exporter: it reports packages that the model does not need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
