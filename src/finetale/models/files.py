"""Decide which model files are accepted: causal language models in safetensors, without code of their own.

Reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetale.errors import ModelError
from finetale.models.safety import read_bounded_json

_ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "mpnet",
        "roberta",
        "xlm-roberta",
    }
)
_QUANTISED = ("quantization_config", "compression_config")
"""Keys of config.json that describe quantised weights."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_OTHER_FORMATS = (".ggml", ".onnx", ".tflite", ".mlmodel")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len")
_CHANGING = ("longrope", "su", "dynamic")
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)


def check_config(name: str, config: Any) -> None:
    """Refuse anything but a causal language model that transformers knows.

    Raises:
        ModelError: it is not. The message names its kind.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"The config.json of {name} has no model_type.", "It may be corrupted, or it is not a transformers model."
        )
    kind = config["model_type"]
    if quantised := next((config[key] for key in _QUANTISED if config.get(key)), None):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise ModelError(
            f"{name} is quantised ({str(method)[:40]}, by its config.json), and Finetale trains weights in full "
            "precision.",
            "Choose the model that it was made from.",
        )
    if config.get("auto_map") and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{name} needs code from its own folder (auto_map), which Finetale never runs.",
            "Choose a model of an architecture that transformers has.",
        )
    architectures = config.get("architectures") or []
    encoder = (
        kind in _ENCODERS
        and not config.get("is_decoder")
        and not any("Causal" in str(a) or "LMHead" in str(a) for a in architectures)
    )
    if config.get("is_encoder_decoder") or encoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        what = (
            "an encoder-decoder model"
            if config.get("is_encoder_decoder")
            else "an encoder"
            if encoder
            else "not a causal language model"
        )
        raise ModelError(
            f"{name} is {what} (model_type {kind}); only causal language models can continue text.",
            "Choose one such as gpt2, distilgpt2 or EleutherAI/pythia-160m.",
        )


def holds_adapter_alone(files: Sequence[str]) -> bool:
    """Return whether a folder with these files holds an adapter, without the weights of a model."""
    model = (WEIGHTS, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
    return "adapter_config.json" in files and not any(file in model or _SHARD.fullmatch(file) for file in files)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter alone, without the weights of a model."""
    return folder.is_dir() and holds_adapter_alone([file.name for file in folder.iterdir()])


def check_files(name: str, files: Sequence[str]) -> None:
    """Check that a folder contains a complete model in safetensors.

    Args:
        files: the names of the files in the folder.

    Raises:
        ModelError: it does not. The message names what it contains instead.
    """
    if "adapter_config.json" in files:  # with PEFT, transformers would use it, so results would depend on the machine
        raise ModelError(
            f"{name} holds an adapter (adapter_config.json) beside the model; which of them is meant?",
            "Merge them with PEFT's merge_and_unload(), or move adapter_config.json and the adapter's weights out of "
            "the folder to use the model without it.",
        )
    has_config = "config.json" in files
    if has_config and WEIGHTS in files:
        return
    if has_config and INDEX in files:
        return  # `safety.check_index` says whether the files that it lists are there
    shards = [file for file in files if _SHARD.fullmatch(file)]
    if has_config and shards:
        raise ModelError(
            f"{name} has its weights in {len(shards)} files and no {INDEX} that lists them.",
            "The download may be incomplete. Download it again.",
        )
    for file in sorted(files):
        if file.lower().endswith(".gguf"):
            raise ModelError(
                f"{name} has its weights only as GGUF files, such as {file}.",
                f"Download one of them with `hf download {name} {file}`, and give its path.",
            )
        if file.endswith(_OTHER_FORMATS):
            raise ModelError(
                f"{name} has its weights only as {file}, a format of another program.",
                "Choose the model that it was made from: a folder with config.json and model.safetensors.",
            )
        if file.endswith(_PICKLES):
            raise ModelError(
                f"{name} has its weights only as {file}, a format that can carry code; "
                "Finetale reads safetensors only.",
                "Choose another model or revision, or convert it on an isolated machine: "
                "model.save_pretrained(folder) in transformers.",
            )
    if not has_config:
        raise ModelError(
            f"{name} has no config.json, so it is not a model folder.",
            "Give the folder that contains config.json and model.safetensors.",
        )
    others = sorted(file for file in files if file.endswith(".safetensors"))
    if others:
        raise ModelError(
            f"{name} has no {WEIGHTS}; it has {others[0]}, which transformers does not read.",
            f"Rename it to {WEIGHTS} if it holds the weights of the model, or download the model again.",
        )
    raise ModelError(
        f"{name} has no weights (no .safetensors file).", "The download may be incomplete. Download it again."
    )


def check_is_folder(name: str, path: Path) -> None:
    """Check that a name is not that of a file.

    Raises:
        ModelError: it is. The hint names the folder to give instead.
    """
    if not path.exists() or path.is_dir():
        return
    if path.suffix.lower() == ".gguf":
        raise ModelError(
            f"{name} is not a GGUF file: its first bytes are not GGUF ({path.stat().st_size:,} bytes).",
            "The download may be incomplete, or the file a Git LFS pointer. Download it again.",
        )
    if path.suffix in _OTHER_FORMATS or path.suffix in _PICKLES:
        check_files(name, [path.name])
    beside = path.parent if (path.parent / "config.json").is_file() else None
    raise ModelError(
        f"{name} is a file, not a model folder.",
        f"Give its folder: {beside}" if beside else "Give the folder that holds config.json and model.safetensors.",
    )


def read_config(file: Path) -> Any:
    """Return the content of a config.json.

    Raises:
        ModelError: it can't be read or is not JSON.
    """
    try:
        return read_bounded_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} can't be read: {first_line(error)}", "Download the model again.") from None


def positions_of(config: dict[str, Any]) -> int | None:
    """Return the length of the longest text that a model can read, from its config.json; None without a limit.

    Some models change their rotary positions when a text grows beyond the length of their first training (LongRoPE,
    dynamic NTK). A token's score then depends on the length of the text, or of the longest text in the batch, and a
    cache holds keys of other positions. For these models that length is the limit.
    """
    limits = [config[key] for key in _POSITIONS if isinstance(config.get(key), int)][:1]
    return min([*limits, *_changing_positions(config)], default=None)


def _changing_positions(config: dict[str, Any]) -> list[int]:
    """Return the lengths beyond which rotary positions change with the length of a text."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict):
        return []
    found = []
    for values in (rope, *rope.values()):  # one entry, or one per type of layers
        if isinstance(values, dict) and (values.get("rope_type") or values.get("type")) in _CHANGING:
            name = "original_max_position_embeddings"
            found.append(values.get(name) or config.get(name))
    return [limit for limit in found if isinstance(limit, int)]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text as a sentence."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return text if text.endswith((".", "?", "!")) else text + "."
