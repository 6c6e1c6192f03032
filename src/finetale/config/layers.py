"""Layers of settings: read from a file, merged, and validated together. The settings themselves are in `declared`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from finetale.errors import ConfigError
from finetale.trainer_names import find_name

S = TypeVar("S", bound="Settings")
RENAMED = {"final_learning_rate": "final_learning_rate_ratio"}
"""Old names of settings, which settings files and older runs may have, and their new names."""
_BUDGET = frozenset({"epochs", "max_steps"})
"""Settings for the length of training. If a layer of settings has one of them, it replaces both of the layers below."""
_MAX_SETTINGS_BYTES = 2**20
_RETIRED = frozenset({"bootstrap_samples"})
"""Settings that older versions wrote and that no longer have an effect."""


class Settings(BaseModel):
    """Base class of all settings: immutable, and it accepts declared keys only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def resolve(cls, *layers: Mapping[str, Any]) -> Self:
        """Merge layers of settings (later ones win; None means "not given") and validate them together.

        Raises:
            ConfigError: names every unknown key and every bad value at once.
        """
        values: dict[str, Any] = {}
        for layer in layers:
            given = {key.replace("-", "_"): value for key, value in layer.items() if value is not None}
            given = with_new_names(given)
            if len(_BUDGET & given.keys()) == 1:  # one budget: a flag's max_steps replaces the file's epochs
                values = {key: value for key, value in values.items() if key not in _BUDGET}
            values.update(given)
        problems: list[str] = []
        hints: list[str] = []
        for key in sorted(set(values) - set(cls.model_fields)):
            value = values.pop(key)
            problems.append(f"there is no setting {key!r}")
            hints.append(_hint_for_unknown(key, value, cls.model_fields))
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            for item in error.errors():
                name = ".".join(str(part) for part in item["loc"][:1])
                seen = "" if not item["loc"] else f" = {item['input']!r}"
                text = item["msg"].removeprefix("Value error, ").split(", unable to")[0]
                problems.append(f"{name}{seen}: {text[:1].lower()}{text[1:]}" if name else text)
            hints.append("see `finetale train --help` or docs/settings.md for the range of each setting")
        if problems:
            raise ConfigError("; ".join(problems) + ".", _sentence(hints))
        return settings

    def narrow(self, kind: type[S]) -> S:
        """Return the values of a narrower settings class, for a stage that must not see the others."""
        return kind.model_validate({name: getattr(self, name) for name in kind.model_fields})


def read_settings_file(path: str | Path) -> dict[str, Any]:
    """Return the keys and values of a YAML settings file.

    Raises:
        ConfigError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        if Path(path).stat().st_size > _MAX_SETTINGS_BYTES:
            raise ConfigError(
                f"The settings file {path} has more than {_MAX_SETTINGS_BYTES:,} bytes.", "Check the path."
            )
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The settings file {path} can't be read: {error}.", "Check the path given to --config."
        ) from None
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ConfigError(f"The settings file {path} has YAML aliases (*name).", "Write the values out.")
        values = yaml.safe_load(text)
    except RecursionError:
        raise ConfigError(f"The settings file {path} is nested too deeply.", "See docs/settings.md.") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise ConfigError(
            f"The settings file {path} is not valid YAML{line}.", "Write one `name: value` per line."
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"The settings file {path} does not hold `name: value` lines.", "See docs/settings.md.")
    return {key: value for key, value in values.items() if key not in _RETIRED}


def with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace old names of settings by the new ones. If both are given, the new one wins."""
    return {RENAMED.get(key, key): value for key, value in values.items() if RENAMED.get(key) not in values}


def _hint_for_unknown(key: str, value: Any, known: Iterable[str]) -> str:
    """Return our name for a key of another tool, with the given value, or the nearest key."""
    name = find_name(key)
    if name is None:
        near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
        return f"{key}: did you mean {near[0]}?" if near else f"{key}: docs/settings.md lists them all"
    if not name.setting:
        return f"{key}: {name.note}"
    ours = name.among(set(known))
    written = name.written(value, ours)
    note = f" ({name.note})" if name.note and ours == name.setting else ""
    return f"{key} is {ours} here{note}" + (f": {ours} = {written}" if written else "")


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return text + ("" if text.endswith(("?", ".")) else ".")
