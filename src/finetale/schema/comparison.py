"""The content of `comparison.json`: two models, measured and sampled on the same text and prompts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from finetale.schema.base import SCHEMA_VERSION, Interval, Record, SparseRecord


class FigureIntervals(Record):
    """95% intervals of the figures."""

    loss: Interval | None = Field(default=None, description="Nats per token.")
    perplexity: Interval | None = Field(default=None, description="Per token.")
    word_perplexity: Interval | None = Field(default=None, description="Per word.")
    bits_per_byte: Interval | None = Field(default=None, description="Bits per byte of UTF-8.")


class Figures(Record):
    """A model's figures on one text. Lower is better in all of them."""

    loss: float = Field(description="Mean loss, nats per token.")
    perplexity: float = Field(description="Perplexity per token: exp(loss).")
    word_perplexity: float | None = Field(
        default=None,
        description="Perplexity per word: exp(nats / words). Null where white space does not separate words.",
    )
    bits_per_byte: float = Field(description="Bits per byte of UTF-8.")
    tokens: int = Field(description="Tokens measured.")
    words: int | None = Field(
        default=None, description="Words measured. Null where white space does not separate words."
    )
    bytes: int = Field(description="Bytes measured.")
    documents: int = Field(description="Documents measured.")
    interval_unit: str | None = Field(
        default=None, description="What the intervals resample: `document`; `piece` in files of older versions."
    )
    interval: FigureIntervals | None = Field(
        default=None, description="95% intervals; null for fewer than 5 documents: the figures hold for this text only."
    )


class Evaluation(Figures):
    """The result of `finetale evaluate`."""

    model: str = Field(description="Name of the model.")
    interval_method: str | None = Field(
        default=None, description="`jackknife-t`; null without intervals, and in files of older versions (a bootstrap)."
    )


class Sample(Record):
    """One continuation of a prompt."""

    prompt: str = Field(description="The prompt.")
    number: int = Field(default=1, description="Number of the sample within its prompt, from 1.")
    text: str = Field(description="What the model wrote, without the prompt.")
    seed: int | None = Field(default=None, description="Seed of the sample.")
    num_tokens: int = Field(description="Tokens written.")
    finish_reason: str | None = Field(
        default=None, description="`length`, `end` (end of text) or `stop` (stop string)."
    )
    reference: str | None = Field(default=None, description="The answer in the text, for a held-out example.")


class AnswerFigures(Record):
    """A model's answers to held-out examples, written with the most likely tokens, against the references."""

    examples: int = Field(description="Number of examples.")
    exact_match: float = Field(description="Share of the answers that equal the reference, white space aside, 0 to 1.")
    chrf: float | None = Field(
        default=None,
        description="Mean chrF, 0 to 100: overlap of character n-grams. Null without sacrebleu.",
    )
    chrf_interval: Interval | None = Field(default=None, description="95% interval of the mean chrF.")
    ended: float = Field(description="Share of the answers that the model ended itself, before the limit, 0 to 1.")


class LongestMatch(Record):
    """The longest run of words of the samples that also occurs in the training text."""

    words: int = Field(
        description="Number of words; 0 for fewer than 4. Each Chinese or Japanese character counts as a word."
    )
    text: str = Field(default="", description="The words, with personal data masked.")


class SampleMetrics(Record):
    """How varied a model's samples are, and whether they copy."""

    distinct_1: float | None = Field(default=None, description="Different words over all words, 0 to 1.")
    distinct_2: float | None = Field(default=None, description="Different word pairs over all pairs, 0 to 1.")
    distinct_3: float | None = Field(default=None, description="Different word triples over all triples, 0 to 1.")
    repetition: float | None = Field(default=None, description="Share of 4-grams seen earlier in their sample, 0 to 1.")
    ended: float | None = Field(
        default=None, description="Share of samples that the model ended itself, before the limit of tokens, 0 to 1."
    )
    longest_match: LongestMatch | None = Field(default=None, description="Null when the training text is unknown.")


class Side(Record):
    """One of the two models."""

    name: str = Field(description="Name of the model.")
    parameters: int | None = Field(default=None, description="Number of parameters.")
    validation: Figures | None = Field(default=None, description="Figures on the validation text.")
    test: Figures | None = Field(default=None, description="Figures on the test text.")
    samples: list[Sample] = Field(default=[], description="Continuations of the prompts.")
    sample_metrics: SampleMetrics = Field(default=SampleMetrics(), description="Figures of the samples.")
    answers: AnswerFigures | None = Field(
        default=None, description="Answers to held-out examples; null for running text."
    )

    def on(self, split: str) -> Figures | None:
        """Return the figures on `validation` or `test` text."""
        return self.validation if split == "validation" else self.test


