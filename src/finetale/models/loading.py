"""Load a model in fp32 with its tokenizer and provenance, and save it to a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale.chat import PLAIN_TEMPLATE
from finetale.errors import ConfigError, HubError, ModelError, TokenizerError
from finetale.models import adapters, gguf
from finetale.models.beginning import MARK, lead_of, mark_of, set_mark
from finetale.models.compatibility import add_older_keys
from finetale.models.dropout import OWN_RATES, Dropout
from finetale.models.files import first_line, read_config
from finetale.models.generation import drop_foreign_ids, generation_config
from finetale.models.locating import Located, locate
from finetale.models.names import is_new, shape_of
from finetale.models.progress_bars import no_progress_bars
from finetale.models.safety import clean_config
from finetale.models.tokenizer_files import load_tokenizer, tokenizer_warning
from finetale.models.vocabulary import NewToken, check_vocabulary, grow
from finetale.rundir import is_sealed, sealed_sums, sha256_of
from finetale.tokens import begin_and_end, tokenizer_hash

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Provenance:
    """Where a model came from; recorded in run.json."""

    name: str
    kind: str  # hub, local, gguf, run, bundled or new
    revision: str | None
    sha256: str
    parameters: int
    weights: str | None = None
    """Type and bits of the weights in a GGUF file, such as "Q4_K, 4.8 bits per weight"."""
    base: str | None = None
    """Name of the base of an adapter, with its commit if it is on the Hub."""
    license: str | None = None
    """Licence that its card states."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LoadedModel:
    """A model in fp32 in evaluation mode, with the tokenizer that goes with it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    provenance: Provenance
    warning: str | None = None
    """A warning about its files, for people."""
    located: Located | None = None
    """Where its weights were read; None for random weights."""


def load(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dropout: Dropout = OWN_RATES,
    seed: int = 0,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        tokenizer: replaces the model's own; required for new:SHAPE.
        dropout: rates that replace those of the config.
        seed: of the random weights of new:SHAPE.

    Raises:
        ModelError: as in `locate`; or the weights do not belong to the config.
        TokenizerError: the tokenizer is empty or does not fit the model.
    """
    if is_new(name):
        shape_of(name)
        if tokenizer is None:
            raise TokenizerError(
                f"{name} needs a tokenizer.", "Give one with --tokenizer, or train on text: then one is trained."
            )
        model = _new(name, tokenizer, dropout, seed)
        return LoadedModel(
            model, tokenizer, Provenance(name, "new", None, _hash_of_weights(model), model.num_parameters())
        )
    return load_located(locate(name, revision=revision, offline=offline), tokenizer=tokenizer, dropout=dropout)


def load_located(
    located: Located,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dropout: Dropout = OWN_RATES,
    new_tokens: Sequence[NewToken] = (),
) -> LoadedModel:
    """Read weights and tokenizer of a located model. Errors as in `load`.

    Args:
        new_tokens: tokens that were added to `tokenizer`; they get embeddings.
    """
    given, tokenizer = tokenizer, tokenizer or tokenizer_of(located)
    model = _read_weights(located, dropout)
    parameters = model.num_parameters()
    rows = model.get_input_embeddings().weight.shape[0]
    missing = None if new_tokens else check_vocabulary(rows, tokenizer, located.name)
    if new_tokens or missing:
        grow(model, tokenizer, new_tokens)
    warning = " ".join(filter(None, (located.warning, tokenizer_warning(tokenizer), missing))) or None
    if _is_foreign(located, given, tokenizer):
        drop_foreign_ids(model, tokenizer)
    sha256 = weights_sha256(located)
    if located.adapter is not None:
        model = adapters.merge_into(model, located.adapter, located.name)
    if mark_of(model) is None and _is_trained(located, tokenizer):
        set_mark(model, True)
    weights = None if located.file is None else gguf.describe(gguf.check_gguf(located.file))
    source = (located.name, located.kind, located.revision)
    provenance = Provenance(*source, sha256, parameters, weights, located.base, located.license)
    return LoadedModel(model, tokenizer, provenance, warning, located)


