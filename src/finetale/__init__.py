"""Finetale: from a folder of text to a language model that writes like it, and proof that it got better."""

from __future__ import annotations

__version__ = "0.1.0"
