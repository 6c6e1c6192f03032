"""Count the parameters of a model by its config. Downloads and reads no weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale.models import adapter_files, gguf
from finetale.models.files import check_config, is_adapter, read_config
from finetale.models.hub import download
from finetale.models.locating import locate
from finetale.models.names import BUNDLED_NAME, check_name, is_hub_id
from finetale.models.safety import clean_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skeleton(config: dict[str, Any]) -> PreTrainedModel:
    """Return a model without weights: its layers, on PyTorch's device `meta`."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            CONFIG_MAPPING[config["model_type"]].from_dict(clean_config(config))
        )
    return model


def count_parameters(name: str, *, revision: str | None = None, offline: bool = False) -> int:
    """Return the number of parameters of a model; for an adapter those of its base.

    Errors as in `locate`.
    """
    folder = Path(name).expanduser()
    on_hub = _is_on_hub(name)
    if on_hub:
        check_name(name)
        folder = download(name, revision, offline, weights=False).folder
    if is_adapter(folder):
        base, commit = adapter_files.named_base(folder, name)
        if base is not None and _is_on_hub(base):
            return count_parameters(base, revision=commit, offline=offline)
    if on_hub and (folder / "config.json").is_file():
        config = read_config(folder / "config.json")
        check_config(name, config)
        return int(skeleton(config).num_parameters())
    located = locate(name, revision=revision, offline=offline)
    if located.file is not None:
        return gguf.check_gguf(located.file).elements
    return int(skeleton(located.config).num_parameters())


def _is_on_hub(name: str) -> bool:
    return name != BUNDLED_NAME and is_hub_id(name) and not Path(name).expanduser().exists()
