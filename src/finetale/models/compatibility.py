"""Add keys to a saved model folder that older tools need: transformers 4, and converters that read GPT-2's own keys.

transformers 5 renamed keys. Version 4 refuses some of the new values, and silently ignores others: a Llama whose
config.json holds only `rope_parameters` gets the default base of rotary positions there, and different logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_ROPE_KEYS = dict.fromkeys(("gpt_neox", "gpt_neox_japanese"), ("rotary_emb_base", "rotary_pct"))
"""Names of rotary base and share in version 4, if they are not `rope_theta` and `partial_rotary_factor`."""
_OF_THIS_MACHINE = ("backend", "is_local", "local_files_only")


def add_older_keys(folder: Path) -> None:
    """Rewrite config.json and tokenizer_config.json so that transformers 4 and 5 read the same from them."""
    for name, change in (("config.json", _older_config), ("tokenizer_config.json", _older_tokenizer)):
        file = folder / name
        if file.is_file():
            values = change(json.loads(file.read_text(encoding="utf-8")), folder)
            file.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _older_config(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    kind = str(config.get("model_type"))
    found = dict(config)
    if kind == "gpt2":
        found["n_ctx"] = config["n_positions"]
    rope = config.get("rope_parameters") or {}
    nested = {layers: value for layers, value in rope.items() if isinstance(value, dict)}
    main = nested.get("full_attention", {}) if nested else rope
    base, share = _ROPE_KEYS.get(kind, ("rope_theta", "partial_rotary_factor"))
    if "rope_theta" in main:
        found[base] = main["rope_theta"]
    if "partial_rotary_factor" in main:
        found[share] = main["partial_rotary_factor"]
    if "rope_theta" in nested.get("sliding_attention", {}):
        found["rope_local_base_freq"] = nested["sliding_attention"]["rope_theta"]
    if main.get("rope_type", "default") != "default":
        aside = ("rope_theta", "partial_rotary_factor")
        found["rope_scaling"] = {key: value for key, value in main.items() if key not in aside}
    return found


def _older_tokenizer(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    found = {key: value for key, value in config.items() if key not in _OF_THIS_MACHINE}
    if str(config.get("tokenizer_class", "")).endswith("Backend") and (folder / "tokenizer.json").is_file():
        found["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):  # version 4 expects a mapping under this name
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    return found
