"""The results of `check`, `plan` and `push`: objects in Python, and the output of `--json` on the command line."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from finetale.schema.base import Record
from finetale.schema.data import DataFile, DroppedTokens, TextReport, TokenAccount
from finetale.schema.run import BaseModelSource, Hardware, ProbeResult, Trained


class TokenizerFit(Record):
    """How well a tokenizer fits a text, measured on a sample."""

    sample_bytes: int = Field(description="Bytes of the measured sample, in UTF-8.")
    vocab_size: int = Field(description="Number of tokens of the tokenizer.")
    bytes_per_token: float = Field(description="Bytes of text per token, on average.")
    fragments_share: float = Field(description="Share of the tokens that hold only some of the bytes of a character.")
    unknown_share: float = Field(description="Share of the tokens that stand for unknown text.")
    changed_share: float = Field(description="Share of the characters that encoding and decoding changes.")
    own_vocab_size: int | None = Field(
        default=None, description="Number of tokens of a tokenizer trained on the text; null with too little text."
    )
    own_bytes_per_token: float | None = Field(default=None, description="Its bytes per token on the same sample.")
    advice: str | None = Field(default=None, description="What to do if the tokenizer fits badly, as a sentence.")


class CheckResult(Record):
    """The result of `finetale check`."""

    text: TextReport = Field(description="What was found in the text.")
    tokens: TokenAccount | None = Field(default=None, description="Where the tokens go; null when not counted.")
    estimated: bool = Field(
        default=False, description="Whether `tokens` and `dropped` are estimated from a sample of a long text."
    )
    tokens_error: int | None = Field(
        default=None,
        description="Half of the width of the 95% interval of `tokens.read`; null when all tokens are counted.",
    )
    tokenizer: str | None = Field(default=None, description="Model or tokenizer that the tokens were counted with.")
    tokenizer_fit: TokenizerFit | None = Field(
        default=None, description="How the tokenizer fits the text; null unless a model or tokenizer is named."
    )
    no_tokens: str | None = Field(default=None, description="Why the tokens were not counted.")
    dropped: list[DroppedTokens] = Field(default=[], description="Dropped tokens by reason.")
    warnings: list[str] = Field(default=[], description="Warnings of the tokenizer, as sentences.")
    refused: str | None = Field(default=None, description="Why `finetale train` would not start.")

    @property
    def ok(self) -> bool:
        """Whether `finetale train` would start: everything could be read, and there is enough text."""
        return self.refused is None and not any(problem.fatal for problem in self.text.problems)

    def __repr__(self) -> str:
        return f"<CheckResult: {self._sentence()}>"

    def _sentence(self) -> str:
        fatal = sum(problem.fatal for problem in self.text.problems)
        found = f"{self.text.documents:,} documents, {self.text.characters:,} characters"
        return (
            found + (f"; {fatal:,} could not be read" if fatal else "") + (f"; {self.refused}" if self.refused else "")
        )


class MemoryForecast(Record):
    """The memory of the training device."""

    expected_bytes: int = Field(description="Memory that the run will take, bytes.")
    available_bytes: int = Field(description="Memory that is free, bytes.")
    saved_bytes: int = Field(default=0, description="Bytes that frozen matrices in bf16 save in `expected_bytes`.")


class DiskForecast(Record):
    """The disk space of a run."""

    peak_bytes: int = Field(description="Peak disk space of the run, bytes.")
    checkpoint_bytes: int = Field(description="Size of one checkpoint, bytes.")
    free_bytes: int = Field(description="Free space on the disk of the run directory, bytes.")


class PlanResult(Record):
    """The result of `finetale plan`: what the run would take, measured on this machine."""

    model: BaseModelSource = Field(description="The model to start from.")
    trained: Trained = Field(description="The weights that the run would train.")
    hardware: Hardware = Field(description="This machine.")
    data: DataFile = Field(description="What `data.json` of the run would hold.")
    steps: int = Field(description="Optimizer steps of the run.")
    steps_per_epoch: int = Field(description="Optimizer steps per epoch.")
    targets: int = Field(description="Tokens to train on, each epoch counted.")
    memory: MemoryForecast = Field(description="Memory of the training device.")
    disk: DiskForecast = Field(description="Disk space.")
    tokens_per_second: float = Field(description="Training speed, target tokens per second.")
    evaluation_tokens_per_second: float = Field(description="Evaluation speed, target tokens per second.")
    train_seconds: float = Field(description="Seconds of training.")
    evaluation_seconds: float = Field(description="Seconds of the evaluations within the run.")
    comparison_seconds: float = Field(description="Seconds of the comparison at the end.")
    preparation_seconds: float = Field(description="Seconds to read and tokenise the text and to load the model.")
    total_seconds: float = Field(description="Seconds of the whole run.")
    probe: ProbeResult = Field(description="What the probe tried, and what it chose.")
    config: dict[str, Any] = Field(description="The resolved settings by name, as in docs/settings.md.")

    def __repr__(self) -> str:
        return (
            f"<PlanResult: {self.steps:,} steps, {self.tokens_per_second:,.0f} tokens/s, "
            f"{self.total_seconds:,.0f} s, {self.memory.expected_bytes / 2**30:.1f} GiB>"
        )


class PushedFile(Record):
    """A file that is uploaded."""

    path: str = Field(description="Path in the repository.")
    bytes: int = Field(description="Size, bytes.")


class PushResult(Record):
    """The result of `finetale push`: what is uploaded, and where it is."""

    repository: str = Field(description="Name on the Hub, OWNER/NAME.")
    public: bool = Field(description="Whether everyone may read it.")
    files: list[PushedFile] = Field(description="The files, the largest first.")
    left_out: list[str] = Field(default=[], description="Files of the folder that are not part of the model.")
    removed: list[str] = Field(
        default=[], description="Files of an earlier push that were removed; empty before the upload."
    )
    findings: list[str] = Field(
        default=[], description="Personal data and memorised passages that were found, as sentences."
    )
    not_looked_for: list[str] = Field(default=[], description="What of that was not looked for, as sentences.")
    url: str | None = Field(default=None, description="Address of the repository; null before the upload.")
    commit: str | None = Field(default=None, description="Commit of the upload; null before it.")

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)
