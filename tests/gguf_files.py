"""Write tiny models as GGUF files, as llama.cpp's converter does, with the names of the package gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tiny import tokenizer

_ARCHITECTURES = {"gemma3_text": "gemma3"}
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    quantisation: str = "F32",
    values: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    leave_out: str = "",
    own_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write a model and a byte-level BPE tokenizer as a GGUF file.

    Args:
        quantisation: type of the matrices whose rows have whole blocks; others are fp32.
        values: further values, or others in place of the model's.
        tensors: further tensors, under their names in GGUF.
        leave_out: name of a tensor in GGUF to leave out.
        own_tokenizer: the tokenizer; that of `tiny` by default.
    """
    config = model.config.to_dict()
    name = _ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(str(path), name)
    written = _values_of(name, config) | _values_of_tokenizer(own_tokenizer or tokenizer()) | (values or {})
    for key, value in written.items():
        _add(writer, key.replace("ARCH", name), value)
    for key, tensor in (_tensors_of(name, model, config) | (tensors or {})).items():
        if key == leave_out:
            continue
        kind = gguf.GGMLQuantizationType[quantisation]
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if tensor.ndim > 1 and tensor.shape[-1] % block == 0:
            writer.add_tensor(key, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)


def _values_of(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config under llama.cpp's names; None is not written."""
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    heads = config.get("num_attention_heads") or config["n_head"]
    head_dim = config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // heads
    return {
        "general.type": "model",
        "ARCH.context_length": config.get("max_position_embeddings") or config["n_positions"],
        "ARCH.embedding_length": config.get("hidden_size") or config["n_embd"],
        "ARCH.block_count": config.get("num_hidden_layers") or config["n_layer"],
        "ARCH.feed_forward_length": config.get("intermediate_size") or 4 * config["n_embd"],
        "ARCH.attention.head_count": heads,
        "ARCH.attention.head_count_kv": config.get("num_key_value_heads"),
        "ARCH.attention.key_length": None if name == "gpt2" else head_dim,
        "ARCH.attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "ARCH.attention.layer_norm_epsilon": config.get("layer_norm_epsilon"),
        "ARCH.attention.sliding_window": config.get("sliding_window"),
        "ARCH.attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "ARCH.final_logit_softcapping": config.get("final_logit_softcapping"),
        "ARCH.rope.freq_base": rope.get("rope_theta"),
        "ARCH.rope.dimension_count": int(head_dim * config.get("partial_rotary_factor", 1.0)) if rope else None,
    }


def _values_of_tokenizer(own: PreTrainedTokenizerBase) -> dict[str, Any]:
    state = __import__("json").loads(own.backend_tokenizer.to_str())
    vocabulary = own.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {each["id"] for each in state["added_tokens"] if each["special"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if number in special else 1 for number in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": own.bos_token_id,
        "tokenizer.ggml.eos_token_id": own.eos_token_id,
    }


def _tensors_of(name: str, model: PreTrainedModel, config: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    found = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        stem, _, end = key.rpartition(".")
        new = names.get_name(stem)
        assert new is not None, key
        values = tensor.detach().clone()
        if name == "gpt2" and key.endswith(_TRANSPOSED):
            values = values.T
        if name.startswith("gemma") and key.endswith("norm.weight"):
            values = values + 1
        if name == "llama" and "q_proj" in key:
            values = _interleaved(values, config["num_attention_heads"])
        if name == "llama" and "k_proj" in key:
            values = _interleaved(values, config["num_key_value_heads"])
        found[f"{new}.{end}"] = values.contiguous().numpy().astype(np.float32)
    return found


def _interleaved(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """Interleave the two halves of each head, as llama.cpp's converter does."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)
