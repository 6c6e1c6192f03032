"""Read the files of an adapter in PEFT's layout. Knows no model and not PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale.errors import ModelError
from finetale.models.files import first_line
from finetale.models.safety import read_bounded_json

if TYPE_CHECKING:
    import torch

CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BASE_KEY = "base_sha256"
"""Key in the metadata of the weights file: SHA-256 of the base's weights."""
_READ = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "fan_in_fan_out")
"""Keys of adapter_config.json that are used."""
_HARMLESS = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)
"""Keys of adapter_config.json that do not change what an adapter computes, because its tensors name their layers."""


def check_files(name: str, files: Sequence[str]) -> None:
    """Check that the files of an adapter include its weights in safetensors.

    Raises:
        ModelError: they do not.
    """
    if WEIGHTS_NAME in files:
        return
    if PICKLE_NAME in files:
        raise ModelError(
            f"The adapter {name} has its weights only as {PICKLE_NAME}, a format that can carry code; Finetale reads "
            "safetensors only.",
            "Convert it on an isolated machine with PEFT: PeftModel.from_pretrained(base, adapter)"
            ".save_pretrained(folder).",
        )
    raise ModelError(f"The adapter {name} has no {WEIGHTS_NAME}.", "The download may be incomplete. Download it again.")


def named_base(folder: Path, name: str) -> tuple[str | None, str | None]:
    """Return name and revision of the base that an adapter folder names; None for what it does not.

    Args:
        name: name of the adapter for messages.

    Raises:
        ModelError: adapter_config.json can't be read.
    """
    values = _config_values(folder, name)
    named, revision = (values.get(key) for key in ("base_model_name_or_path", "revision"))
    return (
        named if isinstance(named, str) and named else None,
        revision if isinstance(revision, str) and revision else None,
    )


def base_sha256(folder: Path) -> str | None:
    """Return the SHA-256 of the base that an adapter was trained on; None if its weights file does not hold it.

    Raises:
        ModelError: the file can't be read.
    """
    return _metadata(folder).get(BASE_KEY)


def _metadata(folder: Path) -> dict[str, str]:
    from safetensors import safe_open

    try:
        with safe_open(str(folder / WEIGHTS_NAME), "pt") as file:
            return file.metadata() or {}
    except Exception as error:
        raise _unreadable(folder / WEIGHTS_NAME, error) from None


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of an adapter folder by their names in PEFT's files.

    Raises:
        ModelError: the file can't be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(folder / WEIGHTS_NAME), "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise _unreadable(folder / WEIGHTS_NAME, error) from None


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter folder by their names in PEFT's files.

    Raises:
        ModelError: the file can't be read.
    """
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(str(folder / WEIGHTS_NAME))
        return tensors
    except Exception as error:
        raise _unreadable(folder / WEIGHTS_NAME, error) from None


def _unreadable(file: Path, error: Exception) -> ModelError:
    return ModelError(
        f"The adapter file {file} can't be read: {first_line(error)}", "It may be corrupted or incomplete."
    )


def _config_values(folder: Path, name: str) -> dict[str, Any]:
    try:
        values = read_bounded_json(folder / CONFIG_NAME)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder / CONFIG_NAME, error) from None
    if not isinstance(values, dict):
        raise ModelError(f"The {CONFIG_NAME} of {name} is not an object.", "It may be corrupted.")
    return values


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """Return the settings of an adapter folder; refuse adapters that Finetale can't merge.

    Args:
        name: name of the adapter for messages.

    Raises:
        ModelError: the file can't be read, or the adapter is of another kind.
    """
    values = _config_values(folder, name)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{name} is an adapter of the kind {kind}; Finetale reads LoRA and DoRA.",
            "Merge it with PEFT and give the merged model.",
        )
    neutral: tuple[Any, ...] = (None, False, [], {}, "none", "")
    others = sorted(key for key, value in values.items() if key not in (*_READ, *_HARMLESS) and value not in neutral)
    if others:
        raise ModelError(
            f"{name} is an adapter with {others[0]} in its {CONFIG_NAME}, which Finetale does not read.",
            "Merge it with PEFT and give the merged model.",
        )
    targets = values.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ModelError(
            f"The {CONFIG_NAME} of {name} has no list of target_modules.", "Merge it with PEFT and give the model."
        )
    return {key: values[key] for key in _READ if key in values}
