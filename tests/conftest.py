"""Set before torch is loaded by any test."""

from __future__ import annotations

from finetale.environment import calm_threads

calm_threads()
