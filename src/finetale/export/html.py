"""Write a GPT-2 as one web page that runs it in a browser, without a server and without other files.

The page is built of `templates/webpage.html.j2` and the readable scripts in `templates/webpage/`. Weights are in 8 bits
with a scale per row, and in base64. The proof opens the written file in Chromium and calls the functions that the page
itself uses.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from finetale import models
from finetale.config import SamplingSettings
from finetale.errors import ModelError
from finetale.export.chromium import PageRuntime, find_browser
from finetale.generate import Generator
from finetale.models import LoadedModel

MOST_BYTES = 60_000_000
"""Largest page: what browsers of phones load, and what file services take."""
_LANGUAGES = ("en", "zh")
_WORKER = ("tokenizer", "model", "sampling", "worker")
"""Scripts of the worker, in the order in which they are read."""
_ACTIVATIONS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf", "relu": "relu"}
_NAMES = {
    "transformer.wte.weight": "tokens",
    "transformer.wpe.weight": "positions",
    "transformer.ln_f.weight": "normal.weight",
    "transformer.ln_f.bias": "normal.bias",
    "lm_head.weight": "head",
}
_PARTS = {
    "ln_1": "normal1",
    "attn.c_attn": "attention",
    "attn.c_proj": "project",
    "ln_2": "normal2",
    "mlp.c_fc": "inner",
    "mlp.c_proj": "outer",
}
_OTHER = "Choose another format: finetale export MODEL --to list."


def check(loaded: LoadedModel) -> None:
    """See Exporter."""
    config = loaded.model.config
    if config.model_type != "gpt2":
        raise ModelError(f"Models of the type {config.model_type} can't be written to html; only gpt2 can.", _OTHER)
    odd = {
        "activation_function": config.activation_function not in _ACTIVATIONS,
        "scale_attn_weights": not config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "add_cross_attention": config.add_cross_attention,
    }
    for name in filter(odd.get, odd):
        raise ModelError(f"A GPT-2 with {name}: {getattr(config, name)} can't be written to html.", _OTHER)
    _rules_of(loaded.tokenizer)
    size = sum(each.numel() for each in loaded.model.parameters()) * 4 / 3
    if size > MOST_BYTES:
        raise ModelError(
            f"The page would have {size / 1e6:,.0f} MB; at most {MOST_BYTES / 1e6:,.0f} MB are written to html.",
            "Choose --to gguf for a model of this size.",
        )
    find_browser()


def write(loaded: LoadedModel, folder: Path, weights: str) -> None:
    """See Exporter."""
    name = Path(loaded.provenance.name).name
    file = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
    (folder / f"{file}.html").write_text(_page(name, loaded), encoding="utf-8")


def open(folder: Path, loaded: LoadedModel) -> PageRuntime:
    """See Exporter."""
    return PageRuntime(next(folder.glob("*.html")))


def usage(folder: Path) -> str:
    """See Exporter."""
    file = next(folder.glob("*.html")).name
    return f"""Open `{file}` with a browser, for example by a double click. The model is inside the page and runs on
