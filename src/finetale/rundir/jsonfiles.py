"""Read JSON files, with a limit on their size, and write them atomically."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any, TypeVar

from finetale.errors import RunError
from finetale.rundir.atomic import write_bytes
from finetale.schema import Record, parse

R = TypeVar("R", bound=Record)
_MAX_JSON_BYTES = 256 * 2**20


def _escape_surrogates(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: write surrogates so that a JSON reader gets a backslash and their number."""
    assert isinstance(error, UnicodeEncodeError)
    codes = [ord(character) for character in error.object[error.start : error.end]]
    escapes = (f"\\\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\\\u{code:04x}" for code in codes)
    return "".join(escapes), error.end


codecs.register_error("finetale.escape", _escape_surrogates)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        RunError: the file is missing, is not valid JSON, or does not hold an object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it has more than {_MAX_JSON_BYTES:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", "The run may have stopped before it wrote the file.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} can't be read: {error}.", "Restore the file or start the run again.") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} does not hold a JSON object.", "Restore the file or start the run again.")
    return value


def read_record(path: Path, kind: type[R]) -> R:
    """Return the record in a JSON file.

    Raises:
        RunError: the file is missing or corrupted, or a value in it is of another type than Finetale writes.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it has more than {_MAX_JSON_BYTES:,} bytes")
        return parse(kind, path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", "The run may have stopped before it wrote the file.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is corrupted: {error}.", "Restore the file or start the run again.") from None


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically."""
    write_json(path, record.to_dict())


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically.

    Raises:
        ValueError: the value has a NaN or an infinity, which JSON does not have.
    """
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return JSON in UTF-8. Bytes of a file name that are not UTF-8 become \\xNN: JSON has no lone surrogates."""
    return (json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode("utf-8", "finetale.escape")
