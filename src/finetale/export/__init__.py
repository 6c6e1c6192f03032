"""Other formats for a trained model: one module per format, and the registry that finds it.

A module of a format has `VERSION`, `convert` and `save` (see `Exporter`). It converts and writes, and does not judge what
it made: its caller compares the result with the model in PyTorch before it is used.

    openvino    OpenVINO's format, with the cache of keys and values as state
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from transformers import PreTrainedModel

from finetale import extras
from finetale.errors import ConfigError


class Exporter(Protocol):
    """What the module of a format has.

    Attributes:
        VERSION: counts the changes that make another model of the same weights.
    """

    VERSION: int

    def convert(self, model: PreTrainedModel) -> Any:
        """Return the model in the format, in memory, with weights in fp32."""

    def save(self, model: Any, file: Path) -> None:
        """Write a converted model.

        Raises:
            OSError: it can't be written.
        """


@dataclass(frozen=True)
class Format:
    """A format that a model can be exported to.

    Attributes:
        name: of the format and of its module in this package.
        packages: what must be installed for it; `finetale.extras` knows which extra brings them.
    """

    name: str
    packages: tuple[str, ...]

    def is_installed(self) -> bool:
        """Return whether all packages of the format are there, without importing them."""
        return all(map(extras.is_installed, self.packages))

    def exporter(self) -> Exporter:
        """Import the module of the format."""
        return cast(Exporter, importlib.import_module(f"finetale.export.{self.name}"))


FORMATS = {format.name: format for format in (Format("openvino", ("openvino", "nncf")),)}


def find_format(name: str) -> Format:
    """Return the format of that name.

    Raises:
        ConfigError: there is no such format; the hint lists those there are.
    """
    if name not in FORMATS:
        raise ConfigError(f"{name!r} is not an export format.", f"Choose one of: {', '.join(sorted(FORMATS))}.")
    return FORMATS[name]
