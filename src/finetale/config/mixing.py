"""Parse `SOURCE:SHARE`, the values of the setting `mix`. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Mix(NamedTuple):
    """A source of text to mix in, and its share of all training tokens."""

    source: str
    share: float


def parse_mix(value: str) -> Mix:
    """Return the source and the share of `SOURCE:SHARE`. The last colon ends the source, which may have others.

    Raises:
        ValueError: there is no source or no share, or the share is not between 0 and 1.
    """
    source, _, number = value.rpartition(":")
    try:
        share = float(number)
    except ValueError:
        raise ValueError(
            f"{value!r} has no share; write SOURCE:SHARE, where 0.05 is 5% of the training tokens"
        ) from None
    if not source.strip():
        raise ValueError(f"{value!r} has no source; write SOURCE:SHARE, such as general.txt:0.05")
    if not 0 < share < 1:
        raise ValueError(
            f"the share {number} of {source} is not above 0 and below 1; 0.05 is 5% of the training tokens"
        )
    return Mix(source, share)


def as_mixes(value: Any) -> Any:
    """Return one value, several, or a mapping of sources to shares as a tuple of `SOURCE:SHARE`."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(f"{source}:{share}" for source, share in value.items())
    return tuple(value) if isinstance(value, list | tuple) else value
