"""Write a model as one GGUF file for llama.cpp, Ollama and LM Studio, with a Modelfile for Ollama beside it.

The package gguf writes the file, and llama.cpp rounds the weights and proves the result. llama.cpp has the rules by
which a tokenizer cuts text in its code, under names. The rule is chosen by trial: the first whose tokens are those of
the model's own tokenizer on texts that are difficult to cut.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetale import models
from finetale.errors import ModelError
from finetale.export.llama_cpp import LlamaRuntime, quantize
from finetale.export.modelfile import modelfile
from finetale.export.proof import check_tokens
from finetale.export.torch_runtime import TorchRuntime
from finetale.models import LoadedModel
from finetale.models.gguf_names import ARCHITECTURES, architecture_of, rotary_divisors, values_of
from finetale.tokens import begin_and_end

_RULES = (
    "gpt-2",
    "smollm",
    "llama-bpe",
    "qwen2",
    "deepseek-llm",
    "starcoder",
    "falcon",
    "mpt",
    "olmo",
    "dbrx",
    "gpt-4o",
    "bloom",
    "gpt3-finnish",
    "tekken",
    "chameleon",
)
"""llama.cpp's names of the rules to cut text, most common first."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_FILE_TYPES = {"f32": 0, "f16": 1}
_NAME = "model"


def check(loaded: LoadedModel) -> None:
    """See Exporter."""
    kind = loaded.model.config.model_type
    name = architecture_of(kind)
    if name is None:
        types = sorted({each.model_type for each in ARCHITECTURES.values()} | {"mistral"})
        raise ModelError(
            f"Models of the type {kind} can't be written to GGUF. Supported are {', '.join(types)}.",
            "Choose another format: finetale export MODEL --to list.",
        )
    if getattr(loaded.model.config, "sliding_window", None) and name == "llama":
        raise ModelError(
            "A model with a sliding window can't be written to GGUF as Llama.", "Set `sliding_window` to null."
        )
    values_of(name, loaded.model.config)
    _bpe_of(loaded.tokenizer)


def write(loaded: LoadedModel, folder: Path, weights: str) -> None:
    """See Exporter."""
    file = folder / f"{_NAME}-{weights}.gguf"
    plain = "f32" if weights == "f32" else "f16"
    first = file if weights == plain else folder / "unrounded.gguf"
    _write_with_rule(first, loaded, plain)
    if first != file:
        quantize(first, file, weights)
        first.unlink()
    (folder / "Modelfile").write_text(modelfile(file.name, loaded), encoding="utf-8")


def open(folder: Path, loaded: LoadedModel) -> LlamaRuntime:
    """See Exporter."""
    return LlamaRuntime(next(folder.glob("*.gguf")))


def usage(folder: Path) -> str:
    """See Exporter."""
    file = next(folder.glob("*.gguf")).name
    return f"""llama.cpp: `llama-cli -m {file}`

Ollama, in this folder: `ollama create my-model -f Modelfile`, then `ollama run my-model`

LM Studio: `lms import {file}`, or move the file to its folder of models as `models/OWNER/NAME/{file}`."""


def _write_with_rule(file: Path, loaded: LoadedModel, kind: str) -> None:
    """Write a file with llama.cpp's name of the rule by which the tokenizer cuts text.

    Raises:
        ModelError: no rule of llama.cpp gives the same tokens.
    """
    architecture = str(architecture_of(loaded.model.config.model_type))
    fields = {"general.name": Path(loaded.provenance.name).name, "general.file_type": _FILE_TYPES[kind]}
    fields |= values_of(architecture, loaded.model.config)
    fields |= _tokenizer_values(loaded.model, loaded.tokenizer)
    own, refused = TorchRuntime(loaded.model, loaded.tokenizer), None
    for rule in _RULES:
        tensors = ((key, _rounded(key, tensor, kind)) for key, tensor in _tensors(architecture, loaded.model))
        _write_file(file, architecture, fields | {"tokenizer.ggml.pre": rule}, tensors)
        with contextlib.closing(LlamaRuntime(file)) as tried:
            try:
                check_tokens(own, tried, ())
                return
            except ModelError as error:
                refused = refused or error
    assert refused is not None
    raise refused


def _write_file(
    file: Path, architecture: str, fields: dict[str, Any], tensors: Iterable[tuple[str, NDArray[Any]]]
) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_type("model")
    for key, value in fields.items():
        _add(writer, key, value)
    for key, tensor in tensors:
        writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _tensors(name: str, model: PreTrainedModel) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors under their names in GGUF, in fp32.

    Raises:
        ModelError: a tensor has no place in the file.
    """
    architecture = ARCHITECTURES[name]
    divisors = rotary_divisors(model.config)
    if divisors is not None:
        yield "rope_freqs.weight", divisors
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        new = architecture.gguf_name_of(key)
        if new is None:
            raise ModelError(f"GGUF has no place for the tensor {key}.", "Choose another format.")
        stored = architecture.stored(new, tensor.detach().to("cpu", torch.float32), model.config)
        yield new, stored.contiguous().numpy()


def _rounded(name: str, tensor: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """Return a tensor in the type of the file. Vectors and position embeddings stay in fp32, as llama.cpp needs them.

    Raises:
        ModelError: a weight is too large for fp16.
    """
    if kind == "f32" or tensor.ndim == 1 or name.startswith("position_embd"):
        return tensor
    if float(np.abs(tensor).max(initial=0)) > float(np.finfo(np.float16).max):
        raise ModelError(f"Weights of {name} are too large for fp16.", "Choose --weights f32.")
    return tensor.astype(np.float16)


def _bpe_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the rules of a byte-level BPE tokenizer, as in tokenizer.json.

    Raises:
        ModelError: it is of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    kind = rules.get("model", {}).get("type", type(tokenizer).__name__)
    if kind != "BPE" or "ByteLevel" not in json.dumps(rules["pre_tokenizer"]):
        raise ModelError(
            f"A {kind} tokenizer can't be written to GGUF; only byte-level BPE can, the kind of GPT-2.",
            "Choose another format: finetale export MODEL --to list.",
        )
    return rules


def _tokenizer_values(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what a file states about a tokenizer, without the rule to cut text."""
    rules = _bpe_of(tokenizer)
    rows = int(model.get_input_embeddings().weight.shape[0])
    names = {number: token for token, number in tokenizer.get_vocab().items() if number < rows}
    added = {each["id"]: _CONTROL if each["special"] else _USER_DEFINED for each in rules["added_tokens"]}
    begin, end = begin_and_end(tokenizer)
    ends = [each for each in models.end_ids(model, tokenizer) if each != end]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in rules["model"]["merges"]]
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [names.get(number, f"[PAD{number}]") for number in range(rows)],
        "tokenizer.ggml.token_type": [
            added.get(number, _NORMAL) if number in names else _UNUSED for number in range(rows)
        ],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": begin,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.add_bos_token": bool(models.lead_of(tokenizer, models.mark_of(model))),
        "tokenizer.ggml.add_space_prefix": False,
    }
    if ends:
        found["tokenizer.ggml.eot_token_id"] = ends[0]
    if tokenizer.pad_token_id is not None:
        found["tokenizer.ggml.padding_token_id"] = int(tokenizer.pad_token_id)
    if isinstance(tokenizer.chat_template, str):
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found
