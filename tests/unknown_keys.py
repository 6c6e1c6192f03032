"""Keys of a record that the schema does not declare. Records keep them, so only a test notices them."""

from __future__ import annotations

from typing import Any

from finetale.schema import Record


def unknown_keys(record: Record) -> list[str]:
    """Return the keys, as dotted paths, that the schema does not declare."""
    return sorted(_unknown(record, ""))


def _unknown(value: Any, place: str) -> list[str]:
    if isinstance(value, Record):
        found = [f"{place}{key}" for key in value.model_extra or {}]
        for name in type(value).model_fields:
            found += _unknown(getattr(value, name), f"{place}{name}.")
        return found
    if isinstance(value, dict):
        return [key for name, item in value.items() for key in _unknown(item, f"{place}{name}.")]
    if isinstance(value, list | tuple):
        return [key for item in value for key in _unknown(item, place)]
    return []
