"""Check model names before any slow work. Opens no model."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from finetale.errors import ModelError

SHAPES: dict[str, tuple[int, int, int, int]] = {  # width, layers, heads, positions
    "1m": (96, 4, 4, 512),
    "3m": (192, 4, 4, 512),
    "10m": (320, 6, 5, 512),
    "30m": (512, 8, 8, 1024),
    "distilgpt2": (768, 6, 12, 1024),
    "gpt2": (768, 12, 12, 1024),
    "gpt2-medium": (1024, 24, 16, 1024),
    "gpt2-large": (1280, 36, 20, 1024),
    "gpt2-xl": (1600, 48, 25, 1024),
}
BUNDLED_NAME = "bundled"
BUNDLED_FOLDER = Path(__file__).parents[1] / "bundled" / "model"
_HEAD = 64
_SIZES = re.compile(r"([0-9]{1,4})x([1-9][0-9]?)")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def is_new(name: str) -> bool:
    """Return whether a name means random weights."""
    return name.startswith("new:")


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form NAME or OWNER/NAME."""
    return bool(_HUB_ID.match(name))


def name_of_folder(path: Path) -> str:
    """Return a name that means this folder only, even if the folder is called `bundled` or `new:…`."""
    name = str(path)
    return f".{os.sep}{name}" if name == BUNDLED_NAME or is_new(name) else name


def check_name(name: str) -> None:
    """Refuse an invalid model name before any slow work.

    Raises:
        ModelError: names what is accepted.
    """
    if not name:
        raise ModelError(
            "The name of the model is empty.", "Give a Hub id, a model folder, a GGUF file, a run directory or bundled."
        )
    if is_new(name):
        shape_of(name)
    elif name.startswith(f"{BUNDLED_NAME}:") and not Path(name).exists():
        raise ModelError(f"{name} is text, not a model.", f"The model of the package is called {BUNDLED_NAME}.")
    elif name == BUNDLED_NAME:
        if not BUNDLED_FOLDER.is_dir():
            raise ModelError(
                "There is no bundled model in this installation.",
                "Use a Hub id, a folder, or new:10m for random weights.",
            )
    elif name.lower().endswith(".gguf") and not Path(name).expanduser().exists():
        raise ModelError(f"There is no file {name}.", _near(name) or _download_hint(name))
    elif not Path(name).expanduser().exists() and not is_hub_id(name):
        raise ModelError(
            f"The model {name!r} is neither an existing folder nor a Hub id (NAME or OWNER/NAME).",
            _near(name) or "Check the path, or name a model on the Hub such as gpt2, or bundled.",
        )


def shape_of(name: str) -> tuple[int, int, int, int]:
    """Return width, layers, heads and positions of `new:SHAPE`: a name from SHAPES, or WIDTHxLAYERS such as 256x6.

    For WIDTHxLAYERS, heads are 64 wide; models narrower than 512 have 512 positions, others 1,024.

    Raises:
        ModelError: there is no such shape; the hint names the nearest one.
    """
    shape = name.removeprefix("new:")
    sizes = _SIZES.fullmatch(shape)
    if sizes:
        width, layers = int(sizes[1]), int(sizes[2])
        if not width or width % _HEAD:
            raise ModelError(
                f"new:{shape} is {width} wide, and heads are {_HEAD} wide.",
                f"Choose a multiple of {_HEAD}, such as new:{max(_HEAD, round(width / _HEAD) * _HEAD)}x{layers}.",
            )
        return width, layers, width // _HEAD, 512 if width < 512 else 1024
    if shape not in SHAPES:
        near = difflib.get_close_matches(shape, SHAPES, n=1)
        raise ModelError(
            f"There is no shape {shape!r} for a new model.",
            (f"Did you mean new:{near[0]}? " if near else "")
            + "Shapes: "
            + ", ".join(f"new:{key}" for key in SHAPES)
            + ", or new:WIDTHxLAYERS.",
        )
    return SHAPES[shape]


def meant(name: str) -> str:
    """Return a hint for a name that resembles `bundled`, an existing folder or a path; else an empty text."""
    if difflib.get_close_matches(name, [BUNDLED_NAME], cutoff=0.8):
        return f"Did you mean {BUNDLED_NAME}? "
    if near := _near(name):
        return f"{near} "
    if "/" in name and Path(name).expanduser().parent.is_dir():
        return f"If a folder was meant: there is none called {name}. "
    return ""


def _download_hint(name: str) -> str:
    """Return how to get a GGUF file whose name has the form OWNER/NAME/FILE."""
    *repository, file = name.removeprefix("hf:").split("/")
    if len(repository) == 2 and is_hub_id("/".join(repository)):
        command = f"hf download {'/'.join(repository)} {file}"
        return f"To use a file of the Hub, download it with `{command}`, and give its path."
    return "Check the path."


def _near(name: str) -> str:
    """Return a hint at a folder or a GGUF file with a similar path; empty without one."""
    path = Path(name).expanduser()
    if not path.parent.is_dir():
        return ""
    items = [item.name for item in path.parent.iterdir() if item.is_dir() or item.suffix.lower() == ".gguf"]
    near = difflib.get_close_matches(path.name, items, n=1)
    return f"Did you mean {path.parent / near[0]}?" if near else ""