this computer; the page loads nothing and sends nothing. To give it to somebody, send this one file."""


def _page(name: str, loaded: LoadedModel) -> str:
    folder = resources.files("finetale") / "templates"
    own = folder / "webpage"

    def read(*names: str) -> str:
        return "\n".join((own / each).read_text(encoding="utf-8") for each in names)

    style = (folder / "look.css").read_text(encoding="utf-8") + read("page.css")
    words = _json({each: json.loads(read(f"words.{each}.json")) for each in _LANGUAGES})
    script = f'"use strict";\nconst WORDS = {words};\n{read("page.js")}'
    worker = '"use strict";\n' + read(*(f"{each}.js" for each in _WORKER))
    data, places = _stored(loaded)
    config, generator = loaded.model.config, Generator(loaded.model, loaded.tokenizer)
    about = {
        "shape": {
            "layers": config.n_layer,
            "heads": config.n_head,
            "width": config.n_embd,
            "inner": config.n_inner or 4 * config.n_embd,
            "context": config.n_positions,
            "epsilon": config.layer_norm_epsilon,
            "activation": _ACTIVATIONS[config.activation_function],
        },
        "tensors": places,
        "tokenizer": _rules_of(loaded.tokenizer),
        "size": generator.vocab_size,
        "begin": generator.begin,
        "lead": generator.lead,
        "ends": models.end_ids(loaded.model, loaded.tokenizer),
        "forbidden": [token for token in generator.forbidden if token < generator.vocab_size],
    }
    environment = Environment(loader=PackageLoader("finetale", "templates"), autoescape=True)
    return environment.get_template("webpage.html.j2").render(
        name=name,
        style=Markup(style),
        style_hash=Markup(_hash(style)),
        script=Markup(script),
        script_hash=Markup(_hash(script)),
        worker=Markup(worker),
        about=Markup(_json(about)),
        weights=Markup(base64.b64encode(data).decode()),
        defaults=SamplingSettings(),
        context=config.n_positions,
        vocabulary=generator.vocab_size,
    )


def _hash(source: str) -> str:
    """Return the word by which the page's Content-Security-Policy allows a script or a style, and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _json(value: Any) -> str:
    """Return JSON in which no text can end a script."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _stored(loaded: LoadedModel) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """Return the weights as bytes, and by name the shape of each tensor and where it begins.

    A matrix is its scales in fp32, one per row, and its rows in 8 bits; a vector is in fp32. Each begins at a multiple
    of four bytes.

    Raises:
        ModelError: a weight is not a number.
    """
    parts: list[bytes] = []
    places: dict[str, dict[str, Any]] = {}
    size = 0
    for name, tensor in loaded.model.named_parameters():
        values = tensor.detach().float().cpu().numpy()
        if not np.isfinite(values).all():
            raise ModelError(f"Weights of {name} are not numbers.", "Train the model again, or take another.")
        new = _name_of(name)
        if new[0].isdigit() and values.ndim == 2:
            values = values.T  # GPT-2 stores these as (inputs, outputs)
        part = values.tobytes() if values.ndim == 1 else _rounded(values)
        part += bytes(-len(part) % 4)
        places[new] = {"shape": values.shape, "at": size}
        parts.append(part)
        size += len(part)
    return b"".join(parts), places


def _name_of(name: str) -> str:
    """Return the name of a tensor in the page."""
    if name in _NAMES:
        return _NAMES[name]
    layer, part, kind = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)", name).groups()  # type: ignore[union-attr]
    return f"{layer}.{_PARTS[part]}.{kind}"


def _rounded(values: NDArray[np.float32]) -> bytes:
    """Return the scales of the rows, and the rows in 8 bits."""
    scales = np.abs(values).max(axis=1) / np.float32(127)
    scales[scales == 0] = 1
    rows = np.rint(values / scales[:, None]).astype(np.int8)
    return bytes(scales.astype(np.float32).tobytes() + rows.tobytes())


def _rules_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what the page needs of a tokenizer.

    Raises:
        ModelError: it is not byte-level BPE that cuts text as GPT-2 does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    bpe, cut, normalizer = rules.get("model", {}), rules.get("pre_tokenizer") or {}, rules.get("normalizer") or {}
    kind = bpe.get("type", type(tokenizer).__name__)
    if kind != "BPE" or cut.get("type") != "ByteLevel" or not cut.get("use_regex") or cut.get("add_prefix_space"):
        raise ModelError(
            "This tokenizer can't be written to html; only byte-level BPE that cuts text as GPT-2 does can.", _OTHER
        )
    odd = [key for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout") if bpe[key]]
    odd += [
        f"{key} of {each['content']}"
        for each in rules["added_tokens"]
        for key in ("lstrip", "rstrip", "single_word")
        if each[key]
    ]
    if normalizer.get("type", "NFC") not in ("NFC", "NFD", "NFKC", "NFKD"):
        odd.append(f"the normalizer {normalizer['type']}")
    if odd:
        raise ModelError(f"A tokenizer with {odd[0]} can't be written to html.", _OTHER)
    names = {number: token for token, number in bpe["vocab"].items()}
    return {
        "vocabulary": [names.get(number) for number in range(max(names) + 1)],
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]],
        "added": {each["id"]: each["content"] for each in rules["added_tokens"]},
        "normalizer": normalizer.get("type"),
        "ignoreMerges": bpe.get("ignore_merges", False),
    }
