"""Load a model and its tokenizer from one GGUF file, the format of llama.cpp, Ollama and LM Studio.

transformers can read such files too. It takes about 30 CPU-seconds for a model of 135M parameters, because it parses
the vocabulary three times; it leaves out values that change the results, such as the scaling of rotary positions; it
ignores tensors that it does not know; and its models can't be saved. So the config and the names of the tensors come
from here, and each tensor must have its place. The numbers are dequantised by llama.cpp's own package `gguf`, and the
tokenizer is built by transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetale.errors import ModelError, TokenizerError
from finetale.extras import require
from finetale.models.files import first_line
from finetale.models.gguf_header import GgufHeader, GgufTensor, is_gguf, read_header
from finetale.models.gguf_names import ARCHITECTURES, Architecture, config_of
from finetale.models.progress_bars import no_progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ADAPTER_KINDS = {
    "adapter": "a LoRA adapter",
    "mmproj": "the image encoder of a model",
    "imatrix": "statistics for quantisation",
}
_PLAIN_SPLITS = frozenset(
    [
        "gpt-2",
        "gpt2",
        "mpt",
        "olmo",
        "jais",
        "trillion",
        "phi-2",
        "jina-es",
        "jina-de",
        "gigachat",
        "mellum",
        "roberta-bpe",
    ]
)
"""llama.cpp's names of the tokenizers that cut text as GPT-2 does, which is the fallback of transformers."""
_DIGIT_SPLITS = frozenset(["codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"])
"""llama.cpp's names of the tokenizers that cut off each digit, then cut as GPT-2 does."""


def gguf_file(path: Path) -> Path | None:
    """Return the GGUF file that a path means: itself, or the only one in a folder without safetensors; else None.

    Raises:
        ModelError: a folder holds several.
    """
    if not path.is_dir():
        return path if is_gguf(path) else None
    files = sorted(item.name for item in path.iterdir())
    found = [path / name for name in files if name.lower().endswith(".gguf")]
    if not found or any(name.endswith(".safetensors") for name in files):
        return None
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4]) + (" …" if len(found) > 4 else "")
        raise ModelError(f"{path} holds {len(found)} GGUF files: {names}.", f"Give one of them, such as {found[0]}.")
    return found[0]


def check_gguf(path: Path) -> GgufHeader:
    """Return the header of a GGUF file that can be trained.

    Raises:
        ConfigError: the package gguf is not installed.
        ModelError: the file is incomplete, is not a complete language model, or has another architecture.
    """
    require("gguf", f"Reading {path.name}")
    header = read_header(path)
    kind = str(header.values.get("general.type", "model"))
    if kind in _ADAPTER_KINDS or header.architecture in ("clip", "mmproj", "imatrix"):
        what = _ADAPTER_KINDS.get(kind, "a part of a model")
        raise ModelError(f"{path} holds {what}, not a language model.", "Give the GGUF file of the language model.")
    files = header.values.get("split.count", 1)
    if isinstance(files, int) and files > 1:
        raise ModelError(
            f"{path} is one of {files} parts of a model.",
            "Join them with llama.cpp's `llama-gguf-split --merge FIRST_PART OUT.gguf`, and give the result.",
        )
    if header.architecture not in ARCHITECTURES:
        raise ModelError(
            f"GGUF files of the architecture {header.architecture[:40] or '(none)'!r} are not supported ({path}).",
            f"Supported are {', '.join(ARCHITECTURES)}. Give the model that the file was made from: a folder with "
            "config.json and model.safetensors.",
        )
    if not header.tensors:
        raise ModelError(f"{path} holds no weights, only a vocabulary.", "Give the GGUF file of the whole model.")
    return header


def describe(header: GgufHeader) -> str:
    """Return what the weights of a file are, as a short phrase for run.json and reports."""
    return f"{header.main_type}, {header.bits:.1f} bits per weight"


def precision_warning(path: Path, header: GgufHeader) -> str | None:
    """Return a warning that a quantised file is a rounded copy of a model; None if its weights have 16 bits or more."""
    if not header.is_quantised:
        return None
    return (
        f"{path.name} holds {header.bits:.1f}-bit weights ({header.main_type}), which are dequantised to fp32: the "
        "base is a rounded copy of its model. Train the original model if you can get it."
    )


