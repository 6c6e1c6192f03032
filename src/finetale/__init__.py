"""Finetale: from a folder of text to a language model that writes like it, and proof that it got better.

    import finetale as ft

    run = ft.train("stories/", model="gpt2")
    print(run.comparison.verdict)
    print(ft.load(run).generate("Once upon a time", seed=0)[0])

Importing this loads neither torch nor transformers; the names below come in when they are first used.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetale.errors import FinetaleError
    from finetale.library import Comparison, Run, Writer, check, compare, evaluate, load, plan, push, resume, train

# In a notebook without ipywidgets, tqdm warns about its own progress bars; Finetale has its own display.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"

_WHERE = dict.fromkeys(
    ("Comparison", "Run", "Writer", "check", "compare", "evaluate", "load", "plan", "push", "resume", "train"),
    "finetale.library",
) | {"FinetaleError": "finetale.errors"}

__all__ = [
    "Comparison",
    "FinetaleError",
    "Run",
    "Writer",
    "check",
    "compare",
    "evaluate",
    "load",
    "plan",
    "push",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
