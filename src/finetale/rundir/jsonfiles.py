"""JSON files of a run directory, read with a limit on their size and written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from finetale.errors import RunError
from finetale.rundir.atomic import write_bytes
from finetale.schema import Record, parse

R = TypeVar("R", bound=Record)
_MOST_JSON_BYTES = 256 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        RunError: the file is missing, damaged or no object.
    """
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"it has more than {_MOST_JSON_BYTES:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", "The run may have been stopped before it was written.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} can't be read: {error}.", "Restore the file or start the run again.") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} does not hold a JSON object.", "Restore the file or start the run again.")
    return value


def read_record(path: Path, kind: type[R]) -> R:
    """Return the record in a JSON file.

    Raises:
        RunError: the file is missing or damaged, or a value in it is of another kind than Finetale writes.
    """
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"it has more than {_MOST_JSON_BYTES:,} bytes")
        return parse(kind, path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", "The run may have been stopped before it was written.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}.", "Restore the file or start the run again.") from None


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically."""
    write_json(path, record.to_dict())


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinities are refused: they are not JSON."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return JSON in UTF-8; surrogates, as in file names that are not UTF-8, become \\uDCxx escapes."""
    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")
