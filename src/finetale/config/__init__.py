"""Every setting, declared once, and how settings are read, merged and validated. Knows nothing of torch.

The flag, the key of the settings file, the Python argument and the reference page all come from the fields in
`declared`.
"""

from __future__ import annotations

from finetale.config.declared import (
    DEFAULT_EPOCHS,
    DEFAULT_FRACTION,
    MIN_BLOCK_SIZE,
    SECTIONS,
    CompareSettings,
    Config,
    EvaluationSettings,
    LearningRateSchedule,
    SamplingSettings,
    TextSettings,
    TokenSettings,
    TrainSettings,
    setting_groups,
)
from finetale.config.layers import Settings, read_settings_file, with_new_names
from finetale.config.method import MethodSettings
from finetale.config.mixing import Mix

__all__ = [
    "DEFAULT_EPOCHS",
    "DEFAULT_FRACTION",
    "MIN_BLOCK_SIZE",
    "SECTIONS",
    "CompareSettings",
    "Config",
    "EvaluationSettings",
    "LearningRateSchedule",
    "MethodSettings",
    "Mix",
    "SamplingSettings",
    "Settings",
    "TextSettings",
    "TokenSettings",
    "TrainSettings",
    "read_settings_file",
    "setting_groups",
    "with_new_names",
]
