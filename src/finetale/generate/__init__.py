"""Generate text: prompts → tokens → text.

reading    tokens → scores of the next token, in a way that suits the model's code
sampler    scores of the next token → a token
text       tokens → text, piece by piece
generator  prompts → samples, in batches
"""

from __future__ import annotations

from finetale.generate.generator import FinishReason, Generator, Sample
from finetale.generate.reading import find_way

__all__ = ["FinishReason", "Generator", "Sample", "find_way"]
