"""A model name → model, tokenizer, provenance. Knows nothing of data or training.

Names: a Hub id, a local folder, a run directory (its model/), `bundled`, or `new:SHAPE` for random weights. Everything is checked before weights
are read: weights come from safetensors alone, code in a model's folder is never run, and they are held in fp32.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale.errors import HubError, ModelError, TokenizerError
from finetale.rundir import RunDirectory, sha256_of
from finetale.tokens import begin_and_end, check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHAPES: dict[str, tuple[int, int, int, int]] = {  # width, layers, heads, positions
    "1m": (96, 4, 4, 512),
    "3m": (192, 4, 4, 512),
    "10m": (320, 6, 5, 512),
    "30m": (512, 8, 8, 1024),
    "distilgpt2": (768, 6, 12, 1024),
    "gpt2": (768, 12, 12, 1024),
    "gpt2-medium": (1024, 24, 16, 1024),
    "gpt2-large": (1280, 36, 20, 1024),
    "gpt2-xl": (1600, 48, 25, 1024),
}
BUNDLED = Path(__file__).parent / "bundled" / "model"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
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


@dataclass(frozen=True)
class Provenance:
    """Where a model came from; written into run.json."""

    name: str
    kind: str  # hub, local, run, bundled or new
    revision: str | None
    sha256: str
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LoadedModel:
    """A model in fp32 in evaluation mode, with the tokenizer that goes with it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    provenance: Provenance


def is_new(name: str) -> bool:
    """Whether a name stands for random weights."""
    return name.startswith("new:")


def check_name(name: str) -> None:
    """Refuse a model name that can't be meant, before anything slow is done.

    Raises:
        ModelError: says what would be accepted.
    """
    if is_new(name):
        shape_of(name)
    elif name == "bundled":
        if not BUNDLED.is_dir():
            raise ModelError(
                "There is no bundled model in this installation.",
                "Use a Hub id, a folder, or new:10m for random weights.",
            )
    elif not Path(name).expanduser().exists() and not _HUB_ID.match(name):
        raise ModelError(
            f"The model {name!r} is neither an existing folder nor a Hub id (NAME or OWNER/NAME).",
            _near_folder(name) or "Check the path, or name a model on the Hub such as gpt2.",
        )


def shape_of(name: str) -> tuple[int, int, int, int]:
    """Width, layers, heads and positions of `new:SHAPE`.

    Raises:
        ModelError: there is no such shape; names the nearest.
    """
    shape = name.removeprefix("new:")
    if shape not in SHAPES:
        near = difflib.get_close_matches(shape, SHAPES, n=1)
        raise ModelError(
            f"There is no shape {shape!r} for a new model.",
            (f"Did you mean new:{near[0]}? " if near else "")
            + "Shapes: "
            + ", ".join(f"new:{key}" for key in SHAPES)
            + ".",
        )
    return SHAPES[shape]


@dataclass(frozen=True)
class Located:
    """A model whose files are checked and on this machine, its weights not yet read."""

    name: str
    kind: str
    folder: Path
    revision: str | None
    config: dict[str, Any]

    @property
    def positions(self) -> int | None:
        """The longest sequence the model has positions for; None if there is no limit."""
        return positions_of(self.config)


def locate(name: str, *, revision: str | None = None, offline: bool = False) -> Located:
    """Find a model (downloading it if it is on the Hub) and check its files.

    Raises:
        ModelError: not found, not a causal language model, pickle only, or in need of code of its own.
        HubError: the hub can't be reached or refuses.
    """
    check_name(name)
    path = Path(name).expanduser()
    if name == "bundled":
        return _checked(name, "bundled", BUNDLED, None)
    if path.is_dir():
        run = RunDirectory(path)
        if run.is_run():
            if not (run.model / "config.json").is_file():
                raise ModelError(f"The run {name} has no model yet.", f"Go on with `finetale resume {name}`.")
            return _checked(name, "run", run.model, None)
        return _checked(name, "local", path, None)
    if path.exists():
        raise ModelError(
            f"{name} is a file, not a model folder.", "Give the folder that holds config.json and model.safetensors."
        )
    folder, commit = _download(name, revision, offline)
    return _checked(name, "hub", folder, commit)


