"""Check untrusted files of a model folder before any library reads them."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetale.errors import ModelError, TokenizerError

_CONFIG_BYTES, _INDEX_BYTES, _TOKENIZER_BYTES = 2**20, 64 * 2**20, 256 * 2**20
_HEADER_BYTES = 32 * 2**20
"""Maximum size of a safetensors header. A model with 10,000 tensors needs 1 MB."""
_DEPTH = 32
_LFS_POINTER = b"version https://git-lfs"
_QUANTISED = (
    "_scale_inv",
    ".weight_scale",
    ".input_scale",
    ".qweight",
    ".qzeros",
    ".SCB",
    ".weight_format",
    ".absmax",
    ".quant_map",
    ".weight_packed",
    ".W_q",
    "._data",
)
"""Ends of the names of tensors that belong to quantised weights: FP8, GPTQ, AWQ, bitsandbytes, compressed-tensors, HQQ,
Quanto."""
_QUANTISED_TYPES = ("F4", "F6_", "F8_")
_WEIGHT_FILE = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
_ALWAYS = frozenset({"architectures", "rope_parameters", "rope_scaling"})
_NEVER = frozenset(
    {"attn_implementation", "auto_map", "custom_pipelines", "dtype", "experts_implementation", "torch_dtype"}
)
"""Keys that make transformers fetch or choose code, or a precision; ours is fp32."""


def read_bounded_json(file: Path, most_bytes: int = _CONFIG_BYTES) -> Any:
    """Return the JSON in a file; refuse files that are too large or nested too deeply.

    Raises:
        ValueError: it is too large, nested too deeply, or not JSON.
        OSError: it can't be read.
    """
    size = file.stat().st_size
    if not file.is_file():
        raise ValueError("it is not a regular file")
    if size > most_bytes:
        raise ValueError(f"it has {size:,} bytes, more than {most_bytes:,}")
    data = file.read_bytes()
    if _depth(data) > _DEPTH:
        raise ValueError(f"it is nested more than {_DEPTH} deep")
    return json.loads(data.decode("utf-8"))


def clean_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config.json that transformers may read: numbers, and keys that the architecture defines.

    Older files have numbers under names that newer classes convert. Keys that choose code are removed.
    """
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[config["model_type"]]
    known = set(kind().to_dict()) | set(getattr(kind, "attribute_map", {})) | _ALWAYS
    found = {key: _with_floats(value) for key, value in config.items()}
    return {
        key: value
        for key, value in found.items()
        if (key in known or _is_numeric(value))
        and key not in _NEVER
        and not key.startswith("_")
        and key != "model_type"
    }


def _with_floats(value: Any) -> Any:
    """Convert what transformers writes for infinities, {"__float__": "Infinity"}, to numbers."""
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    if isinstance(value, dict) and set(value) == {"__float__"}:
        return {"Infinity": math.inf, "-Infinity": -math.inf}.get(str(value["__float__"]), math.nan)
    return value


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return value is None or isinstance(value, int | float)


def check_tensors(name: str, folder: Path, layers: Any = None) -> None:
    """Refuse invalid safetensors headers, an index that lists missing or foreign files, and fewer tensors than layers.

    Args:
        layers: number of layers in the config, if it names one; building them would take memory and time.

    Raises:
        ModelError: names the file.
    """
    tensors = 0
    for file in sorted(folder.glob("*.safetensors")):
        if not file.is_file():
            raise ModelError(f"{file.name} of {name} is not a regular file.", "Download the model again.")
        tensors += _tensors_in(name, file)
    if isinstance(layers, int) and layers > tensors:
        raise ModelError(
            f"The config.json of {name} has {layers:,} layers, but its files contain only {tensors:,} tensors.",
            "The files do not belong together. Download the model again.",
        )
    if (folder / "model.safetensors").is_file():  # it is read, and an index beside it is not
        return
    for index in sorted(folder.glob("*.safetensors.index.json")):
        check_index(name, index, [file.name for file in folder.iterdir() if file.is_file()])


