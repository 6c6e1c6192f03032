"""The optional packages: which extra brings each, and the error that names it. Imports none of them."""

from __future__ import annotations

import importlib.util

from finetale.errors import ConfigError

EXTRA_OF: dict[str, str] = {
    "cyllama": "export-gguf",
    "datasets": "datasets",
    "gguf": "gguf",
    "llguidance": "serve",
    "lxml": "formats",
    "mlflow": "track-mlflow",
    "nncf": "serve",
    "sacrebleu": "answers",
    "onnx": "export-onnx",
    "onnxruntime": "export-onnx",
    "onnxscript": "export-onnx",
    "openvino": "serve",
    "pypdfium2": "formats",
    "sentencepiece": "sentencepiece",
    "tensorboard": "tensorboard",
    "trackio": "track-trackio",
    "wandb": "track-wandb",
}
"""Import name of an optional package → the extra of Finetale that installs it."""


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is looked for, not loaded."""
    return importlib.util.find_spec(package) is not None


def install_hint(extra: str) -> str:
    """Return the sentence that says how to install an extra."""
    return (
        f"Install it with: pip install 'finetale[{extra}]' "
        f"(in a checkout: pip install -c constraints.txt -e '.[{extra}]')."
    )


def require(package: str, purpose: str) -> None:
    """Check that an optional package is installed.

    Args:
        package: one of `EXTRA_OF`.
        purpose: what needs it; the subject of the message.

    Raises:
        ConfigError: the package is missing; the hint names the extra.
    """
    if not is_installed(package):
        raise ConfigError(
            f"{purpose} needs the package {package}, which is not installed.", install_hint(EXTRA_OF[package])
        )
