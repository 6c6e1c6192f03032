"""Print errors, JSON, tables and progress for all commands."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from finetale.cli.streams import is_unicode

if TYPE_CHECKING:
    from finetale.display import Display
    from finetale.schema import TokenAccount

Source = Annotated[
    str, Parameter(help="A file, a folder, - for standard input, bundled:tales, or hf:DATASET[/CONFIG][:SPLIT].")
]
Model = Annotated[str, Parameter(help="Hub id, model folder, GGUF file, run directory, bundled, or new:SHAPE.")]
RunFolder = Annotated[str, Parameter(help="A run directory.")]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print the result as JSON.")]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), help="Print only warnings and the result.")]


def print_error(message: str, hint: str = "") -> None:
    """Print one `error:` line and one `hint:` line on stderr, with line breaks in the texts removed."""
    console = Console(stderr=True)
    console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", soft_wrap=True, highlight=False)
    if hint:
        console.print(f"[bold]hint:[/] {escape(' '.join(hint.split()))}", soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a result as one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=not is_unicode(sys.stdout), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def stdout() -> Console:
    """Return the console for results."""
    return Console(highlight=False)


def progress(*, quiet: bool = False, as_json: bool = False) -> Display:
    """Return the display of a command, and keep libraries from writing between its lines."""
    from finetale.display import Display

    quiet_libraries()
    if quiet or as_json:
        hide_progress_bars()
    return Display(quiet=quiet or as_json)


def quiet_libraries() -> None:
    """Silence the messages of libraries. Finetale checks and reports what matters."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def hide_progress_bars() -> None:
    """Disable download bars: by the environment for libraries that are not loaded yet, by a call for the others."""
    for name in ("HF_HUB", "HF_DATASETS"):
        os.environ[f"{name}_DISABLE_PROGRESS_BARS"] = "1"
    for module, function in (("huggingface_hub.utils", "disable_progress_bars"), ("datasets", "disable_progress_bars")):
        if module in sys.modules:
            getattr(sys.modules[module], function)()


def sum_of_tokens(tokens: TokenAccount) -> str:
    """Return the parts of a token account as a sum. Rare parts are included if they are not zero."""
    from finetale.schema import ACCOUNT_PARTS, RARE_PARTS

    parts = [(name, getattr(tokens, name)) for name in ACCOUNT_PARTS]
    return " + ".join(f"{number:,} {name}" for name, number in parts if number or name not in RARE_PARTS)


def number(value: float | None, digits: int = 2) -> str:
    """Return a figure with thousands separators; a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}"
