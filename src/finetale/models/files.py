"""Which model files are taken: causal language models in safetensors, without code of their own. Reads no weights."""

from __future__ import annotations

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
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def check_config(name: str, config: Any) -> None:
    """Refuse anything but a causal language model that transformers knows.

    Raises:
        ModelError: says what it is.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"The config.json of {name} names no model_type.", "It may be damaged, or not be a transformers model."
        )
    kind = config["model_type"]
    if config.get("quantization_config"):
        raise ModelError(
            f"{name} is quantised (quantization_config), and Finetale trains weights in full precision.",
            "Choose the model it was made from.",
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
            else "no causal language model"
        )
        raise ModelError(
            f"{name} is {what} (model_type {kind}); only causal language models can continue text.",
            "Choose one such as gpt2, distilgpt2 or EleutherAI/pythia-160m.",
        )


def check_weight_files(name: str, files: list[str]) -> None:
    """Refuse a folder without safetensors.

    Raises:
        ModelError: names the pickle file there is instead, if there is one.
    """
    if any(file.endswith(".safetensors") for file in files):
        return
    pickles = [file for file in files if file.endswith(_PICKLES)]
    if pickles:
        raise ModelError(
            f"{name} has its weights only as {pickles[0]}, a format that can carry code; Finetale reads safetensors only.",
            "Choose another model or revision, or convert it on a machine you can risk: model.save_pretrained(folder) in transformers.",
        )
    raise ModelError(
        f"{name} has no weights (no .safetensors file).", "The download may be incomplete; fetch it again."
    )


def read_config(file: Path) -> Any:
    """Content of a config.json.

    Raises:
        ModelError: it can't be read or is no JSON.
    """
    try:
        return read_bounded_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} can't be read: {first_line(error)}", "Download the model again.") from None


def positions_of(config: dict[str, Any]) -> int | None:
    """Positions in a config.json, whatever the architecture calls them."""
    for key in ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, as a sentence."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return text if text.endswith((".", "?", "!")) else text + "."