def check_index(name: str, index: Path, there: Sequence[str]) -> None:
    """Refuse an index of several weight files that names missing or foreign files.

    Names such as model-00001-of-00030.safetensors do not decide how many files there are (CoSER issue 3).

    Args:
        there: names of the files in the model's folder.

    Raises:
        ModelError: names the file.
    """
    try:
        files = set(read_bounded_json(index, _INDEX_BYTES)["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index.name} of {name} can't be read: {error}.", "Download the model again.") from None
    for file in files:
        if not isinstance(file, str) or not _WEIGHT_FILE.fullmatch(file):
            raise ModelError(
                f"{index.name} of {name} names {str(file)[:80]!r}, which is not a weight file in its folder.",
                "The model may be malicious. Choose another one.",
            )
    missing = sorted(files - set(there))
    if missing:
        raise ModelError(
            f"{name} lacks {len(missing)} of its {len(files)} weight files, such as {missing[0]}.",
            "The download may be incomplete. Download it again.",
        )


def _tensors_in(name: str, file: Path) -> int:
    """Return the number of tensors in the header of a safetensors file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if start == _LFS_POINTER[:8]:
            raise ModelError(
                f"The weights of {name} are not here: {file.name} is a Git LFS pointer of {size:,} bytes.",
                "Fetch them with git lfs pull, or download the model again.",
            )
        if not 2 <= header <= min(size - 8, _HEADER_BYTES):
            raise ModelError(
                f"The weights of {name} can't be read: {file.name} is not a complete safetensors file "
                f"(a header of {header:,} bytes in a file of {size:,}).",
                "The files may be corrupted or incomplete. Download them again.",
            )
        data = opened.read(header)
    try:
        if _depth(data) > _DEPTH:
            raise ValueError("nested too deeply")
        tensors = {key: value for key, value in json.loads(data).items() if key != "__metadata__"}
        _refuse_quantised(name, file.name, tensors)
        return len(tensors)
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"The weights of {name} can't be read: the header of {file.name} is corrupted ({error}).",
            "The files may be corrupted or incomplete. Download them again.",
        ) from None


def _refuse_quantised(name: str, file: str, tensors: dict[str, Any]) -> None:
    """Refuse quantised tensors (8 or 4 bits) and their scales, even if config.json does not mention quantisation.

    transformers would ignore the scales as unknown tensors and read wrong weights.
    """
    for key, value in tensors.items():
        kind = str(value.get("dtype")) if isinstance(value, dict) else ""
        packed = ("weight", "_blocks")  # the second is MXFP4's
        if (
            key.endswith(_QUANTISED)
            or kind.startswith(_QUANTISED_TYPES)
            or (key.endswith(packed) and kind in ("I8", "U8"))
        ):
            raise ModelError(
                f"{name} is quantised ({file} holds {key[:100]}, {kind}), "
                "and Finetale trains weights in full precision.",
                "Choose the model that it was made from.",
            )


def check_tokenizer_files(name: str, folder: Path) -> None:
    """Refuse tokenizer files that are too large or too deep, or have a pattern that can take exponential time.

    Raises:
        TokenizerError: names the file and the problem.
    """
    for file in (folder / "tokenizer_config.json", folder / "special_tokens_map.json", folder / "added_tokens.json"):
        if file.is_file():
            _tokenizer_json(name, file)
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    for pattern in _patterns(_tokenizer_json(name, file)):
        if nests_repetition(pattern):
            raise TokenizerError(
                f"The tokenizer of {name} has a pattern that can take exponential time: {pattern[:80]!r} "
                "repeats a group that repeats.",
                "The tokenizer may be malicious. Give another one with --tokenizer.",
            )


def nests_repetition(pattern: str) -> bool:
    """Return whether an expression repeats, without limit, a group that has such a repetition or alternatives inside.

    Backtracking takes exponential time there. The patterns of well-known tokenizers have no such group.
    """
    repeats = [False]  # of the group at each level: whether something in it is repeated without limit
    at, closed = 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 2
            if pattern[at - 1 : at] in ("p", "P") and pattern[at : at + 1] == "{":
                at = pattern.find("}", at) + 1 or len(pattern)
            closed = False
        elif char == "[":
            at, closed = _end_of_class(pattern, at), False
        elif char == "(":
            repeats.append(False)
            at, closed = at + 1, False
            if pattern.startswith("?", at):
                at += 1
        elif char == "|" and len(repeats) > 1:
            repeats[-1] = True
            at, closed = at + 1, False
        elif char == ")":
            inner = repeats.pop() if len(repeats) > 1 else False
            at, closed = at + 1, inner
            repeats[-1] = repeats[-1] or inner
        elif repetition := re.match(r"[*+]|\{\d+,\}|\{\d*,\d{3,}\}|\{\d{3,}\}", pattern[at:]):
            if closed:
                return True
            repeats[-1] = True
            at += repetition.end()
        else:
            # `?` or a small count after a group does not repeat it many times
            at, closed = at + 1, False
    return False


def _end_of_class(pattern: str, start: int) -> int:
    """Return the index after the character class that begins at `start`."""
    at = start + 1
    if pattern[at : at + 1] == "^":
        at += 1
    if pattern[at : at + 1] == "]":
        at += 1
    depth = 1
    while at < len(pattern) and depth:
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]":
            depth -= 1
        at += 1
    return at


def _patterns(value: Any) -> list[str]:
    """Return all regular expressions in the rules of a tokenizer.json."""
    if isinstance(value, list):
        return [pattern for item in value for pattern in _patterns(item)]
    if not isinstance(value, dict):
        return []
    found = [item for key, item in value.items() if key == "Regex" and isinstance(item, str)]
    return found + [
        pattern for key, item in value.items() if key not in ("model", "added_tokens") for pattern in _patterns(item)
    ]


def _tokenizer_json(name: str, file: Path) -> Any:
    try:
        return read_bounded_json(file, _TOKENIZER_BYTES)
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{file.name} of the tokenizer of {name} can't be read: {error}.",
            "Give a complete tokenizer with --tokenizer.",
        ) from None


def _depth(data: bytes) -> int:
    """Return how deeply JSON is nested, without its strings; an upper bound for invalid JSON."""
    deepest = depth = 0
    within = False
    for piece in re.finditer(rb'\\.|["\[\]{}]', data, re.DOTALL):
        first = piece[0]
        if first == b'"':
            within = not within
        elif within or len(first) == 2:
            continue
        elif first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest
