"""Train small matrices beside frozen weights: LoRA and its kin. The only module that knows PEFT.

The matrices are injected into the model in place, so that the model keeps its class, its hooks and its speed-ups. Files
are in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

- LoRA: Hu et al. 2021, arXiv:2106.09685. rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
- DoRA: Liu et al. 2024, arXiv:2402.09353.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale.config.method import MethodSettings
from finetale.errors import ConfigError, ModelError
from finetale.models.adapter_files import BASE_KEY, CONFIG_NAME, WEIGHTS_NAME, read_settings, read_shapes, read_tensors
from finetale.models.files import first_line
from finetale.rundir import write_json

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel

_NAME = "default"
_PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's tensors in its files."""
_FUSED_TYPES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
_FUSED_LAYERS = ("dt_proj", "out_proj")
"""Layers whose weights state-space models or their kernels read without calling the layers. PEFT refuses `out_proj`."""


def attach(model: PreTrainedModel, settings: MethodSettings, seed: int) -> tuple[str, ...]:
    """Inject the matrices of the method into a model, in place; freeze all other weights.

    Args:
        seed: of the random values of one matrix of each pair; the other one is zero.

    Returns:
        The names of the layers that have matrices, without what comes before their last distinguishing part.

    Raises:
        ConfigError: a name of `lora_targets` matches no layer.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    names = target_names(model, settings.lora_targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.lora_dropout or 0.0,
        target_modules=list(names),
        use_rslora=bool(settings.rslora),
        use_dora=settings.method == "dora",
        fan_in_fan_out=_stores_transposed(model, names),
        task_type="CAUSAL_LM",
    )
    was_training = model.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_NAME)
    model.train(was_training)
    return names


def is_attached(model: torch.nn.Module) -> bool:
    """Return whether a model has injected matrices."""
    return _NAME in getattr(model, "peft_config", {})


def target_names(model: PreTrainedModel, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the layers to adapt, resolved from the setting `lora_targets`.

    Raises:
        ConfigError: a name matches no layer, or one that can't be adapted. The hint lists the names that exist.
    """
    layers = [name for name, _ in linear_layers(model)]
    fused = _FUSED_LAYERS if getattr(model.config, "model_type", None) in _FUSED_TYPES else ()
    read_by_kernels = [name for name in wanted if name.rpartition(".")[2] in fused]
    if read_by_kernels:
        raise ConfigError(
            f"The layers {', '.join(read_by_kernels)} (lora_targets) can't be adapted in a {model.config.model_type} "
            "model: its kernels read their weights without calling the layers.",
            "Leave them out, or set --lora-targets all-linear, which does.",
        )
    layers = [name for name in layers if name.rpartition(".")[2] not in fused]
    last_parts = tuple(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    if not layers:
        raise ConfigError("The model has no linear layers for the matrices of lora.", "Use --method full.")
    if wanted in ((), ("auto",), ("all-linear",)):
        return last_parts
    unknown = [name for name in wanted if not any(_matches(layer, name) for layer in layers)]
    if unknown:
        raise ConfigError(
            f"No linear layer of the model is called {', '.join(unknown)} (lora_targets).",
            f"Layers that can be adapted: {', '.join(last_parts)}; or set --lora-targets all-linear.",
        )
    return wanted


def _matches(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")


def linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the linear layers of a model with their names, without the output layer."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            yield name, module


def adaptable_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the layers of a model that an adapter can have matrices for, with their names.

    These are its linear layers, and the output layer if the embeddings have weights of their own.
    """
    import torch

    yield from linear_layers(model)
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear) and head.weight is not model.get_input_embeddings().weight:
        yield next((name, module) for name, module in model.named_modules() if module is head)


def _stores_transposed(model: PreTrainedModel, names: tuple[str, ...]) -> bool:
    """Return whether the layers hold their weights as (inputs, outputs), as those of GPT-2 do."""
    from transformers.pytorch_utils import Conv1D

    return any(
        isinstance(module, Conv1D) and any(_matches(layer, name) for name in names)
        for layer, module in linear_layers(model)
    )


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained tensors of an adapter by their names in PEFT's files."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)
    return {f"{_PREFIX}{name}": tensor.detach().contiguous() for name, tensor in sorted(found.items())}


def write(model: torch.nn.Module, folder: Path, *, base: str | None, revision: str | None, base_sha256: str) -> None:
    """Write the adapter of a model in PEFT's layout.

    Args:
        base: name of the base, for `base_model_name_or_path`.
        base_sha256: SHA-256 of the base's weights.
    """
    from safetensors.torch import save_file

    config: Any = model.peft_config[_NAME]  # type: ignore[index]
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_json(
        folder / CONFIG_NAME,
        values | {"base_model_name_or_path": base, "revision": revision, "inference_mode": True},
    )
    save_file(tensors_of(model), str(folder / WEIGHTS_NAME), metadata={BASE_KEY: base_sha256})


def load_into(model: torch.nn.Module, folder: Path) -> None:
    """Load the tensors of an adapter folder into a model whose matrices have the same layers and ranks, in place.

    Raises:
        ModelError: the file has other tensors.
    """
    _load(model, read_tensors(folder), str(folder))


def merge_into(model: PreTrainedModel, folder: Path, name: str) -> PreTrainedModel:
    """Add an adapter to the weights of its base in place; return the plain model, which has no matrices any more.

    Args:
        name: name of the adapter for messages.

    Raises:
        ModelError: the adapter does not fit the model, or is of another kind.
    """
    import torch
    from peft import LoraModel

    tensors = read_tensors(folder)
    config = _read_config(folder, name)
    _check_layers(model, config, name)
    config.fan_in_fan_out = _stores_transposed(model, tuple(config.target_modules or ()))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # PEFT draws random values first
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # _check_layers looks at the weights
        tuner = LoraModel(model, config, _NAME)
    _load(model, tensors, name)
    merged: PreTrainedModel = tuner.merge_and_unload()
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged


@dataclass(frozen=True)
class Fit:
    """How an adapter folder fits a model.

    Attributes:
        layers: the layers that have matrices, by name.
        factor: what the product of the two matrices is multiplied by.
        rank: rank of the matrices.
        is_dora: whether there is a magnitude per output.
    """

    layers: Mapping[str, torch.nn.Module]
    factor: float
    rank: int
    is_dora: bool

    def tensors_of(self, layer: str) -> tuple[str, ...]:
        """Return the names of a layer's tensors in PEFT's files: A, B, and for DoRA the magnitude."""
        names = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
        return tuple(f"{_PREFIX}{layer}.{name}" for name in names[: 3 if self.is_dora else 2])


def fit_of(model: PreTrainedModel, folder: Path, name: str) -> Fit:
    """Check that an adapter folder fits a model. Reads no tensors; the model may have none (PyTorch's device `meta`).

    Raises:
        ModelError: the files can't be read, the adapter is of another kind, or it has other layers or sizes.
    """
    config = _read_config(folder, name)
    targets = tuple(config.target_modules or ())
    _check_layers(model, config, name)
    layers = {
        layer: module for layer, module in adaptable_layers(model) if any(_matches(layer, target) for target in targets)
    }
    factor = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    fit = Fit(layers, factor, config.r, bool(config.use_dora))
    expected: dict[str, tuple[int, ...]] = {}
    for layer, module in layers.items():
        outputs, inputs = matrix_of(module).shape
        shapes = ((config.r, inputs), (outputs, config.r), (outputs,))
        expected |= dict(zip(fit.tensors_of(layer), shapes, strict=False))
    found = read_shapes(folder)
    _check_shapes(expected, {key: shape for key, shape in found.items() if ".lora_" in key}, name)
    return fit


def matrix_of(module: torch.nn.Module) -> torch.Tensor:
    """Return the weight of a linear layer as (outputs, inputs)."""
    from transformers.pytorch_utils import Conv1D

    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight.t() if isinstance(module, Conv1D) else weight


def _load(model: torch.nn.Module, tensors: dict[str, torch.Tensor], name: str) -> None:
    import torch

    own = tensors_of(model)
    tensors = without_copies(model, tensors, name)
    _check_shapes(
        {key: tuple(tensor.shape) for key, tensor in own.items()},
        {key: tuple(tensor.shape) for key, tensor in tensors.items()},
        name,
    )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(tensors[key])


def _check_shapes(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], name: str) -> None:
    """Refuse tensors with other names or shapes than those that the base needs."""
    if expected.keys() != found.keys():
        odd = sorted(expected.keys() ^ found.keys())[0]
        raise ModelError(
            f"The adapter {name} does not fit its base: {odd.removeprefix(_PREFIX)} is only in one of them.",
            "Name the model that the adapter was trained on.",
        )
    for key, shape in expected.items():
        if shape != found[key]:
            raise ModelError(
                f"The adapter {name} does not fit its base: {key.removeprefix(_PREFIX)} has the shape "
                f"{found[key]} instead of {shape}.",
                "Name the model that the adapter was trained on.",
            )


def without_copies(model: torch.nn.Module, tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Leave out copies of the base's weights: PEFT saves embeddings and output layer if one of them is adapted.

    Raises:
        ModelError: one is not a copy, so it was trained or resized.
    """
    import torch

    base = model.state_dict()
    for key, tensor in tensors.items():
        if ".lora_" in key:
            continue
        own = key.removeprefix(_PREFIX)
        kept = base.get(own, base.get(own.replace(".base_layer", "")))
        if kept is None or kept.shape != tensor.shape or not torch.equal(kept, tensor.to(kept.dtype)):
            raise ModelError(
                f"The adapter {name} holds {key.removeprefix(_PREFIX)}, which was trained or resized beside its "
                "matrices; Finetale does not read that.",
                "Merge it with PEFT and give the merged model.",
            )
    return {key: tensor for key, tensor in tensors.items() if ".lora_" in key}


def _read_config(folder: Path, name: str) -> LoraConfig:
    from peft import LoraConfig

    try:
        config = LoraConfig(**read_settings(folder, name), task_type="CAUSAL_LM")
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"The {CONFIG_NAME} of {name} is invalid: {first_line(error)}", "It may be corrupted."
        ) from None
    config.lora_dropout = 0.0
    return config


def _check_layers(model: PreTrainedModel, config: LoraConfig, name: str) -> None:
    """Refuse an adapter of layers that the model does not have or that can't be merged, before PEFT changes the model.

    A matrix of the output layer can be merged only if the embeddings have weights of their own (PEFT issue 2018).
    """
    layers, head = [layer for layer, _ in linear_layers(model)], model.get_output_embeddings()
    others = {part: module for part, module in model.named_modules() if part not in layers}
    for target in sorted(config.target_modules or ()):
        if any(_matches(layer, target) for layer in layers):
            continue
        found = next((module for part, module in others.items() if _matches(part, target)), None)
        if found is None:
            raise ModelError(
                f"The adapter {name} is for layers called {target}, which its base does not have.",
                "Name the model that the adapter was trained on.",
            )
        if found is not head:
            raise ModelError(
                f"The adapter {name} changes {target}, and Finetale merges matrices of linear layers only.",
                "Merge it with PEFT and give the merged model.",
            )
        if head.weight is model.get_input_embeddings().weight:
            raise ModelError(
                f"The adapter {name} changes the output layer {target}, whose weights its base uses as embeddings too. "
                "A merged model would have changed embeddings.",
                "Use an adapter that was trained without the output layer.",
            )