def load(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dropout: float | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        tokenizer: used in place of the model's own; needed for new:SHAPE.
        dropout: overrides all dropout rates of the config.
        seed: of the random weights of new:SHAPE.

    Raises:
        ModelError: as in `locate`, or weights that do not belong to the config.
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
    located: Located, *, tokenizer: PreTrainedTokenizerBase | None = None, dropout: float | None = None
) -> LoadedModel:
    """Read weights and tokenizer of a located model. Errors as in `load`."""
    tokenizer = tokenizer or load_tokenizer(located.folder, name=located.name)
    model = _read_weights(located, dropout)
    _check_fit(model, tokenizer, located.name)
    digest = hashlib.sha256()
    for file in sorted(located.folder.glob("*.safetensors")):
        digest.update(bytes.fromhex(sha256_of(file)))
    provenance = Provenance(located.name, located.kind, located.revision, digest.hexdigest(), model.num_parameters())
    return LoadedModel(model, tokenizer, provenance)


def load_tokenizer(
    source: str | Path, *, name: str | None = None, revision: str | None = None, offline: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder, a run directory or the Hub, checked not to be empty.

    Raises:
        TokenizerError, ModelError, HubError: as in `load`.
    """
    from transformers import AutoTokenizer

    name = name or str(source)
    folder = Path(source).expanduser()
    if (folder / "run.json").is_file():
        folder = folder / "model"
    if not folder.is_dir():
        if not _HUB_ID.match(str(source)):
            raise TokenizerError(f"The tokenizer {source} is neither a folder nor a Hub id.", "Check the path.")
        folder, _ = _download(str(source), revision, offline, weights=False)
    try:
        with _no_progress_bars():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except (
        Exception
    ) as error:  # transformers raises OSError, ValueError, KeyError, ImportError … for one and the same thing
        raise TokenizerError(
            f"The tokenizer of {name} can't be loaded: {_first_line(error)}",
            "Its folder needs tokenizer.json (or vocab.json and merges.txt) and tokenizer_config.json; or give --tokenizer.",
        ) from error
    check_tokenizer(tokenizer, name)
    return tokenizer


def positions_of(config: dict[str, Any]) -> int | None:
    """Positions in a config.json, whatever the architecture calls them."""
    for key in ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return None


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, max_new_tokens: int = 120
) -> None:
    """Write a model in Hugging Face layout: loads with AutoModelForCausalLM and pipeline("text-generation").

    The files are written where they shall stand; wrap with `rundir.write_folder` to make that atomic.
    """
    from transformers import GenerationConfig

    begin, end = begin_and_end(tokenizer)
    model.config.bos_token_id, model.config.eos_token_id = begin, end
    model.generation_config = GenerationConfig(
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        top_k=0,
        max_new_tokens=max_new_tokens,
    )
    with _no_progress_bars():
        model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass; transformers renamed the method within version 5."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def _checked(name: str, kind: str, folder: Path, revision: str | None) -> Located:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ModelError(
            f"{name} has no config.json, so it is no model folder.",
            "Give the folder that holds config.json and model.safetensors.",
        )
    config = _read_config(config_file)
    _check_config(name, config)
    _check_weight_files(name, sorted(file.name for file in folder.iterdir()))
    return Located(name, kind, folder, revision, config)


def _check_config(name: str, config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"The config.json of {name} names no model_type.", "It may be damaged, or not be a transformers model."
        )
    kind = config["model_type"]
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


def _check_weight_files(name: str, files: list[str]) -> None:
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


def _download(name: str, revision: str | None, offline: bool, *, weights: bool = True) -> tuple[Path, str | None]:
    """Root-level files of a Hub repository that are needed, as a local snapshot, and its commit."""
    from huggingface_hub import HfApi, snapshot_download

    # Offline the client must be asked for the very files it was asked for online, or it takes them for missing.
    wanted = ["*.json", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    below = ["*/*"]
    with _hub_errors(name, revision, offline):
        if offline or _hub_is_offline():
            folder = Path(
                snapshot_download(
                    name, revision=revision, local_files_only=True, allow_patterns=wanted, ignore_patterns=below
                )
            )
            return folder, folder.name
        info = HfApi().model_info(name, revision=revision)
    if weights:
        files = [item.rfilename for item in info.siblings or [] if "/" not in item.rfilename]
        if "config.json" not in files:
            raise ModelError(
                f"{name} on the Hub has no config.json, so it is no transformers model.", "Choose another model."
            )
        with _hub_errors(name, revision, offline):
            config = Path(snapshot_download(name, revision=info.sha, allow_patterns=["config.json"])) / "config.json"
        _check_config(name, _read_config(config))
        _check_weight_files(name, files)
    with _hub_errors(name, revision, offline):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=below))
    return folder, folder.name


def _read_config(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} can't be read: {_first_line(error)}", "Download the model again.") from None


def _hub_is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextlib.contextmanager
def _hub_errors(name: str, revision: str | None, offline: bool) -> Iterator[None]:
    """Turn the hub client's errors into ours."""
    from huggingface_hub import errors

    where = f"{name} at {revision}" if revision else name
    elsewhere = "; `--model bundled` needs no network" if BUNDLED.is_dir() else "; `--model new:10m` needs no network"
    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{where} is gated: its owner wants its terms accepted.",
            "Accept them on its page on the Hub, then set HF_TOKEN.",
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(
            f"{name} has no revision {revision!r}.", "Check --revision: a branch, a tag or a commit."
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"There is no model {name!r} on the Hub, nor a folder of that name.",
            "Check the spelling; for a private model set HF_TOKEN.",
        ) from None
    except errors.LocalEntryNotFoundError:
        if offline or _hub_is_offline():
            raise HubError(
                f"{where} is not on this machine, and offline mode is on.",
                "Run once without --offline (or HF_HUB_OFFLINE=1), or give a local folder" + elsewhere + ".",
            ) from None
        raise HubError(f"The hub can't be reached for {where}.", _UNREACHABLE + elsewhere + ".") from None
    except (OSError, errors.HfHubHTTPError) as error:
        if getattr(error, "errno", None) == 28:
            raise HubError(
                f"The disk is full while downloading {where}.", "Free some space, or set HF_HOME to a larger disk."
            ) from None
        raise HubError(
            f"The hub can't be reached for {where}: {_first_line(error)}", _UNREACHABLE + elsewhere + "."
        ) from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}:
            raise
        raise HubError(
            f"The hub can't be reached for {where}: {_first_line(error)}", _UNREACHABLE + elsewhere + "."
        ) from None