def _is_trained(located: Located, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether Finetale trained a model whose config.json does not say what comes before a text.

    Adapters and the folders of older versions do not say it. Finetale always trained with beginning-of-text.
    """
    if located.kind in ("run", "bundled") or tokenizer.chat_template == PLAIN_TEMPLATE:
        return True
    return located.base_sha256 is not None if located.adapter is not None else is_sealed(located.folder)


def weights_sha256(located: Located) -> str:
    """Return the SHA-256 of the weights of a located model, as its provenance has it.

    Raises:
        ModelError: the base of its adapter is not the one that the adapter was trained on.
    """
    sha256 = _hash_of_files(located.folder, located.kind) if located.file is None else sha256_of(located.file)
    if located.adapter is None:
        return sha256
    if located.base_sha256 not in (None, sha256):
        raise ModelError(
            f"The base of the adapter {located.name} has changed since the adapter was trained (SHA-256 differs).",
            f"Restore the weights in {located.folder}.",
        )
    return adapted_sha256(sha256, located.adapter, located.kind)


def adapted_sha256(base_sha256: str, folder: Path, kind: str = "local") -> str:
    """Return the SHA-256 of a base together with an adapter folder of a located model."""
    return hashlib.sha256((base_sha256 + _hash_of_files(folder, kind)).encode()).hexdigest()


def _is_foreign(located: Located, given: PreTrainedTokenizerBase | None, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer is not that of a model's weights, so that the ids that the model lists are not its."""
    if given is not None:
        return given.name_or_path not in (str(located.folder), str(located.source))
    if located.tokenizer is None or located.foreign_tokenizer is not None:
        return bool(located.foreign_tokenizer)
    try:
        own = load_tokenizer(located.source, name=located.name)
    except TokenizerError:
        return True
    return tokenizer_hash(own) != tokenizer_hash(tokenizer)


def _hash_of_files(folder: Path, kind: str) -> str:
    """Return a SHA-256 over the weight files of a folder of a located model."""
    digest = hashlib.sha256()
    # The manifest of a folder on this machine was verified when the model was located.
    known = sealed_sums(folder) if kind != "hub" and is_sealed(folder) else {}
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(bytes.fromhex(known.get(file.name) or _checked_sha256(file)))
    return digest.hexdigest()


def _checked_sha256(file: Path) -> str:
    """Return the SHA-256 of a file. In the Hub's cache, a large file is a link to a file that is named by its SHA-256.

    Raises:
        HubError: the file has another SHA-256 than its name says.
    """
    sha256, blob = sha256_of(file), file.resolve()
    if file.is_symlink() and _SHA256.fullmatch(blob.name) and blob.name != sha256:
        raise HubError(
            f"{file.name} differs from its SHA-256 on the hub: the download or the disk changed it.",
            f"Delete {blob} and run again.",
        )
    return sha256


def tokenizer_of(located: Located) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a located model. Errors as in `load_tokenizer`."""
    return load_tokenizer(located.tokenizer or located.source, name=located.name)


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, max_new_tokens: int = 120
) -> None:
    """Write a model in Hugging Face layout: loads with AutoModelForCausalLM and pipeline("text-generation").

    The files are written in place; wrap the call with `rundir.write_folder` to make it atomic.
    """
    _set_ids(model, tokenizer, max_new_tokens)
    with no_progress_bars():
        model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    add_older_keys(folder)


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Read the weights of a folder that `save` wrote into a model of the same architecture, in place.

    transformers maps the names in the folder to those in memory and records which mapping it used. The model takes over
    the record, so that `save` writes the same names again.
    """
    import torch

    located = Located(str(folder), "local", folder, None, read_config(folder / "config.json"))
    stored = _read_weights(located, OWN_RATES)
    with torch.no_grad():
        found = stored.state_dict()
        for name, tensor in model.state_dict().items():
            tensor.copy_(found[name])
    model._weight_conversions = stored._weight_conversions


def _set_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> None:
    """Set a model's special ids and generation_config to those of its tokenizer; keep other end ids that it lists."""
    begin, end = begin_and_end(tokenizer)
    if mark_of(model) is None:
        set_mark(model, bool(lead_of(tokenizer, None)))
    model.generation_config = generation_config(model, tokenizer, max_new_tokens=max_new_tokens)
    model.config.bos_token_id = begin
    if not isinstance(model.config.eos_token_id, list):
        model.config.eos_token_id = end


def freeze(model: PreTrainedModel, what: str | None) -> None:
    """Exclude a part of the model from training: "embeddings", or a number of lowest layers ("3") and the embeddings.

    Raises:
        ConfigError: no layer would be left to train.
    """
    if what is None:
        return
    for embedding in (model.get_input_embeddings(), *_position_embeddings(model)):
        embedding.requires_grad_(False)
    if what == "embeddings":
        return
    found = layers(model)
    if int(what) >= len(found):
        raise ConfigError(
            f"freeze {what} would leave nothing to train: the model has {len(found)} layers.",
            f"Choose --freeze {max(1, len(found) - 1)} or less, or --freeze embeddings.",
        )
    for layer in found[: int(what)]:
        layer.requires_grad_(False)


def layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the layers of a model from the lowest on: its longest list of modules."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max((list(layers) for layers in lists), key=len, default=[])


def _position_embeddings(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the embeddings outside the layers, without that of the tokens."""
    import torch

    inside = {id(module) for layer in layers(model) for module in layer.modules()}
    return [module for module in model.modules() if isinstance(module, torch.nn.Embedding) and id(module) not in inside]


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass. transformers renamed the method within version 5."""
    if is_checkpointing(model):
        return
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.disable_input_require_grads()  # only the older kind needs it, and it would undo `freeze`


def discard(model: torch.nn.Module) -> None:
    """Free the weights of a model that is not used any more, although references to it remain."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.grad = None
        tensor.data = tensor.data.new_empty(0)


def is_checkpointing(model: torch.nn.Module) -> bool:
    """Return whether `enable_checkpointing` was called."""
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        if hasattr(type(model), name):
            return bool(getattr(model, name))
    return False


def _read_weights(located: Located, dropout: Dropout) -> PreTrainedModel:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    try:
        config = CONFIG_MAPPING[located.config["model_type"]].from_dict(clean_config(located.config))
        dropout.set_in(config)
        if located.file is not None:
            return gguf.read_model(located.file, config)
        with no_progress_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                str(located.folder),
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, with their names
            )
    except ModelError:
        raise
    except Exception as error:  # safetensors and transformers raise many kinds for a damaged file
        raise ModelError(
            f"The weights of {located.name} can't be read: {first_line(error)}",
            "The files may be corrupted or incomplete. Download them again.",
        ) from error
    _check_loaded(located.name, info)
    _make_reproducible(model)
    loaded: PreTrainedModel = model.eval()
    return loaded


def _check_loaded(name: str, info: dict[str, Any]) -> None:
    """Refuse files whose tensors are not those of the architecture: transformers would fill them with random values.

    Args:
        info: what transformers reports about the tensors that it read.
    """
    hint = "The files do not belong to this config.json. Download the model again."
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"The weights of {name} lack {len(missing)} tensors of its architecture, such as {missing[0]}.", hint
        )
    if other := sorted(info.get("mismatched_keys", ())):
        key, stored, wanted = other[0]
        raise ModelError(
            f"The weights of {name} have {key} of the shape {tuple(stored)}, and its config.json wants "
            f"{tuple(wanted)}.",
            hint,
        )


def _make_reproducible(model: PreTrainedModel) -> None:
    """Compute experts with biases (gpt_oss) one by one.

    The faster code gathers a bias for every token. With several threads, its gradient is summed in any order.
    """
    if any(name.endswith(".gate_up_proj_bias") for name, _ in model.named_parameters()):
        model.set_experts_implementation("eager")


def _new(name: str, tokenizer: PreTrainedTokenizerBase, dropout: Dropout, seed: int) -> PreTrainedModel:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    width, layers, heads, positions = shape_of(name)
    begin, end = begin_and_end(tokenizer)
    rate = 0.1 if dropout.rate is None else dropout.rate
    config = GPT2Config(
        **{MARK: True},
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=begin,
        eos_token_id=end,
        resid_pdrop=rate,
        embd_pdrop=rate,
        attn_pdrop=dropout.for_attention(rate),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = GPT2LMHeadModel(config).eval()
    return model


def _hash_of_weights(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
