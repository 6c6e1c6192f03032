"""Declare the settings of the method: all weights are trained, or an adapter beside frozen weights."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from finetale.config.layers import Settings

Method = Literal["full", "lora", "dora"]
ADAPTER_SETTINGS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "rslora")
"""The settings that only the methods with an adapter have."""
DEFAULT_RANK = 16
DEFAULT_TARGETS = ("auto", "all-linear")
"""Values of `lora_targets` that are not names of layers."""


class MethodSettings(Settings):
    """Method: which weights are trained"""

    method: Method = Field(
        "full",
        description="full: all weights. lora: small matrices beside the frozen weights (Hu et al. 2021), which takes "
        "less memory and time. dora: lora with a trained magnitude (Liu et al. 2024), which is slower. See "
        "docs/methods.md.",
    )
    lora_rank: int | None = Field(None, ge=1, le=4096, description="Rank of the matrices of lora and dora. auto: 16.")
    lora_alpha: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="Scale of the update of lora and dora: it is multiplied by lora_alpha / lora_rank. auto: twice the "
        "rank.",
    )
    lora_dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout rate of the inputs of lora and dora. auto: 0."
    )
    lora_targets: tuple[str, ...] = Field(
        (),
        description="Layers that get matrices of lora and dora: all-linear (all but the output layer), or names such "
        "as q_proj,v_proj. auto: all-linear.",
    )
    rslora: bool | None = Field(
        None,
        description="Divide lora_alpha by the square root of the rank instead of the rank (Kalajdzievski 2023). "
        "auto: off.",
    )

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained beside frozen weights."""
        return self.method != "full"

    @property
    def rank(self) -> int:
        """The rank of the matrices."""
        return self.lora_rank or DEFAULT_RANK

    @property
    def alpha(self) -> float:
        """The scale of the update, before it is divided by the rank or its square root."""
        return self.lora_alpha or 2.0 * self.rank

    def resolved_adapter(self, targets: tuple[str, ...]) -> dict[str, Any]:
        """Return the settings of the adapter by name, with the values of those that are automatic.

        Args:
            targets: names of the layers that have matrices.
        """
        return {
            "lora_rank": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.lora_dropout or 0.0,
            "lora_targets": targets,
            "rslora": bool(self.rslora),
        }

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Accept one text with commas, or several."""
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            return value
        return tuple(name for item in value for name in re.split(r"[\s,]+", item) if name)

    @field_validator("lora_targets")
    @classmethod
    def _one_kind(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 1 and (whole := [name for name in value if name in DEFAULT_TARGETS]):
            raise ValueError(f"{whole[0]} can't be combined with other names")
        return value

    @model_validator(mode="after")
    def _adapter_settings_need_an_adapter(self) -> Self:
        given = [name for name in ADAPTER_SETTINGS if getattr(self, name) not in (None, ())]
        if given and not self.has_adapter:
            raise ValueError(
                f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect with method full; set method to "
                "lora or dora"
            )
        return self
