"""Every architecture of the matrix as a tiny model with random weights, and what Finetale does with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from tiny import tokenizer

POSITIONS = 64
BORDERS, RESTARTING = "document borders passed to attention", "restarting positions"
MASK, ROWS = "explicit mask", "one row per document"
PADDED = "with a cache, texts of any length together"
WHOLE = "without a cache"
SEPARATE, NO_CACHE = "torch, one at a time", "torch, without a cache"
UNTRACED = "does not find the model's attention"
_LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": POSITIONS // 2,
}


@dataclass(frozen=True)
class Architecture:
    """One row of the matrix. The tests assert every field; docs/models.md shows them.

    Attributes:
        name: the name that people know.
        kind: `model_type` in config.json.
        config: values of the tiny config.
        documents: how packed documents are kept apart in training.
        reading: how texts are read in generation.
        server: the engine of PyTorch.
        openvino: None if OpenVINO serves it, else part of the reason why not.
        context: tokens of the longest text of the tiny model; None without a limit.
        note: a remark for people.
    """

    name: str
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    documents: str = BORDERS
    reading: str = PADDED
    server: str = "torch"
    openvino: str | None = None
    context: int | None = POSITIONS
    note: str = ""

    def build(self, seed: int = 0, **changes: Any) -> PreTrainedModel:
        """Return the tiny model with random weights."""
        values = {"vocab_size": len(tokenizer()) + 8, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
        values["bos_before_text"] = True  # as in a model that Finetale trained
        config = CONFIG_MAPPING[self.kind](**{**values, **self.config, **changes})
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        spread(model)
        return model

    def save(self, folder: Path, seed: int = 0, **changes: Any) -> Path:
        """Save the tiny model as transformers does, with the test tokenizer; return the folder."""
        self.build(seed, **changes).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return folder


def spread(model: PreTrainedModel) -> None:
    """Scale the weight matrices up, so that errors in a small part of the model change its scores."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and 0 < float(parameter.std()) < 0.2:
                parameter.mul_(0.2 / float(parameter.std()))


ALL = (
    Architecture("GPT-2", "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}),
    Architecture(
        "GPT-Neo",
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": POSITIONS,
        },
        documents=RESTARTING,
        server=SEPARATE,
        openvino=UNTRACED,
    ),
    Architecture(
        "GPT-J",
        "gptj",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": POSITIONS},
        documents=RESTARTING,
        openvino=UNTRACED,
    ),
    Architecture("GPT-NeoX, Pythia", "gpt_neox", {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}),
    Architecture(
        "OPT",
        "opt",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": 1,
        },
    ),
    Architecture(
        "BLOOM",
        "bloom",
        {"hidden_size": 32, "n_layer": 2, "n_head": 2},
        documents=ROWS,
        server=SEPARATE,
        openvino="TorchScript module",
        context=None,
    ),
    Architecture("Llama", "llama", _LLAMA),
    Architecture("Mistral", "mistral", {**_LLAMA, "sliding_window": 16}, documents=RESTARTING, server=SEPARATE),
    Architecture("Qwen2", "qwen2", _LLAMA),
    Architecture("Qwen3", "qwen3", {**_LLAMA, "head_dim": 16}),
    Architecture(
        "Gemma 2",
        "gemma2",
        {**_LLAMA, "head_dim": 16, "sliding_window": 16},
        documents=RESTARTING,
        server=SEPARATE,
        openvino=UNTRACED,
    ),
    Architecture(
        "Gemma 3",
        "gemma3_text",
        {**_LLAMA, "head_dim": 16, "sliding_window": 16},
        documents=RESTARTING,
        server=SEPARATE,
    ),
    Architecture("Phi-3", "phi3", {**_LLAMA, "sliding_window": None}),
    Architecture(
        "Phi-3 with LongRoPE",
        "phi3",
        {
            **_LLAMA,
            "sliding_window": None,
            "rope_parameters": _LONG_ROPE,
            "original_max_position_embeddings": POSITIONS // 2,
        },
        context=POSITIONS // 2,
        note="reads texts up to the length of its first training (`original_max_position_embeddings`): beyond it, "
        "positions change with the length of the text",
    ),
    Architecture("StableLM", "stablelm", _LLAMA, documents=RESTARTING),
    Architecture("OLMo-2", "olmo2", _LLAMA),
    Architecture("SmolLM3", "smollm3", {**_LLAMA, "no_rope_layers": [1, 0]}),
    Architecture("Granite", "granite", {**_LLAMA, "logits_scaling": 2.0, "embedding_multiplier": 3.0}),
    Architecture(
        "Falcon",
        "falcon",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": POSITIONS},
        documents=MASK,
    ),
    Architecture(
        "MPT",
        "mpt",
        {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": POSITIONS},
        documents=ROWS,
        openvino=UNTRACED,
    ),
    Architecture(
        "Mixtral", "mixtral", {**_LLAMA, "num_local_experts": 4, "sliding_window": None}, openvino="aten::histc"
    ),
    Architecture(
        "gpt-oss",
        "gpt_oss",
        {
            **_LLAMA,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        documents=ROWS,
        server=SEPARATE,
        openvino="reshape",
    ),
    Architecture(
        "Mamba",
        "mamba",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        documents=ROWS,
        server=SEPARATE,
        openvino="TorchScript module",
        context=None,
    ),
    Architecture(
        "RWKV",
        "rwkv",
        {"hidden_size": 32, "num_hidden_layers": 2, "context_length": POSITIONS},
        documents=ROWS,
        reading=WHOLE,
        server=NO_CACHE,
        openvino=UNTRACED,
        context=None,
    ),
    Architecture(
        "RecurrentGemma",
        "recurrent_gemma",
        {
            **{k: v for k, v in _LLAMA.items() if k != "max_position_embeddings"},
            "num_hidden_layers": 3,
            "head_dim": 16,
            "lru_width": 32,
            "attention_window_size": 8,
        },
        documents=ROWS,
        reading=WHOLE,
        server=NO_CACHE,
        openvino="NoneType",
        context=None,
    ),
)
