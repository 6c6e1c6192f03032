"""Generate text: prompts → tokens → text.

sampler    scores of the next token → a token
text       tokens → text, piece by piece
generator  prompts → samples, in batches
"""

from __future__ import annotations

from finetale.generate.generator import FinishReason, Generator, Sample

__all__ = ["FinishReason", "Generator", "Sample"]
