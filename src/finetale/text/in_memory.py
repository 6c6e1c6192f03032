"""Write data in memory to a file that every later stage reads like any other source. Knows no settings.

A run must be able to read its text again, to resume in another process or to compare. So texts and tables are written
to a folder of the cache, under the SHA-256 of their content.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetale.errors import SourceError
from finetale.rundir import write_bytes
from finetale.text.byte_streams import STANDARD_INPUT
from finetale.text.hub import PREFIX
from finetale.text.sources import BUNDLED_SOURCE

_LONGEST_NAME = 255
"""Maximum characters of a file name on any file system. A longer string without a path separator is text."""
_HINT = (
    "Give a path, a list of paths, texts=[…], a list of records ({column: value}), or a table of pandas, polars, "
    "pyarrow or datasets."
)


def as_source_names(data: Any, folder: Path) -> tuple[str, ...]:
    """Return names of sources for the text that a caller passed.

    Args:
        data: a path or name of a source, or a list of them; a list of texts; a list of records (dictionaries); a
            pandas, polars or pyarrow table; a `datasets.Dataset`.
        folder: folder for data in memory.

    Raises:
        SourceError: the value is of another kind, is empty, or mixes texts with something else.
    """
    if isinstance(data, str):
        if _is_text(data):
            raise SourceError(
                f"A text of {len(data):,} characters was given where names of files are expected.",
                "Give texts as a list: texts=[text].",
            )
        return (data,)
    if isinstance(data, Path):
        return (str(data),)
    table = _as_table(data)
    if table is not None:
        return (_write_table(table, folder),)
    if isinstance(data, Mapping | bytes | bytearray | memoryview) or not isinstance(data, Iterable):
        raise SourceError(f"A value of type {_type_name(data)} can't be read as text.", _HINT)
    items = list(data)
    if items and all(isinstance(item, Mapping) for item in items):
        return (_write_records(items, folder),)
    if isinstance(data, Sequence) and all(isinstance(item, str | Path) for item in items):
        if any(isinstance(item, str) and _is_text(item) for item in items):
            return (write_texts(items, folder),)
        _refuse_sentences(items)
        return tuple(str(item) for item in items)
    return (write_texts(items, folder),)


def write_texts(texts: Iterable[Any], folder: Path) -> str:
    """Write texts, one document each, and return the name of the file.

    Raises:
        SourceError: the list is empty, or an item is not a string. The message names its position.
    """
    items = [texts] if isinstance(texts, str) else list(texts)
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise SourceError(
                f"Text number {number} of {len(items):,} (counted from 0) is of type {_type_name(item)}, not str.",
                "Leave out missing values, and convert numbers to strings.",
            )
    return _write_records([{"text": item} for item in items], folder, "texts")


def _refuse_sentences(items: Sequence[str | Path]) -> None:
    """Refuse strings of several words if none of them names a file. They are most likely short texts.

    Raises:
        SourceError: none of the strings names a file.
    """
    words = [item for item in items if isinstance(item, str) and " " in item and not Path(item).expanduser().exists()]
    if items and len(words) == len(items):
        raise SourceError(
            f"None of the {len(items):,} strings names a file; the first is {words[0][:60]!r}."
            if len(items) > 1
            else f"The string {words[0][:60]!r} does not name a file.",
            "If they are texts, give them as texts=[…]; if they are paths, check them.",
        )


def _is_text(item: str) -> bool:
    """Return whether a string is a text, not a name: it has several lines, or is longer than any file name."""
    if item in (STANDARD_INPUT, BUNDLED_SOURCE) or item.startswith(PREFIX):
        return False
    return "\n" in item or any(len(part) > _LONGEST_NAME for part in item.split("/"))


def _as_table(data: Any) -> Any:
    """Return a pyarrow table with the content of a data frame or dataset, or None for anything else."""
    library = type(data).__module__.partition(".")[0]
    name = type(data).__name__
    if library not in ("pandas", "polars", "pyarrow", "datasets"):
        return None
    import pyarrow as pa

    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if library == "pandas" and name == "DataFrame":
        return pa.Table.from_pandas(data, preserve_index=False)
    if library == "polars" and name == "DataFrame":
        return data.to_arrow()
    if library == "datasets" and name == "Dataset":
        return data.with_format("arrow")[:]
    if library == "datasets" and name in ("DatasetDict", "IterableDatasetDict"):
        splits = ", ".join(map(repr, data))
        raise SourceError(
            f"A dataset with several splits was given: {splits}.",
            "Give one of them, such as dataset['train'], and others as validation= and test=.",
        )
    return None


def _write_table(table: Any, folder: Path) -> str:
    import pyarrow.parquet as pq

    if not table.num_rows:
        raise SourceError("The table has no rows.", _HINT)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), buffer)
    return _write(buffer.getvalue(), folder, "table", ".parquet")


def _write_records(records: Sequence[Mapping[str, Any]], folder: Path, kind: str = "records") -> str:
    if not records:
        raise SourceError("The list of texts is empty.", _HINT)
    try:
        lines = [json.dumps(record) for record in records]
    except (TypeError, ValueError) as error:
        raise SourceError(f"The records can't be written as JSON: {error}.", _HINT) from None
    return _write(("\n".join(lines) + "\n").encode("ascii"), folder, kind, ".jsonl")


def _write(data: bytes, folder: Path, kind: str, suffix: str) -> str:
    path = folder / f"{kind}-{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)
    return str(path)


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
