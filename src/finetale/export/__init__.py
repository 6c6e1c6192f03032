"""Other formats for a trained model: one module per format, and the registry of them.

A module of a format has what `Exporter` lists. It converts and writes, and does not judge the result: the caller
compares the converted model with the original in PyTorch before anything uses it.

    openvino    OpenVINO's format, with the key/value cache as state
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel

from finetale import extras
from finetale.export import openvino


class Exporter(Protocol):
    """The functions of a format's module.

    Attributes:
        VERSION: number of the conversion; raised when the same weights would give a different file.
    """

    VERSION: int

    def convert(self, model: PreTrainedModel) -> Any:
        """Return the model in the format, in memory, with weights in fp32."""

    def save(self, model: Any, file: Path) -> None:
        """Write a converted model.

        Raises:
            OSError: the file cannot be written.
        """


@dataclass(frozen=True)
class Format:
    """A format that a model can be exported to.

    Attributes:
        name: name of the format and of its module in this package.
        exporter: the module.
        packages: optional packages that it needs; `extras` knows how to install them.
    """

    name: str
    exporter: Exporter
    packages: tuple[str, ...]

    def is_installed(self) -> bool:
        """Return whether all packages of the format are installed, without importing them."""
        return all(map(extras.is_installed, self.packages))

    def require_packages(self, purpose: str) -> None:
        """Check that all packages of the format are installed.

        Args:
            purpose: what needs them; the subject of the message.

        Raises:
            ConfigError: names the first missing package and how to install it.
        """
        for package in self.packages:
            extras.require(package, purpose)


FORMATS = {format.name: format for format in (Format("openvino", openvino, ("openvino", "nncf")),)}