def read_config(header: GgufHeader, path: Path) -> dict[str, Any]:
    """Return the config of a file as config.json would have it.

    Raises:
        ModelError: a value is missing or invalid, or rotary positions are scaled in an unknown way.
    """
    try:
        return config_of(header, path)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"A value of {path} is missing or invalid: {first_line(error)}", "Download the file again, or another one."
        ) from None


def read_model(path: Path, config: Any) -> PreTrainedModel:
    """Return the model of a file in fp32.

    Args:
        config: the config that was built from `read_config`.

    Raises:
        ModelError: the weights do not belong to the architecture.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

    header = read_header(path)
    architecture = ARCHITECTURES[header.architecture]
    tensors = {}
    with path.open("rb") as file:
        data = np.memmap(file, np.uint8, "r")
        for tensor in header.tensors:
            name = architecture.name_of(tensor.name)
            if name is None:
                raise ModelError(
                    f"{path} has the tensor {tensor.name[:80]}, which has no place in a model of the type "
                    f"{config.model_type}.",
                    "Give the model that the file was made from.",
                )
            if name:
                tensors[name] = _dequantised(data, tensor, architecture, config)
    embedding = tensors.get(architecture.embedding)
    head = tensors.get("lm_head.weight")
    config.tie_word_embeddings = head is None or (embedding is not None and head.equal(embedding))
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        with no_progress_bars():
            model, info = kind.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    except Exception as error:  # transformers raises many kinds for tensors that do not fit
        raise ModelError(
            f"The weights of {path} do not fit its values: {first_line(error)}", "Download the file again."
        ) from error
    wrong = [*sorted(info["missing_keys"]), *sorted(info["unexpected_keys"]), *map(str, info["mismatched_keys"])]
    if wrong:
        raise ModelError(
            f"The tensors of {path} are not those of its architecture; {len(wrong)} differ, such as {wrong[0]}.",
            "Give another file, or the model that it was made from.",
        )
    model.generation_config = GenerationConfig(eos_token_id=_end_ids(header))
    loaded: PreTrainedModel = model.eval()
    return loaded


def _dequantised(data: NDArray[np.uint8], tensor: GgufTensor, architecture: Architecture, config: Any) -> Any:
    """Return a tensor in fp32, with its rows in the order of transformers."""
    import gguf
    import torch

    raw = np.array(data[tensor.start : tensor.start + tensor.bytes])
    values = gguf.dequantize(raw.reshape(*tensor.shape[:-1], -1), gguf.GGMLQuantizationType[tensor.type])
    found = torch.from_numpy(np.array(values, np.float32).reshape(tensor.shape))
    return architecture.converted(tensor.name, found, config).contiguous()


def read_tokenizer(path: Path, name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a file.

    Raises:
        TokenizerError: transformers can't build it.
    """
    from transformers import PreTrainedTokenizerFast

    header = check_gguf(path)
    try:
        with no_progress_bars():
            tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True
            )
    except Exception as error:
        raise TokenizerError(
            f"The tokenizer of {name} can't be read: {first_line(error)}",
            "Give the tokenizer of the model that the file was made from with --tokenizer.",
        ) from error
    if header.values.get("tokenizer.ggml.pre") in _DIGIT_SPLITS:
        from tokenizers import pre_tokenizers

        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return tokenizer


def tokenizer_warning(path: Path, header: GgufHeader) -> str | None:
    """Return a warning if nobody has told transformers where this tokenizer cuts text; None if it is known."""
    pre = str(header.values.get("tokenizer.ggml.pre", "default"))
    known = _PLAIN_SPLITS | _DIGIT_SPLITS | _splits_of_transformers()
    if header.values.get("tokenizer.ggml.model") != "gpt2" or pre in known:
        return None
    return (
        f"The tokenizer of {path.name} cuts text by the rule {pre[:40]!r}, which is unknown here; GPT-2's rule is "
        "used, and some tokens may differ from those that the model learned. Give the tokenizer of the original model "
        "with --tokenizer."
    )


def _splits_of_transformers() -> frozenset[str]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # older versions know none
        return frozenset()
    return frozenset(GGUF_PRE_TOKENIZER_SPLITS)


def _end_ids(header: GgufHeader) -> Any:
    """Return the ids that end a text or a turn: one, or a list."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [header.values.get(f"tokenizer.ggml.{key}") for key in keys]
    ends = list(dict.fromkeys(end for end in found if isinstance(end, int)))
    return ends if len(ends) > 1 else next(iter(ends), None)
