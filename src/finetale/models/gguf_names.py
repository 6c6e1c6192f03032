"""What transformers calls the values and tensors of a GGUF file, for each supported architecture.

llama.cpp stores a model under names of its own and changes some numbers: it interleaves the two halves of rotary
queries and keys, stores Gemma's norms plus one, and transposes GPT-2's matrices. The sources are llama.cpp's converter
(convert_hf_to_gguf.py) and its loader; the tests compare each architecture with the original model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetale.errors import ModelError
from finetale.models.gguf_header import GgufHeader, GgufTensor

if TYPE_CHECKING:
    import torch

_ROPE_TENSOR = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Scaling of the rotary positions of Llama 3.1 and later; the file has only its result."""
_PLACE = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)|(\w+)\.(weight|bias)", re.ASCII)
_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_OPTIONAL_KEYS = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROTATED = ("attn_q", "attn_k")
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Attributes:
        model_type: its name in transformers.
        outer: GGUF's names of the tensors outside the layers, and those of transformers.
        inner: the same for one layer.
        layers: name of the list of layers in transformers.
        is_interleaved: whether queries and keys are stored with the two halves of a head interleaved.
        norm_offset: number that was added to the weights of norms.
        transposed: names of the matrices that transformers stores transposed.
        fixed: keys of the config that the file does not store.
    """

    model_type: str
    outer: Mapping[str, str]
    inner: Mapping[str, str]
    layers: str = "model.layers"
    is_interleaved: bool = False
    norm_offset: float = 0.0
    transposed: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def embedding(self) -> str:
        """The name of the embedding's tensor in transformers."""
        return f"{self.outer['token_embd']}.weight"

    def name_of(self, tensor: str) -> str | None:
        """Return the name of a tensor in transformers; "" for one that is in the config; None for an unknown one."""
        if tensor == _ROPE_TENSOR:
            return ""
        found = _PLACE.fullmatch(tensor)
        if found is None:
            return None
        layer, inner, inner_end, outer, outer_end = found.groups()
        if outer is not None:
            return f"{self.outer[outer]}.{outer_end}" if outer in self.outer else None
        return f"{self.layers}.{int(layer)}.{self.inner[inner]}.{inner_end}" if inner in self.inner else None

    def gguf_name_of(self, name: str) -> str | None:
        """Return the name in a GGUF file of a tensor of transformers; None if the file has no place for it."""
        stem, _, end = name.rpartition(".")
        if stem.startswith(f"{self.layers}."):
            number, _, part = stem.removeprefix(f"{self.layers}.").partition(".")
            found = next((key for key, value in self.inner.items() if value == part), None)
            return None if found is None or not number.isdecimal() else f"blk.{number}.{found}.{end}"
        found = next((key for key, value in self.outer.items() if value == stem), None)
        return None if found is None else f"{found}.{end}"

    def stored(self, name: str, values: torch.Tensor, config: Any) -> torch.Tensor:
        """Return the numbers of a tensor as the file stores them: the inverse of `converted`."""
        part = _part(name)
        if self.is_interleaved and part in _ROTATED:
            halves = values.reshape(
                self._heads(part, config), 2, -1, *values.shape[1:]
            )  # (heads, 2, half of a head, …)
            return halves.transpose(1, 2).reshape(values.shape)
        if self.norm_offset and part.endswith("norm"):
            return values + self.norm_offset
        return values.T if part in self.transposed and values.ndim == 2 else values

    def converted(self, name: str, values: torch.Tensor, config: Any) -> torch.Tensor:
        """Return the numbers of a tensor as transformers stores them."""
        part = _part(name)
        if self.is_interleaved and part in _ROTATED:
            pairs = values.reshape(self._heads(part, config), -1, 2, *values.shape[1:])  # (heads, half of a head, 2, …)
            return pairs.transpose(1, 2).reshape(values.shape)
        if self.norm_offset and part.endswith("norm"):
            return values - self.norm_offset
        return values.T if part in self.transposed and values.ndim == 2 else values

    def _heads(self, part: str, config: Any) -> int:
        return int(config.num_attention_heads if part == "attn_q" else config.num_key_value_heads)


def _part(name: str) -> str:
    """Return the name of a tensor in GGUF without its layer and ending."""
    return name.split(".")[-2]


