"""The content of `data.json`: where each token of the text went, and what was found in the text."""

from __future__ import annotations

from pydantic import Field

from finetale.schema.base import SCHEMA_VERSION, Record, SparseRecord

ACCOUNT_PARTS = ("trained", "validation", "test", "watched", "context", "unused", "dropped")
"""The parts of a token account, in the order in which they are shown."""
RARE_PARTS = ("watched", "context", "unused")
"""Parts that are shown only if they are not zero."""


class TokenAccount(Record):
    """Where the tokens went. `read` is the sum of the others."""

    read: int = Field(description="Tokens read.")
    trained: int = Field(description="Tokens to train on, per epoch.")
    validation: int = Field(description="Tokens held out for validation.")
    test: int = Field(description="Tokens held out for the test.")
    watched: int = Field(default=0, description="Tokens of watched text, which is only measured.")
    context: int = Field(default=0, description="Tokens read as context and not learned.")
    unused: int = Field(default=0, description="Tokens of mixed text beyond its share.")
    dropped: int = Field(description="Tokens that no split holds.")


class DroppedTokens(Record):
    """Documents that were dropped for one reason."""

    reason: str = Field(description="Why they were dropped.")
    documents: int = Field(description="Number of documents.")
    tokens: int = Field(description="Their tokens.")


class BlockReport(Record):
    """What the training blocks look like."""

    size: int = Field(description="Tokens per block.")
    count: int = Field(description="Number of blocks per epoch.")
    padding_share: float = Field(description="Share of positions that are padding, 0 to 1.")


class FileReport(SparseRecord):
    """One file, or one split of a dataset, that was read."""

    file: str = Field(description="Path, or name of the dataset.")
    kind: str = Field(description="Format, such as `text` or `jsonl`.")
    encoding: str | None = Field(default=None, description="Character encoding that it was read in.")
    bytes: int | None = Field(default=None, description="Size, bytes.")
    documents: int = Field(default=0, description="Documents in it.")
    characters: int = Field(default=0, description="Characters in its documents.")
    problems: dict[str, int] = Field(default={}, description="How often each kind of problem was found.")
    text_column: str | None = Field(default=None, description="Column that contains the text of a record.")
    left_out: dict[str, int] = Field(
        default={}, description="Content that is not text or does not belong to it, such as `picture`, by kind."
    )


class SkippedFiles(Record):
    """Files, folders and splits that were not read."""

    hidden: int = Field(default=0, description="Hidden files and folders.")
    linked_folders: int = Field(default=0, description="Links to folders.")
    run_directories: int = Field(default=0, description="Run directories of Finetale.")
    held_out_files: int = Field(default=0, description="Files that are validation or test text.")
    special: int = Field(default=0, description="Named pipes, sockets and devices, which are never opened.")
    unreadable: int = Field(default=0, description="Files and folders that can't be read, with `skip_unreadable`.")
    empty: int = Field(default=0, description="Files without text; they were read, and are not documents.")
    dataset_splits: list[str] = Field(default=[], description="Splits of a dataset that were not requested.")
    other: dict[str, int] = Field(default={}, description="Files of other kinds, by suffix.")


class LeftOutColumn(Record):
    """A column with text that was not chosen."""

    name: str = Field(description="Name; `a.b` is nested, `a[]` the items of a list.")
    characters: int = Field(description="Characters in it, estimated where not every record was measured.")
    share: float = Field(description="Share of the characters of all columns with text, 0 to 1.")


class ColumnReport(Record):
    """The column that was chosen as the text of a source of records."""

    source: str = Field(description="The source.")
    taken: str = Field(description="Name of the column; a number counts the columns of a table without a header line.")
    guessed: bool = Field(default=True, description="Whether it was chosen without `text_column`.")
    template: bool = Field(default=False, description="Whether the columns of the setting `template` were taken.")
    characters: int = Field(default=0, description="Characters in it, estimated where not every record was measured.")
    share: float = Field(default=1.0, description="Share of the characters of all columns with text, 0 to 1.")
    files: int = Field(default=1, description="Files of the source that were read with it.")
    records_measured: int = Field(default=0, description="Records that the characters were counted in.")
    left_out: list[LeftOutColumn] = Field(default=[], description="Other columns with text, the largest first.")
    more_left_out: int = Field(default=0, description="Number of such columns beyond those listed.")


class LengthBin(Record):
    """How many documents have a length within a range."""

    low: int = Field(alias="from", description="Minimum number of characters.")
    high: int = Field(alias="to", description="Maximum number of characters.")
    documents: int = Field(description="Number of documents.")


