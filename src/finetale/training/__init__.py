"""The one training loop: Blocks → weights and checkpoints. Knows nothing of text."""

from finetale.training.checkpoints import TrainState, newest_valid_checkpoint, read_state
from finetale.training.loop import Listener, Schedule, Training
from finetale.training.memory import MemoryPlan, is_out_of_memory, plan_memory
from finetale.training.optimizer import default_learning_rate
from finetale.training.records import MetricsFile, TensorBoardFile, read_metrics

__all__ = [
    "Listener",
    "MemoryPlan",
    "MetricsFile",
    "Schedule",
    "TensorBoardFile",
    "TrainState",
    "Training",
    "default_learning_rate",
    "is_out_of_memory",
    "newest_valid_checkpoint",
    "plan_memory",
    "read_metrics",
    "read_state",
]
