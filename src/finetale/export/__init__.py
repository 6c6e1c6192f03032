"""Other formats for a trained model: one module per format, the registry of them, and the shared proof.

A module of a format has what `Exporter` lists. It writes files and loads them with the program that they are for. It
does not judge the result: `proof` compares the exported model with the original, and `pipeline.exporting` refuses what
differs too much. To add a format, write its module and add a line to FORMATS.

    safetensors folder of transformers, vLLM and TGI
    adapter     adapter alone, in PEFT's layout
    gguf        llama.cpp, Ollama and LM Studio
    html        one web page that runs a GPT-2 in a browser
    openvino    OpenVINO's format, with the key/value cache as state
    onnx        onnxruntime and transformers.js, with the key/value cache as inputs and outputs
    tracing     a model in the form that the converters of openvino and onnx trace
    runtimes    interface to the programs that run models; torch_runtime, llama_cpp and chromium implement it
    proof       comparison of an exported model with the original

Modules of formats are imported when they are used, because their packages are optional.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from finetale import extras
from finetale.errors import ConfigError

if TYPE_CHECKING:
    from finetale.export.runtimes import Runtime
    from finetale.models import LoadedModel


@dataclass(frozen=True)
class Weights:
    """A type of weights that a format can have, and the bounds of its proof.

    Attributes:
        bits: bits per weight, about.
        largest_change: largest change of the perplexity per token, percent.
        same_choice: smallest share of tokens where the most likely next token is the original's.
    """

    bits: float
    largest_change: float
    same_choice: float


class Exporter(Protocol):
    """The functions of a format's module."""

    def check(self, loaded: LoadedModel) -> None:
        """Refuse a model that the format can't hold, before any work.

        Raises:
            ModelError: says why.
        """

    def write(self, loaded: LoadedModel, folder: Path, weights: str) -> None:
        """Write a model into an empty folder.

        Args:
            loaded: the model in fp32 on the CPU. It is not changed.
            weights: one of the format's types of weights.

        Raises:
            ModelError: the weights do not fit into their type, or the tokenizer can't be expressed.
            OSError: a file cannot be written.
        """

    def open(self, folder: Path, loaded: LoadedModel) -> Runtime:
        """Load what `write` wrote, with the program that it is for.

        Args:
            loaded: the original, for a format that needs its base.
        """

    def usage(self, folder: Path) -> str:
        """Return how to use the exported model, in Markdown."""


@dataclass(frozen=True)
class Format:
    """A format that a model can be exported to.

    Attributes:
        name: name of the format and of its module in this package.
        purpose: what it is for.
        weights: types of weights by name, the default first.
        packages: optional packages that it needs; `extras` knows how to install them.
        needs_browser: whether its proof needs a browser.
        only_adapters: whether it holds an adapter without its base.
    """

    name: str
    purpose: str
    weights: Mapping[str, Weights] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    needs_browser: bool = False
    only_adapters: bool = False

    @property
    def exporter(self) -> Exporter:
        """The module."""
        found: Exporter = importlib.import_module(f"finetale.export.{self.name}")
        return found

    @property
    def extra(self) -> str | None:
        """The extra of Finetale that installs its packages; None if it needs none."""
        return extras.EXTRA_OF[self.packages[0]] if self.packages else None

    def is_installed(self) -> bool:
        """Return whether nothing is missing."""
        return self.missing() is None

    def missing(self) -> str | None:
        """Return what must be installed for the format; None if nothing is missing. Imports none of the packages."""
        if not all(map(extras.is_installed, self.packages)):
            return f"pip install 'finetale[{self.extra}]'"
        if not self.needs_browser:
            return None
        from finetale.export.chromium import find_browser

        try:
            find_browser()
        except ConfigError as error:
            return error.hint
        return None

    def require_packages(self, purpose: str) -> None:
        """Check that all packages of the format are installed.

        Args:
            purpose: what needs them; the subject of the message.

        Raises:
            ConfigError: names the first missing package and how to install it.
        """
        for package in self.packages:
            extras.require(package, purpose)


_FP32 = Weights(32, 0.01, 0.999)
_FP16 = Weights(16, 0.1, 0.99)
_BF16 = Weights(16, 1.0, 0.95)
_INT8 = Weights(8.5, 1.0, 0.9)
_INT4 = Weights(4.9, 10.0, 0.8)

FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        Format(
            "safetensors",
            "transformers, vLLM, TGI and most other programs",
            {"fp16": _FP16, "bf16": _BF16, "fp32": _FP32},
        ),
        Format("adapter", "PEFT, vLLM and other programs that have the base", {"fp32": _FP32}, only_adapters=True),
        Format(
            "gguf",
            "llama.cpp, Ollama and LM Studio",
            # Keys and values are in fp16 there, so f32 has the bounds of f16.
            {"q8_0": _INT8, "f16": _FP16, "f32": replace(_FP16, bits=32), "q4_k_m": _INT4},
            ("cyllama", "gguf"),
        ),
        Format(
            "openvino",
            "OpenVINO, its GenAI library and its model server",
            # It computes in bf16 where the processor has it.
            {"int8": _INT8, "fp16": _BF16, "int4": _INT4},
            ("openvino", "nncf"),
        ),
        Format(
            "onnx",
            "onnxruntime, and transformers.js in browsers and Node",
            {"int8": replace(_INT8, bits=9), "fp32": _FP32},
            ("onnx", "onnxruntime", "onnxscript"),
        ),
        Format("html", "one web page that runs a small model in any browser", {"int8": _INT8}, needs_browser=True),
    )
}
"""By name."""