class LanguageCount(Record):
    """A language, and how many of the sampled documents are in it."""

    language: str = Field(description="Name in English.")
    sampled_documents: int = Field(description="Documents of the sample.")


class RepeatExample(SparseRecord):
    """A document that repeats an earlier one."""

    source: str = Field(description="File of the document.")
    line: int = Field(description="Line at which it begins.")
    first_seen: str | None = Field(default=None, description="Earlier document of the same split, as file:line.")
    also_in: str | None = Field(default=None, description="Document of another split, as file:line.")
    similarity: float | None = Field(
        default=None, description="Share of passages in common, 0 to 1; left out when equal."
    )


class Repeats(SparseRecord):
    """Documents that repeat others."""

    documents: int = Field(default=0, description="Documents that repeat another one.")
    dropped: int = Field(default=0, description="How many of them were dropped.")
    examples: list[RepeatExample] = Field(default=[], description="The first of them.")
    compared_with: int | None = Field(default=None, description="Documents compared; left out when all were.")
    not_compared_with_all: int | None = Field(
        default=None,
        description="Documents that were not compared with everything similar; left out when there are none.",
    )


class PersonalExample(Record):
    """Where personal data was found. The data itself is not recorded."""

    source: str = Field(description="File.")
    line: int = Field(description="Line.")
    kind: str = Field(description="Kind, such as `email`.")


class PersonalData(Record):
    """Personal data in the text."""

    documents: int = Field(default=0, description="Documents that hold some.")
    counts: dict[str, int] = Field(default={}, description="Number of findings by kind.")
    examples: list[PersonalExample] = Field(default=[], description="The first findings.")


class SplitCounts(Record):
    """The size of one split."""

    documents: int = Field(default=0, description="Documents that have text in it.")
    characters: int = Field(default=0, description="Characters.")
    words: int = Field(default=0, description="Words, as separated by white space.")
    bytes: int = Field(default=0, description="Bytes in UTF-8.")


class Splits(Record):
    """The sizes of the splits."""

    train: SplitCounts = Field(default=SplitCounts(), description="Training text.")
    validation: SplitCounts = Field(default=SplitCounts(), description="Validation text.")
    test: SplitCounts = Field(default=SplitCounts(), description="Test text.")


class Problem(Record):
    """One kind of problem in one file."""

    file: str = Field(description="File.")
    line: int | None = Field(default=None, description="First line where it was found.")
    kind: str = Field(description="Kind of problem.")
    count: int | None = Field(default=1, description="How often it was found.")
    detail: str = Field(default="", description="Description of the problem.")
    fatal: bool = Field(default=False, description="Whether the file, or the rest of it, could not be read.")
    hint: str = Field(default="", description="What to do about it.")


class DroppedText(Record):
    """Parts of the text that were dropped for one reason."""

    reason: str = Field(description="Why they were dropped.")
    documents: int = Field(description="Number of documents.")
    characters: int = Field(description="Their characters.")


class SharedText(SparseRecord):
    """How much of a held-out split also occurs in the training text."""

    words: int | None = Field(default=None, description="Words of the split.")
    tokens: int | None = Field(default=None, description="Tokens of the split, in files of older versions.")
    shared: int | None = Field(
        default=None, description="Words (tokens) of the split that lie in passages of the training text too."
    )


class SharedPassages(SparseRecord):
    """Passages that the held-out text shares with the training text.

    A character of Chinese or Japanese counts as a word.
    """

    unit: str = Field(
        default="tokens",
        description="`words`, or `characters` of Chinese and Japanese; files of older versions count `tokens`.",
    )
    window: int | None = Field(default=None, description="Minimum length of a passage that counts, in the unit.")
    validation: SharedText | None = Field(default=None, description="Validation text.")
    test: SharedText | None = Field(default=None, description="Test text.")
    watched: SharedText | None = Field(default=None, description="Watched text; left out without any.")


class MixedText(SparseRecord):
    """A source of the setting `mix`: text that is trained on beside the user's own.

    The counts of tokens are left out where tokens are not counted, or are estimated from a sample.
    """

    source: str = Field(description="The source.")
    share: float = Field(description="Share of the training tokens that was asked for, 0 to 1.")
    documents: int = Field(default=0, description="Documents of the source.")
    characters: int = Field(default=0, description="Characters in them.")
    passages: int | None = Field(default=None, description="Passages of it to train on.")
    tokens: int | None = Field(default=None, description="Tokens of it to train on, per epoch.")
    of_tokens: int | None = Field(default=None, description="All tokens to train on, per epoch.")
    is_short: bool | None = Field(default=None, description="Whether it has less text than its share needs.")