class Change(Record):
    """How the perplexity of one text changed, or its bits per byte."""

    percent: float = Field(description="Change in percent; negative is better.")
    interval: Interval | None = Field(default=None, description="95% interval in percent.")
    excludes_zero: bool | None = Field(default=None, description="Whether the interval leaves out no change.")
    per: Literal["token", "word", "byte"] = Field(
        default="token",
        description="What changed: perplexity per `token`, bits per `byte`, or, in files of older versions, "
        "perplexity per `word`.",
    )


class Changes(Record):
    """The changes by text."""

    validation: Change | None = Field(default=None, description="On the validation text.")
    test: Change | None = Field(default=None, description="On the test text.")

    def on(self, split: str) -> Change | None:
        """Return the change on `validation` or `test` text."""
        return self.validation if split == "validation" else self.test


class WatchedFigures(Record):
    """Two models on a text of the setting `watch`, which neither was trained on in this run."""

    source: str = Field(description="The source, as given to `watch`.")
    before: Figures = Field(description="Figures of the first model.")
    after: Figures = Field(description="Figures of the second model.")
    change: Change | None = Field(default=None, description="How the second differs from the first.")

    @property
    def sides(self) -> tuple[Figures, Figures]:
        """Figures before and after."""
        return self.before, self.after


class MemorisedPassage(Record):
    """A passage of the training text that the model continues word for word."""

    place: str = Field(description="File, as the data report names it.")
    tokens: int = Field(description="Length, tokens.")
    bits: float = Field(description="Bits that the base needs for the passage: how surprising it is.")
    personal_data: bool = Field(default=False, description="Whether it holds personal data.")
    text: str = Field(description="The passage, with personal data masked.")


class MemorisationAudit(SparseRecord):
    """How much of one text a model has memorised."""

    tokens: int = Field(description="Tokens that were examined.")
    of_tokens: int | None = Field(default=None, description="Tokens of the text.")
    memorised_tokens: int = Field(description="Tokens in memorised passages.")
    passages: int = Field(default=0, description="Number of memorised passages.")
    with_personal_data: int = Field(default=0, description="How many of them hold personal data.")
    examples: list[MemorisedPassage] | None = Field(default=None, description="The most surprising passages.")


class Memorisation(SparseRecord):
    """What the tuned model has memorised."""

    has_base: bool = Field(default=False, description="Whether passages that the base would also write were left out.")
    training: MemorisationAudit | None = Field(default=None, description="On the training text.")
    held_out: MemorisationAudit | None = Field(default=None, description="On held-out text, for contrast.")


class ComparisonFile(Record):
    """The content of `comparison.json`."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of the file format.")
    verdict: str = Field(description="One sentence: whether the model got better.")
    improved: bool | None = Field(default=None, description="Whether the model got better; null if that is unknown.")
    improved_reason: str | None = Field(
        default=None,
        description="Why `improved` is null: `no held-out text`, `too few documents` or `random base`.",
    )
    judged_on: Literal["validation", "test"] | None = Field(
        default=None, description="The text that the verdict is about."
    )
    same_tokenizer: bool | None = Field(
        default=None, description="Whether both models read the same tokens; null in files of older versions."
    )
    interval_unit: str | None = Field(
        default=None, description="What the intervals resample: `document`; `piece` in files of older versions."
    )
    interval_method: str | None = Field(
        default=None, description="`jackknife-t`; null without intervals, and in files of older versions (a bootstrap)."
    )
    prompts: list[str] = Field(default=[], description="Prompts of the samples.")
    settings: dict[str, Any] = Field(default={}, description="Sampling settings by name, as in docs/settings.md.")
    before: Side = Field(description="The first model: the base.")
    after: Side = Field(description="The second model: the tuned one.")
    change: Changes = Field(default=Changes(), description="How the second differs from the first.")
    watched: list[WatchedFigures] = Field(
        default=[], description="Figures on the texts of `watch`, which show what the model forgot."
    )
    memorisation: Memorisation | None = Field(default=None, description="Null if not searched for.")
