"""The one path from text to a proven model. Only this layer sees the whole configuration.

The names below are imported when they are first used, so that `finetale check` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetale.pipeline.data import check_text
    from finetale.pipeline.evaluating import compare_on, evaluate_on, held_out_ids
    from finetale.pipeline.exporting import export_model, list_formats
    from finetale.pipeline.forecast import plan_run
    from finetale.pipeline.merging import merge_adapter
    from finetale.pipeline.pushing import Push, prepare_push
    from finetale.pipeline.resuming import resume_run
    from finetale.pipeline.training_run import finish, open_base, train_run

_MODULES = {
    "check_text": "data",
    "compare_on": "evaluating",
    "evaluate_on": "evaluating",
    "export_model": "exporting",
    "finish": "training_run",
    "held_out_ids": "evaluating",
    "list_formats": "exporting",
    "merge_adapter": "merging",
    "open_base": "training_run",
    "plan_run": "forecast",
    "Push": "pushing",
    "prepare_push": "pushing",
    "resume_run": "resuming",
    "train_run": "training_run",
}

__all__ = [
    "Push",
    "check_text",
    "compare_on",
    "evaluate_on",
    "export_model",
    "finish",
    "held_out_ids",
    "list_formats",
    "merge_adapter",
    "open_base",
    "plan_run",
    "prepare_push",
    "resume_run",
    "train_run",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"finetale.pipeline.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