_LLAMA = Architecture("llama", _OUTER, _ATTENTION | _FEED_FORWARD | _NORMS, is_interleaved=True)
ARCHITECTURES: dict[str, Architecture] = {
    "gemma2": Architecture("gemma2", _OUTER, _ATTENTION | _FEED_FORWARD | _GEMMA_NORMS, norm_offset=1.0),
    "gemma3": Architecture(
        "gemma3_text", _OUTER, _ATTENTION | _FEED_FORWARD | _GEMMA_NORMS | _QK_NORMS, norm_offset=1.0
    ),
    "gpt2": Architecture(
        "gpt2",
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        layers="transformer.h",
        transposed=frozenset(("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    ),
    "llama": _LLAMA,
    "phi3": Architecture(
        "phi3",
        _OUTER,
        {
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        }
        | _NORMS,
    ),
    "qwen2": Architecture("qwen2", _OUTER, _ATTENTION | _FEED_FORWARD | _NORMS),
    "qwen3": Architecture("qwen3", _OUTER, _ATTENTION | _FEED_FORWARD | _NORMS | _QK_NORMS),
}
"""By llama.cpp's name. Others are refused, because nothing proves their conversion."""

_LIKE_LLAMA = frozenset(["mistral"])
"""Types of transformers that llama.cpp runs as Llama."""


def architecture_of(model_type: str) -> str | None:
    """Return llama.cpp's name of the architecture of a model type; None if it is not supported."""
    if model_type in _LIKE_LLAMA:
        return "llama"
    return next((name for name, each in ARCHITECTURES.items() if each.model_type == model_type), None)


def values_of(name: str, config: Any) -> dict[str, Any]:
    """Return what a GGUF file states about a model, by key: the inverse of `config_of`.

    Args:
        name: llama.cpp's name of the architecture.
        config: config of the model, with transformers' attributes.

    Raises:
        ModelError: the config scales rotary positions in a way that a file can't express.
    """
    found: dict[str, Any] = {f"{name}.{key}": getattr(config, value, None) for key, value in _KEYS.items()}
    if name == "gpt2":
        inner = config.n_inner or 4 * config.hidden_size
        return found | {
            "gpt2.feed_forward_length": inner,
            "gpt2.attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        }
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters or {}
    local = rope.get("sliding_attention", {}).get("rope_theta")
    rope = rope.get("full_attention", rope)
    found |= {
        f"{name}.{key}": getattr(config, value, None)
        for key, value in _OPTIONAL_KEYS.items()
        if key != "attention.key_length"
    }
    found |= {
        f"{name}.attention.key_length": head_dim,
        f"{name}.attention.value_length": head_dim,
        f"{name}.vocab_size": config.vocab_size,
        f"{name}.rope.freq_base": float(rope.get("rope_theta", 10_000.0)),
        f"{name}.rope.freq_base_swa": local,
        f"{name}.rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
    }
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        found |= {f"{name}.rope.scaling.type": kind, f"{name}.rope.scaling.factor": float(rope["factor"])}
        if kind == "yarn":
            before = rope.get("original_max_position_embeddings")
            found[f"{name}.rope.scaling.original_context_length"] = before
    elif kind not in ("default", "llama3"):
        raise ModelError(
            f"Rotary positions that are scaled by {kind!r} can't be written to GGUF.", "Choose another format."
        )
    return {key: value for key, value in found.items() if value is not None}


def rotary_divisors(config: Any) -> np.ndarray[Any, Any] | None:
    """Return the divisors of the rotary frequencies of Llama 3 for the tensor `rope_freqs`; None for other models."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return _divisors(rope["factor"], rope["rope_theta"], head_dim, rope)


def _divisors(factor: float, base: float, head_dim: int, scaling: Mapping[str, float]) -> np.ndarray[Any, Any]:
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = ((scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low)).clip(0, 1)
    found: np.ndarray[Any, Any] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return found


def config_of(header: GgufHeader, path: Path) -> dict[str, Any]:
    """Return the content of a config.json for a file.

    Raises:
        ModelError: rotary positions are scaled in a way that a config can't express.
        KeyError, TypeError, ValueError: a value is missing or invalid.
    """
    architecture = ARCHITECTURES[header.architecture]
    config: dict[str, Any] = {"model_type": architecture.model_type, **architecture.fixed}
    for key, name in _KEYS.items():
        value = header.of_model(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{header.architecture}.{key} is {value!r}.")
        config[name] = value
    for key, name in _OPTIONAL_KEYS.items():
        if (value := header.of_model(key)) is not None:
            config[name] = value
    heads, width = config["num_attention_heads"], config["hidden_size"]
    config.setdefault("num_key_value_heads", heads)
    head_dim = config.setdefault("head_dim", width // heads)
    config["vocab_size"] = next(tensor.shape[0] for tensor in header.tensors if tensor.name == "token_embd.weight")
    for name in ("bos", "eos"):
        config[f"{name}_token_id"] = header.values.get(f"tokenizer.ggml.{name}_token_id")
    config["pad_token_id"] = header.values.get("tokenizer.ggml.padding_token_id")
    if header.architecture == "gpt2":
        return _of_gpt2(config, header)
    if any(tensor.name.endswith("attn_q.bias") for tensor in header.tensors):
        config["attention_bias"] = True
    if header.architecture.startswith("gemma"):
        largest = {"gemma2": 46, "gemma3": 62}[header.architecture]  # layers of the 27B models
        is_largest = config["num_hidden_layers"] == largest
        config["query_pre_attn_scalar"] = width // heads if is_largest else head_dim
    rotary = header.of_model("rope.dimension_count") or head_dim
    if rotary != head_dim:
        config["partial_rotary_factor"] = rotary / head_dim
    rope = _rotary(path, header, head_dim)
    if header.architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": header.of_model("rope.freq_base_swa") or 10_000.0}
        config["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    else:
        config["rope_parameters"] = rope
    return config


def _of_gpt2(config: dict[str, Any], header: GgufHeader) -> dict[str, Any]:
    names = {
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
    }
    kept = ("model_type", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    found = {key: config[key] for key in kept} | {new: config[old] for old, new in names.items()}
    return found | {"layer_norm_epsilon": header.of_model("attention.layer_norm_epsilon") or 1e-5}


def _rotary(path: Path, header: GgufHeader, head_dim: int) -> dict[str, Any]:
    """Return `rope_parameters`: the base and the scaling of rotary positions.

    Raises:
        ModelError: the scaling can't be expressed in a config.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": header.of_model("rope.freq_base") or 10_000.0}
    scaling = str(header.of_model("rope.scaling.type") or "none")
    factor = header.of_model("rope.scaling.factor") or header.of_model("rope.scale_linear") or 1.0
    frequencies = next((tensor for tensor in header.tensors if tensor.name == _ROPE_TENSOR), None)
    if any(tensor.name.startswith("rope_factors_") for tensor in header.tensors):
        scaling = "longrope"
    if scaling == "yarn":
        before = header.of_model("rope.scaling.original_context_length")
        return rope | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": before}
    if scaling not in ("linear", "none"):
        raise ModelError(
            f"{path} scales its rotary positions in a way that its values do not describe completely ({scaling}).",
            "Give the model that the file was made from.",
        )
    if factor != 1.0:
        return rope | {"rope_type": "linear", "factor": factor}
    if frequencies is not None:
        return rope | {"rope_type": "llama3"} | _llama3_scaling(path, frequencies, rope["rope_theta"], head_dim)
    return rope


def _llama3_scaling(path: Path, tensor: GgufTensor, base: float, head_dim: int) -> dict[str, float]:
    """Return the scaling of Llama 3 whose divisors of the frequencies are those of a file.

    Raises:
        ModelError: no factor gives these divisors.
    """
    if tensor.type == "F32" and 2 * tensor.elements == head_dim:
        divisors = np.fromfile(path, np.float32, tensor.elements, offset=tensor.start)
        factor = float(divisors.max())
        if np.allclose(divisors, _divisors(factor, base, head_dim, _LLAMA3), rtol=1e-3):
            return {"factor": factor} | _LLAMA3
    raise ModelError(
        f"{path} scales its rotary positions in a way that is not Llama 3's ({_ROPE_TENSOR}).",
        "Give the model that the file was made from.",
    )
