"""Parquet: the column that holds the text. Knows nothing of cleaning and splits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetale.text.columns import LOOK_AHEAD, Raw, text_at
from finetale.text.documents import FileError
from finetale.text.formats.base import Format, SourceFile


def parquet_documents(source: SourceFile) -> Iterator[tuple[int, Raw]]:
    """Yield (record number from 1, raw text or example) of each row of a Parquet file.

    Only the column with the text is read. The other columns are measured in the first rows of the first, the middle and
    the last row group.

    Raises:
        FileError: the file is not a Parquet file, lacks the column, or holds most of its text in other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    account, columns = source.account, source.columns
    with source.seekable() as file:
        try:
            if not account.bytes:
                return
            table = pq.ParquetFile(file)
            rows, groups = table.metadata.num_rows, table.num_row_groups
            if not rows:
                return
            schema = table.schema_arrow
            with_text = [field.name for field in schema if _holds_strings(field.type)]
            sample: list[dict[str, Any]] = []
            for group in sorted({0, groups // 2, groups - 1}):
                batch = next(table.iter_batches(batch_size=LOOK_AHEAD, row_groups=[group], columns=with_text), None)
                sample += [] if batch is None else batch.to_pylist()
            choice = columns.choose(sample or [dict.fromkeys(schema.names)], account.file, 1, schema.names)
            account.text_column = choice.taken
            for record in sample:
                choice.measure(record, rows / len(sample))
            choice.judge(account.file, at_end=False)
            number = 1
            if not choice.path:  # several columns
                for batch in table.iter_batches(batch_size=256, columns=choice.names_read(schema.names)):
                    for record in batch.to_pylist():
                        yield number, choice.raw(record, account, number)
                        number += 1
                return
            for batch in table.iter_batches(batch_size=256, columns=[choice.taken]):
                for value in batch.column(0).to_pylist():
                    yield number, text_at({choice.path[0]: value}, choice.path, account.file, number)
                    number += 1
        except UnicodeDecodeError as error:
            reason = f"has text that is not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason})"
            raise FileError(
                account.file, None, "undecodable", reason, "Write the file again with text in UTF-8."
            ) from None
        except (pa.ArrowException, OSError) as error:
            reason = f"is not a Parquet file that can be read ({str(error).splitlines()[0].rstrip('.')})"
            raise FileError(account.file, None, "damaged", reason, "Get the file again.") from None


def _holds_strings(kind: Any) -> bool:
    """Return whether a column of this Arrow type holds strings, at any depth."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _holds_strings(kind.value_type)
    if types.is_struct(kind):
        return any(_holds_strings(field.type) for field in kind)
    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_strings(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


FORMATS = (Format("parquet", "table", (".parquet",), "documents", parquet_documents, magic=(b"PAR1",), is_binary=True),)
