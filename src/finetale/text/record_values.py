"""Values of records: where a name leads, and what kind a value is. Knows no choice of columns."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any


def path_to(record: Any, name: str) -> tuple[str, ...] | None:
    """Return the keys that a column name means: one key, or a dotted path. None if the record has neither."""
    if not isinstance(record, Mapping):
        return None
    if name in record:
        return (name,)
    for key in record:
        if name.startswith(f"{key}.") and (rest := path_to(record[key], name[len(key) + 1 :])):
            return (key, *rest)
    return None


def text_of_value(value: Any) -> str | None:
    """Return a text, number or time as text. Null and NaN are empty text. None for any other value."""
    if value is None or value != value:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float | Decimal | datetime | date | time) else None


def kind_of_value(value: Any) -> str:
    """Return the name of a JSON value's kind, for messages."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
    }
    return names.get(type(value), "null" if value is None else f"a value of type {type(value).__name__}")
