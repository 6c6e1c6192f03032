"""Read the header of a GGUF file, the format of llama.cpp, Ollama and LM Studio: its values and its tensor table.

The file may come from a stranger: each length is compared with the size of the file before it is used. Reads no
weights, and knows nothing of torch. The layout is that of llama.cpp's GGUF specification, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from finetale.errors import ModelError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_ENTRIES = 65_536
"""Maximum number of values, and of tensors. A model of 100 layers has about 1,000 tensors."""
_MAX_HEADER_BYTES = 256 * 2**20
_MAX_TEXT_BYTES = 2**20
_FLOATS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2)}
"""Types of tensors that hold plain numbers: name, values per block, bytes per block."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the table: its shape (outermost dimension first), its type and its place in the file in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    start: int
    bytes: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file. `values` has strings, numbers, and arrays of either."""

    values: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """The name of the architecture in llama.cpp, such as llama or gpt2."""
        return str(self.values.get("general.architecture", ""))

    def of_model(self, key: str) -> Any:
        """Return a value that is stored under the name of the architecture; None if there is none."""
        return self.values.get(f"{self.architecture}.{key}")

    @cached_property
    def elements(self) -> int:
        """The number of values in all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def bits(self) -> float:
        """The number of bits per weight, on average over the matrices."""
        matrices = self._matrices()
        return 8 * sum(tensor.bytes for tensor in matrices) / max(1, sum(tensor.elements for tensor in matrices))

    @property
    def main_type(self) -> str:
        """The type that most weights have, such as Q4_K."""
        weights: Counter[str] = Counter()
        for tensor in self._matrices():
            weights[tensor.type] += tensor.elements
        return weights.most_common(1)[0][0] if weights else "F32"

    @property
    def is_quantised(self) -> bool:
        """Whether a tensor has fewer than 16 bits per weight."""
        floats = {name for name, _, _ in _FLOATS.values()}
        return any(tensor.type not in floats for tensor in self.tensors)

    def _matrices(self) -> list[GgufTensor]:
        return [tensor for tensor in self.tensors if len(tensor.shape) > 1] or list(self.tensors)


def is_gguf(path: Path) -> bool:
    """Return whether a file begins as GGUF does. Ollama's files have no suffix."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file.

    Raises:
        ModelError: the file is incomplete or invalid, or is not GGUF.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ModelError(f"{path} is not a GGUF file.", "Check the path, or download the file again.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data, size).header()
    except (struct.error, ValueError, OverflowError) as error:
        raise ModelError(
            f"The GGUF file {path} is invalid or incomplete ({size:,} bytes): {error}.", "Download it again."
        ) from None
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.", "Check the file.") from None


class _Reader:
    """Reads a header from its start to its end. Each error is a ValueError or a struct.error."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._at = data, size, 4

    def header(self) -> GgufHeader:
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, not 2 or 3; files of the opposite byte order are not read")
        num_tensors, num_values = self._number("Q"), self._number("Q")
        if max(num_tensors, num_values) > _MAX_ENTRIES:
            raise ValueError(f"it claims {num_tensors:,} tensors and {num_values:,} values")
        values = {}
        for _ in range(num_values):
            key = self._text()
            values[key] = self._value(self._number("I"))
        table = [self._entry() for _ in range(num_tensors)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise ValueError("its alignment is invalid")
        start = -(-self._at // alignment) * alignment
        tensors = tuple(self._tensor(start, *entry) for entry in table)
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise ValueError("two of its tensors have the same name")
        return GgufHeader(values, tensors)

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(), self._number("I")
        if not 0 < dimensions <= 4:
            raise ValueError(f"the tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _tensor(self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        type_name, block, block_bytes = _type(kind)
        if prod(shape) == 0 or shape[-1] % block:
            raise ValueError(f"the tensor {name[:80]!r} has the shape {shape}")
        tensor = GgufTensor(name, shape, type_name, start + offset, prod(shape) // block * block_bytes)
        if tensor.start + tensor.bytes > self._size:
            raise ValueError(f"its tensor {name[:80]!r} would end at byte {tensor.start + tensor.bytes:,}")
        return tensor

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"it has a value of the unknown type {kind}")
        inner, count = self._number("I"), self._number("Q")
        if inner in _SCALARS:
            form = f"<{count}{_SCALARS[inner]}"
            self._need(count * struct.calcsize(_SCALARS[inner]))
            found = list(struct.unpack_from(form, self._data, self._at))
            self._at += struct.calcsize(form)
            return found
        if inner != _STRING:
            raise ValueError(f"it has an array of the unknown type {inner}")
        self._need(8 * count)
        return [self._text() for _ in range(count)]

    def _number(self, form: str) -> Any:
        width = struct.calcsize(form)
        self._need(width)
        value = struct.unpack_from(f"<{form}", self._data, self._at)[0]
        self._at += width
        return value

    def _text(self) -> str:
        length = self._number("Q")
        if length > _MAX_TEXT_BYTES:
            raise ValueError(f"it has a text of {length:,} bytes")
        self._need(length)
        text = self._data[self._at : self._at + length].decode("utf-8")
        self._at += length
        return text

    def _need(self, count: int) -> None:
        if self._at + count > min(self._size, _MAX_HEADER_BYTES):
            raise ValueError("its header ends too early")


def _type(kind: int) -> tuple[str, int, int]:
    """Return the name of a tensor type, and the values and bytes of one of its blocks."""
    if kind in _FLOATS:
        return _FLOATS[kind]
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        found = GGMLQuantizationType(kind)
        block, size = GGML_QUANT_SIZES[found]
    except (ValueError, KeyError):
        raise ValueError(f"it has a tensor of the unknown type {kind}") from None
    return found.name, block, size