class WatchedText(Record):
    """A source of the setting `watch`: text that is measured before and after, and not trained on."""

    source: str = Field(description="The source.")
    documents: int = Field(default=0, description="Documents of the source.")
    characters: int = Field(default=0, description="Characters in them.")


class Examples(Record):
    """Examples: documents with answers that are learned, and context that is read and not learned."""

    documents: int = Field(description="Number of examples.")
    by_template: int = Field(default=0, description="Examples that the setting `template` made, not a chat template.")
    answers: int = Field(description="Answers that are learned.")
    context_characters: int = Field(description="Characters that are read and not learned.")
    learned_characters: int = Field(description="Characters that are learned.")
    loss: str = Field(description="The setting `loss`: `answers`, `last` or `all`.")

    @property
    def has_messages(self) -> bool:
        """Whether a chat template made some of them of messages, so that the model answers messages."""
        return self.documents > self.by_template


class Speaker(Record):
    """A person who writes in the chats."""

    name: str = Field(description="Name.")
    messages: int = Field(description="Number of messages.")
    share: float = Field(description="Share of all messages of people, 0 to 1.")


class Chats(Record):
    """Chats that were recognised."""

    forms: dict[str, int] = Field(description="Chats by kind, such as `WhatsApp`; of `ChatGPT` the conversations.")
    conversations: int = Field(default=0, description="Conversations that chats between people were cut into.")
    people: int = Field(default=0, description="People who write in the chats.")
    speakers: list[Speaker] = Field(default=[], description="The people with the most messages.")
    speaker: str | None = Field(default=None, description="The setting `speaker`.")


class TextReport(Record):
    """What was found in the text."""

    sources: list[str] = Field(description="Sources as given.")
    files: list[FileReport] = Field(default=[], description="The first files that were read.")
    more_files: int = Field(default=0, description="Number of files beyond those listed.")
    files_read: int | None = Field(default=None, description="Number of files that hold text and were read.")
    skipped: SkippedFiles = Field(default=SkippedFiles(), description="What was not read.")
    skipped_names: dict[str, list[str]] = Field(default={}, description="The first names of each kind in `skipped`.")
    columns: list[ColumnReport] = Field(
        default=[], description="The column that was chosen from each source of records."
    )
    documents: int = Field(default=0, description="Documents read.")
    characters: int = Field(default=0, description="Characters in the documents.")
    words: int = Field(default=0, description="Words in the documents.")
    length_histogram: list[LengthBin] = Field(default=[], description="Lengths of the documents.")
    languages: list[LanguageCount] = Field(default=[], description="Languages of a sample, the most frequent first.")
    duplicates: Repeats = Field(default=Repeats(), description="Exact repeats within a split.")
    near_duplicates: Repeats | None = Field(
        default=None, description="Near repeats within a split; null if not searched for."
    )
    overlap: Repeats = Field(default=Repeats(), description="Training documents that also occur in held-out text.")
    near_overlap: Repeats | None = Field(
        default=None, description="Near repeats across splits; null if not searched for."
    )
    personal_data: PersonalData | None = Field(default=None, description="Personal data; null if not searched for.")
    splits: Splits = Field(default=Splits(), description="Sizes of the splits.")
    cleaning: dict[str, int] = Field(default={}, description="How often each kind of cleaning was applied.")
    content_left_out: dict[str, int] = Field(
        default={}, description="Content of all files that was left out, such as `picture`, by kind."
    )
    problems: list[Problem] = Field(default=[], description="The first problems.")
    more_problems: int = Field(default=0, description="Number of problems beyond those listed.")
    dropped: list[DroppedText] = Field(default=[], description="What was dropped, by reason.")
    split_rule: str = Field(default="", description="How documents were assigned to splits, in words.")
    shared_passages: SharedPassages | None = Field(default=None, description="Passages shared between splits.")
    chats: Chats | None = Field(default=None, description="Chats; null if none was recognised.")
    examples: Examples | None = Field(default=None, description="Examples; null: the text is running text.")
    mixed: list[MixedText] = Field(default=[], description="Text that is mixed in.")
    watched: list[WatchedText] = Field(default=[], description="Text that is watched.")


class DataFile(Record):
    """The content of `data.json`."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of the file format.")
    tokens: TokenAccount = Field(description="Where the tokens went.")
    dropped: list[DroppedTokens] = Field(default=[], description="Dropped tokens by reason.")
    blocks: BlockReport | None = Field(default=None, description="The training blocks.")
    warnings: list[str] = Field(default=[], description="Warnings of the tokenizer, as sentences.")
    file_sha256: dict[str, str] | None = Field(
        default=None, description="SHA-256 of each file by path; null for streams and for very many files."
    )
    text: TextReport | None = Field(default=None, description="What was found in the text.")
