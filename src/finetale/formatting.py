"""Format values from JSON as text for people: counts, measures, changes, sizes, times. Knows nothing of their meaning.

Every function accepts any JSON value. It returns `UNKNOWN` for a value that is missing, not a number or not finite.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

UNKNOWN = "–"
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    f"{letter}ib": 2 ** (10 * number) for number, letter in enumerate("kmgt", 1)
}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _finite(value: Any) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def count(value: Any) -> str:
    """Return a whole number with separators: 1,234,567."""
    number = _finite(value)
    return UNKNOWN if number is None else f"{round(number):,}"


def plural(number: int, one: str, many: str = "") -> str:
    """Return a whole number with its noun: 1 file, 2,000 files."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def shell_command(*words: object) -> str:
    """Return a command that can be pasted into a shell. Words are quoted where necessary."""
    return shlex.join(map(str, words))


def measure(value: Any, decimals: int | None = None) -> str:
    """Return a measured value: 8.31, 61.3, 12,345, 1.0 × 10⁹. Its size decides the decimals unless they are given."""
    number = _finite(value)
    if number is None:
        return UNKNOWN
    if abs(number) >= 1e6:
        digits, exponent = f"{number:.1e}".split("e")
        return f"{digits} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", "−")
    if decimals is None:
        decimals = 2 if abs(number) < 10 else 1 if abs(number) < 1000 else 0
    return f"{number:,.{decimals}f}".replace("-", "−")


def signed(value: Any, decimals: int) -> str:
    """Return a difference with its sign. A value that rounds to zero has no sign."""
    number = _finite(value)
    if number is None:
        return UNKNOWN
    text = measure(abs(number), decimals)
    if not any(digit in text for digit in "123456789"):
        return text
    return ("−" if number < 0 else "+") + text


def percent(value: Any) -> str:
    """Return a change in percent with its sign: −59.6%."""
    number = _finite(value)
    return UNKNOWN if number is None else signed(number, 1 if abs(number) < 1000 else 0) + "%"


def share(value: Any) -> str:
    """Return a share between 0 and 1 in percent: 0.0724 gives 7.2%."""
    number = _finite(value)
    if number is None:
        return UNKNOWN
    return "<0.1%" if 0 < number < 0.001 else f"{100 * number:.1f}%"


def interval(ends: Any, form: Callable[[Any], str]) -> str:
    """Return two ends as "low to high", or "" if they are not two numbers."""
    if not isinstance(ends, list | tuple) or len(ends) != 2 or any(_finite(end) is None for end in ends):
        return ""
    return f"{form(ends[0])} to {form(ends[1])}"


def size(value: Any) -> str:
    """Return bytes in a suitable unit: 7.6 GiB."""
    number = _finite(value)
    if number is None:
        return UNKNOWN
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} bytes" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def duration(value: Any) -> str:
    """Return seconds in two suitable units: 12 min 34 s."""
    number = _finite(value)
    if number is None or number < 0:
        return UNKNOWN
    if number < 10 and not isinstance(value, int):
        return f"{number:.1f} s"
    seconds = round(number)
    for unit, length, below, below_length in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length} {unit} {seconds % length // below_length} {below}"
    return f"{seconds} s"


def moment(value: Any) -> str:
    """Return a time (ISO 8601, or seconds since 1970) as 23 November 2026, 12:43. Other text is unchanged."""
    try:
        number = _finite(value)
        when = datetime.fromtimestamp(number) if number is not None else datetime.fromisoformat(str(value))
    except (ValueError, OverflowError, OSError):
        return plain(value)
    return f"{when.day} {when:%B %Y, %H:%M}" + (f" {when.tzname()}" if when.tzname() else "")


def plain(value: Any) -> str:
    """Return any JSON value in one line: lists with commas, objects as `key value`, booleans as yes and no."""
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e+")
    if isinstance(value, int) and abs(value) >= 100_000:
        return f"{value:,}"
    return str(value)


def parsed_size(text: str) -> int | None:
    """Return a size such as 500MB, 1.5 GiB or 1000 in bytes; None if the text is not a size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b)?", text.strip().lower())
    return int(float(match[1]) * _UNITS[match[2] or ""]) if match else None
