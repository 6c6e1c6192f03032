"""Set the dropout rates of a model's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetale.config.declared import ModelSettings

_ENDS = ("_pdrop", "dropout", "dropout_prob")


@dataclass(frozen=True)
class Dropout:
    """Rates that replace those of a model's config; None keeps its own.

    Attributes:
        rate: of everything.
        attention: of the weights of attention, in place of `rate`.
    """

    rate: float | None = None
    attention: float | None = None

    @classmethod
    def of(cls, settings: ModelSettings) -> Dropout:
        """Return the rates that settings name."""
        return cls(settings.dropout, settings.attention_dropout)

    def for_attention(self, own: float) -> float:
        """Return the rate of the weights of attention; `own` is the model's."""
        return next((rate for rate in (self.attention, self.rate) if rate is not None), own)

    def set_in(self, config: Any) -> None:
        """Replace the rates of a config of transformers."""
        for key in list(config.to_dict()):
            own = getattr(config, key, None)
            if not key.endswith(_ENDS) or not isinstance(own, int | float):
                continue
            rate = self.for_attention(own) if "attn" in key or "attention" in key else self.rate
            if rate is not None:
                setattr(config, key, rate)


OWN_RATES = Dropout()
"""The rates of the model's config."""