_UNREACHABLE = "Check the network; use a mirror with HF_ENDPOINT=https://…; with the model on this machine already use --offline; or give a local folder"


def _read_weights(located: Located, dropout: float | None) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(located.folder), local_files_only=True, trust_remote_code=False)
        _set_dropout(config, dropout)
        with _no_progress_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                str(located.folder),
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors and transformers raise many kinds for a damaged file
        raise ModelError(
            f"The weights of {located.name} can't be read: {_first_line(error)}",
            "The files may be damaged or incomplete; fetch them again.",
        ) from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing:
        raise ModelError(
            f"The weights of {located.name} lack {len(missing)} tensors of its architecture, such as {missing[0]}.",
            "The files do not belong to this config.json; fetch the model again.",
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws bars for work that takes no time here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _set_dropout(config: Any, dropout: float | None) -> None:
    if dropout is None:
        return
    for key in list(config.to_dict()):
        if key.endswith(("_pdrop", "dropout")) and isinstance(getattr(config, key, None), int | float):
            setattr(config, key, dropout)


def _check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise TokenizerError(
            f"The tokenizer does not fit {name}: it has ids up to {largest}, and the model has {rows} embeddings.",
            "Use the tokenizer the model was trained with (leave --tokenizer out).",
        )


def _new(name: str, tokenizer: PreTrainedTokenizerBase, dropout: float | None, seed: int) -> PreTrainedModel:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    width, layers, heads, positions = shape_of(name)
    begin, end = begin_and_end(tokenizer)
    rate = 0.1 if dropout is None else dropout
    config = GPT2Config(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=begin,
        eos_token_id=end,
        resid_pdrop=rate,
        embd_pdrop=rate,
        attn_pdrop=rate,
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


def _near_folder(name: str) -> str:
    path = Path(name).expanduser()
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [item.name for item in path.parent.iterdir() if item.is_dir()], n=1)
    return f"Did you mean {path.parent / near[0]}?" if near else ""


def _first_line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return text if text.endswith((".", "?", "!")) else text + "."
