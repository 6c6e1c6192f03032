"""The base classes of all records of the schema. Knows no files.

A record is the content of one JSON object that Finetale writes. Keys that a newer version added are kept, so that an
older version can rewrite the file without losing them. Values are strict: a number in quotes is an error, and so are
NaN and infinity.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, Strict, ValidationError, model_serializer

SCHEMA_VERSION = 2
"""Version of the files. Version 2 replaced the copy of the settings in `run.json` by the SHA-256 of `config.yaml`."""

Interval = Annotated[tuple[float, float], Strict(False)]
"""Low and high end of a 95% interval."""

R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """Base of all records: immutable, strict, finite numbers only, unknown keys kept."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        populate_by_name=True,
        protected_namespaces=(),
        defer_build=True,
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-able data under the names that the file uses."""
        return self.model_dump(mode="json", by_alias=True)


class SparseRecord(Record):
    """A record whose absent values are left out of the file instead of written as null."""

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


def parse(kind: type[R], content: str | bytes) -> R:
    """Return the record in a JSON text.

    Raises:
        ValueError: names the first value that is missing or invalid.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(describe(error)) from None


def describe(error: ValidationError) -> str:
    """Return the first problem of a validation error as text: where, what, and the value seen."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "json_invalid":
        return f"it is not JSON ({first['msg'].removeprefix('Invalid JSON: ')})"
    return f"{place or 'the content'} is {str(first['input'])[:40]!r}; expected {message}"
