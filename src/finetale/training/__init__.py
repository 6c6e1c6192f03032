"""Train a model on blocks: the loop, its optimizer, checkpoints and measurements. Does not know about text."""

from finetale.training.checkpoints import SETTINGS_NAME, TrainState, newest_valid_checkpoint, read_state
from finetale.training.event_files import MetricsFile, TensorBoardFile
from finetale.training.loop import StepBudget, Training
from finetale.training.memory import MemoryPlan, free_memory, plan_memory
from finetale.training.optimizer import default_learning_rate
from finetale.training.probe import Choice, Probe, default_threads, measure_choice, probe

__all__ = [
    "SETTINGS_NAME",
    "Choice",
    "MemoryPlan",
    "MetricsFile",
    "Probe",
    "StepBudget",
    "TensorBoardFile",
    "TrainState",
    "Training",
    "default_learning_rate",
    "default_threads",
    "free_memory",
    "measure_choice",
    "newest_valid_checkpoint",
    "plan_memory",
    "probe",
    "read_state",
]
