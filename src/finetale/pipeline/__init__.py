"""The one path from text to a proven model. Only this layer sees the whole configuration."""

from finetale.pipeline.data import check_text
from finetale.pipeline.evaluating import compare_on, evaluate_on, held_out_ids
from finetale.pipeline.forecast import plan_run
from finetale.pipeline.resuming import resume_run
from finetale.pipeline.training_run import finish, open_base, train_run

__all__ = [
    "check_text",
    "compare_on",
    "evaluate_on",
    "finish",
    "held_out_ids",
    "open_base",
    "plan_run",
    "resume_run",
    "train_run",
]
