"""The content of `export.json`: an exported model, and how it compares with the original."""

from __future__ import annotations

from pydantic import Field

from finetale.schema.base import SCHEMA_VERSION, Record
from finetale.schema.comparison import Change


class ExportFile(Record):
    """The content of `export.json`. The exported model was loaded by the runtime that it is for."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of the file format.")
    model: str = Field(description="Name of the model.")
    model_sha256: str | None = Field(default=None, description="SHA-256 of the original's weights.")
    format: str = Field(description="Name of the format, as `--to` takes it.")
    weights: str = Field(description="Type of the weights, as `--weights` takes it.")
    bytes: int = Field(description="Size of the exported files, without this one and the card.")
    runtime: str = Field(description="Program and version that loaded the exported model.")
    processor: str = Field(description="Processor of the measurements.")
    text: str = Field(description="The text that was measured: `held-out text` of the run, or `general text`.")
    tokens: int = Field(description="Tokens measured.")
    documents: int = Field(description="Documents measured.")
    original_perplexity: float = Field(description="Perplexity per token of the original in PyTorch, in fp32.")
    perplexity: float = Field(description="Perplexity per token of the exported model.")
    change: Change = Field(description="How the perplexity of the exported model differs.")
    largest_change: float = Field(description="Bound of the change of the perplexity, percent.")
    same_choice: float = Field(
        description="Share of the measured tokens where both models have the same most likely next token, 0 to 1."
    )
    smallest_same_choice: float = Field(description="Bound of `same_choice`.")
    greedy_tokens: int = Field(description="Tokens that each model wrote, always the most likely one.")
    greedy_equal: float = Field(description="Share of them that are equal up to the first difference, 0 to 1.")
    accepted_loss: bool = Field(
        default=False, description="Whether a bound was exceeded, and accepted by `--accept-loss`."
    )
    tokens_per_second: float = Field(description="Tokens per second of the exported model, one text at a time.")
    original_tokens_per_second: float = Field(description="The same of the original in PyTorch.")
