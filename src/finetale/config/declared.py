"""Declare every setting once: its type, range, default and help text.

`Config` is flat; each stage takes the one base class that holds its own settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self, cast

import yaml
from pydantic import Field, field_validator, model_validator

from finetale.config.layers import Settings
from finetale.config.method import MethodSettings
from finetale.config.mixing import Mix, as_mixes, parse_mix
from finetale.config.templates import Template, parse_template
from finetale.surrogates import describe_surrogates

LearningRateSchedule = Literal["cosine", "linear", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
ExampleLoss = Literal["answers", "last", "all"]
Attention = Literal["auto", "documents", "model"]
Compile = Literal["auto", "on", "off"]
OptimizerState = Literal["fp32", "bf16"]
Undecodable = Literal["error", "replace"]
Repeated = Literal["off", "exact", "near"]
Tracker = Literal["wandb", "mlflow", "trackio"]

DEFAULT_EPOCHS = 3.0
DEFAULT_FRACTION = 0.05
"""Default share of the text for validation, and for the test."""
MIN_BLOCK_SIZE = 8
"""Smallest block size, in tokens. In a shorter block, a model sees too little text to learn from it."""


def _as_list(value: Any) -> Any:
    """Let one string stand for a list of one."""
    return [value] if isinstance(value, str) else value


class TextSettings(Settings):
    """Text: sources, decoding, cleaning, splits"""

    documents: str = Field(
        "auto",
        description="What one document is in a text: file, chapter (by its headings), line, "
        "blank-line, or a separator of your own (\\n and \\t are escapes). auto: file. Each record of jsonl, json, "
        "csv, tsv, parquet and spreadsheets is a document.",
    )
    text_column: str | None = Field(
        None,
        description="Column or key that holds the text of a record; a.b.c for nested ones, a number from 0 for a csv "
        "without a header line. auto: chosen and reported, and refused where the other columns hold more text.",
    )
    prompt_column: str | None = Field(
        None,
        description="Column that holds the prompts of examples. auto: prompt, instruction, question and the like are "
        "recognised and reported, and so are messages and conversations.",
    )
    completion_column: str | None = Field(
        None, description="Column that holds the answers of examples. auto: completion, output, response, answer."
    )
    loss: ExampleLoss = Field(
        "answers",
        description="What a model learns from an example: answers (the prompts are read and not learned), last (only "
        "the last answer of a conversation), or all. Running text is always learned whole.",
    )
    template: str | None = Field(
        None,
        description="Text of a document with its columns in braces, such as 'Title: {title}\\n\\n{body}'. \\n and \\t "
        "are escapes, {{ and }} literal braces. A missing value is empty. Chapters have {title} and {body}. Of an "
        "example, the completion column is learned and the rest is context.",
    )
    speaker: str | None = Field(
        None,
        description="Name of a person in chats of WhatsApp or Telegram, whose messages are the answers that are "
        "learned. auto: the chats are running text, all learned.",
    )
    encoding: str | None = Field(
        None, description="Encoding of the text files. auto: detected for each file and reported."
    )
    undecodable: Undecodable = Field(
        "error",
        description="What to do with bytes that are invalid in the file's encoding: error, or replace by U+FFFD "
        "(counted).",
    )
    skip_unreadable: bool = Field(
        False, description="Leave out files and folders that can't be opened or read. They are counted and named."
    )
    clean_newlines: bool = Field(True, description="Convert \\r\\n and \\r to \\n (counted).")
    clean_control: bool = Field(
        True,
        description="Remove NULs and control characters other than tab and newline; turn vertical tabs, form feeds and "
        "Unicode's other line ends into newlines (counted).",
    )
    clean_mojibake: bool = Field(
        False, description="Repair text that was once decoded with the wrong encoding, such as â€™ (counted)."
    )
    strip: bool = Field(True, description="Remove white space at both ends of each document.")
    min_characters: int = Field(1, ge=1, description="Drop documents with fewer characters (counted).")
    screen: bool = Field(
        True,
        description="Search for personal data and for documents that nearly repeat another one (counted and reported).",
    )
    deduplicate: Repeated = Field(
        "off",
        description="Drop documents of a split that repeat an earlier one (counted). exact: the same text. near: also"
        " documents that share about 60% of their three-word passages.",
    )
    drop_overlap: Repeated = Field(
        "off",
        description="Drop documents that would put the same text into training and into the validation or test text "
        "(counted): exact or near, as for deduplicate.",
    )
    mask_personal_data: bool = Field(
        False,
        description="Replace personal data by [EMAIL], [PHONE], [CARD], [IBAN] and [KEY] (counted).",
    )
    validation: tuple[str, ...] = Field(
        (), description="Sources of the validation text. If given, nothing is split off for it."
    )
    test: tuple[str, ...] = Field((), description="Sources of the test text. If given, nothing is split off for it.")
    mix: tuple[str, ...] = Field(
        (),
        description="Other text to train on beside your own, against forgetting: SOURCE:SHARE, where 0.05 is 5% of the "
        "training tokens. May be given several times. See docs/forgetting.md.",
    )
    watch: tuple[str, ...] = Field(
        (),
        description="Other text that is not trained on: the comparison measures it before and after, to show what the "
        "model forgets.",
    )
    validation_fraction: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the text held out for validation. auto: 0.05, or 0 if a validation or test source is "
        "given.",
    )
    test_fraction: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the text held out for the test. auto: 0.05, or 0 if a validation or test source is "
        "given.",
    )
    long_document: int = Field(
        100_000,
        ge=1000,
        description="Cut documents with more characters than this into contiguous parts, one per split.",
    )
    streaming: bool = Field(False, description="Read hf: datasets as a stream instead of downloading them first.")

    @field_validator("validation", "test", "watch", mode="before")
    @classmethod
    def _held_out_sources(cls, value: Any) -> Any:
        return as_sources(value)

    @field_validator("mix", mode="before")
    @classmethod
    def _one_mix_or_many(cls, value: Any) -> Any:
        return as_mixes(value)

    @field_validator("mix")
    @classmethod
    def _shares_leave_room(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        mixes = [parse_mix(item) for item in value]
        names = [mix.source for mix in mixes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is given twice; give each source one share")
        if (total := sum(mix.share for mix in mixes)) >= 1:
            raise ValueError(f"the shares add up to {total:g}; they must stay below 1")
        return value

    @field_validator("deduplicate", "drop_overlap", mode="before")
    @classmethod
    def _yes_is_exact(cls, value: Any) -> Any:
        """Accept booleans: `true` means exact, and YAML reads `off` as false."""
        return {True: "exact", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("documents")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value:
            raise ValueError("the separator of documents is empty")
        return value

    @field_validator("template")
    @classmethod
    def _well_formed(cls, value: str | None) -> str | None:
        if value is not None:
            parse_template(value)
        return value

    @field_validator("speaker")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("the name of the speaker is empty")
        return value

    @model_validator(mode="after")
    def _one_way_to_read_records(self) -> Self:
        if self.text_column is not None and (self.prompt_column or self.completion_column):
            raise ValueError("text_column reads running text; give it, or prompt_column and completion_column")
        if self.template is not None and self.text_column is not None:
            raise ValueError("the text comes from one column (text_column) or several (template); give one of the two")
        if self.template is not None and self.speaker is not None:
            raise ValueError("a template reads records, and speaker reads chats; give one of the two")
        return self

    @property
    def parsed_template(self) -> Template | None:
        """The setting `template`, parsed."""
        return None if self.template is None else parse_template(self.template)

    @model_validator(mode="after")
    def _watched_text_is_not_mixed_in(self) -> Self:
        both = [mix.source for mix in self.mixes if mix.source in self.watch]
        if both:
            raise ValueError(
                f"mix and watch both name {', '.join(both)}; watched text must not be trained on, so divide it into two"
            )
        return self

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """The sources of `mix` with their shares."""
        return tuple(map(parse_mix, self.mix))

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> Self:
        default = 0.0 if self.validation or self.test else DEFAULT_FRACTION
        fractions = (self.validation_fraction, self.test_fraction)
        if sum(default if fraction is None else fraction for fraction in fractions) >= 1:
            raise ValueError("validation_fraction + test_fraction must stay below 1")
        return self


class TokenSettings(Settings):
    """Tokens: tokenizer, blocks, cache"""

    tokenizer: str | None = Field(
        None, description="Tokenizer: Hub id, folder, GGUF file or bundled. auto: the model's own."
    )
    vocab_size: int = Field(
        8192, ge=257, le=1_000_000, description="Vocabulary size of the tokenizer that is trained for a new: model."
    )
    new_tokens: tuple[str, ...] = Field(
        (),
        description="Tokens to add to the model's own, such as names that occur often: a token, or a file with one "
        "token per line. May be given several times. Needs trained embeddings.",
    )
    block_size: int | None = Field(
        None,
        ge=MIN_BLOCK_SIZE,
        description="Tokens per block. auto: the model's number of positions, at most 1,024, and no longer than the "
        "text needs.",
    )
    cache_dir: Path | None = Field(
        None,
        description="Folder for tokenised text. auto: the environment variable FINETALE_CACHE, else ~/.cache/finetale.",
    )

    @field_validator("new_tokens", mode="before")
    @classmethod
    def _one_token_or_many(cls, value: Any) -> Any:
        return as_sources(value)


class ModelSettings(Settings):
    """Model: what to start from"""

    model: str = Field(
        "gpt2",
        min_length=1,
        description="Hub id, local folder, GGUF file, run directory, bundled, or new:SHAPE for random weights (new:1m "
        "… new:gpt2-xl, new:WIDTHxLAYERS).",
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    offline: bool = Field(False, description="Use only files that are on this machine.")
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout rate during training, except of attention. auto: the rates in the model's config.",
    )
    attention_dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout rate of the weights of attention. auto: 0, which gives a lower held-out loss "
        "(docs/methods.md). Runs of versions without this setting go on with the rate that they began with.",
    )


class TrainSettings(Settings):
    """Training: optimizer, schedule, batch, precision"""

    epochs: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="Passes over the training text. auto: 3, or as many as max_steps takes. With max_steps too: "
        "whichever ends first.",
    )
    max_steps: int | None = Field(
        None, ge=1, description="Optimizer steps. auto: what epochs takes. With epochs too: whichever ends first."
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Peak learning rate. auto: 1e-4 × sqrt(124M / parameters); three times that for new: models, "
        "ten times for lora and dora.",
    )
    schedule: LearningRateSchedule = Field(
        "cosine", description="Learning rate after the warm-up: cosine, linear or constant."
    )
    final_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="Learning rate after the last step, as a ratio of the peak."
    )
    warmup_steps: float = Field(
        0.05,
        ge=0,
        description="Length of the linear warm-up: below 1 a share of all steps, from 1 on a number of steps.",
    )
    weight_decay: float = Field(0.1, ge=0, le=10, description="Weight decay of AdamW, applied to matrices only.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay rate of the first moment.")
    adam_beta2: float = Field(0.98, ge=0, lt=1, description="AdamW: decay rate of the second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, le=1, description="AdamW: term added for numerical stability.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the norm of the gradient to this. 0: no clipping.")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Sequences (blocks) per optimizer step, over all devices. auto: 2,048 to 32,768 tokens per step, "
        "so that a run has about 150 steps (1,500 for new: models).",
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Sequences per forward pass on one device. auto: the largest that a memory probe finds to fit.",
    )
    precision: Precision = Field(
        "auto",
        description="Precision of the computation; weights stay in fp32. auto: bf16 where the hardware computes in "
        "it, else fp32.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass, which takes less memory and more time."
    )
    shard: bool = Field(
        False,
        description="Divide weights, gradients and moments among the processes of the run (FSDP2), for a model that "
        "does not fit whole (docs/guides/processes.md). One process has nothing to divide.",
    )
    optimizer_state: OptimizerState = Field(
        "fp32",
        description="Precision of AdamW's two moments: fp32, or bf16 with stochastic rounding (4 bytes per weight "
        "less, slower on a CPU).",
    )
    freeze: str | None = Field(
        None,
        description="Weights that are not trained: embeddings, or a number of lowest layers together with the "
        "embeddings. Takes less memory and time.",
    )
    skip_updates: int = Field(
        3,
        ge=0,
        description="Updates that a run may skip, with a warning, because the loss jumps by more than 2 nats and 6 "
        "standard deviations of the last 20 steps. One more jump stops the run. A loss or gradient that "
        "is not finite stops it immediately.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**32 - 1,
        description="Seed of all random numbers. It gives the same weights again on the same machine with --no-probe, "
        "or with the config.yaml of a run, which holds what the probe chose.",
    )

    @field_validator("warmup_steps")
    @classmethod
    def _whole_steps(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("a value from 1 on is a number of steps and must be whole")
        return value

    @field_validator("freeze", mode="before")
    @classmethod
    def _embeddings_or_layers(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if text is None or text == "embeddings" or (isinstance(text, str) and text.isdigit() and int(text) > 0):
            return text
        raise ValueError("this must be embeddings, or a number of layers from 1 on")

    @model_validator(mode="after")
    def _micro_batch_within_batch(self) -> Self:
        if self.batch_size and self.micro_batch_size and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}")
        return self


class SpeedSettings(Settings):
    """Speed: how it is computed"""

    speed: bool = Field(
        True,
        description="Use faster attention, loss, activation and dropout, whose results are equal up to rounding. Off:"
        " the model's own code.",
    )
    attention: Attention = Field(
        "auto",
        description="documents: skip what packed documents must not see of each other. model: the model's own "
        "attention. auto: the faster one in the probe, else documents.",
    )
    compile: Compile = Field(
        "auto", description="torch.compile: on or off. auto: the faster one in the probe on a GPU, else off."
    )
    threads: int | None = Field(
        None, ge=1, description="Processor threads. auto: the fastest number in the probe, else one per core."
    )
    probe: bool = Field(
        True,
        description="Time a few passes with each choice that is left to auto (precision, micro-batch, attention, "
        "compile, threads) and take the fastest. Runs of under two minutes are not probed.",
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class EvaluationSettings(Settings):
    """Evaluation: when, how, and when to stop"""

    eval_every: int | None = Field(None, ge=1, description="Steps between evaluations. auto: once per epoch.")
    eval_tokens: int | None = Field(
        None,
        ge=1,
        description="Validation tokens that each evaluation within a run measures, a fixed sample. auto: all, or as "
        "many as keep all evaluations to about a tenth of the run. The final comparison always measures all.",
    )
    patience: int = Field(
        3, ge=0, description="Stop after this many evaluations without a lower validation loss. 0: never."
    )
    stride: int | None = Field(
        None, ge=1, description="Evaluate with a sliding window that moves by this many tokens. auto: block by block."
    )
    save_every: int | None = Field(None, ge=1, description="Steps between checkpoints. auto: at each evaluation.")
    keep_checkpoints: int = Field(2, ge=1, description="Number of newest checkpoints to keep.")
    log_every: int | None = Field(
        None,
        ge=1,
        description="Steps between lines in metrics.jsonl. auto: 1; on a GPU 10, because each line makes it wait.",
    )
    tensorboard: bool | None = Field(
        None, description="Write the numbers for TensorBoard too. auto: where the package tensorboard is installed."
    )
    track: tuple[Tracker, ...] = Field(
        (),
        description="Send settings, numbers and samples to trackers too: wandb, mlflow, trackio. Needs the extra of "
        "the same name with track- before it, and the tracker's own login.",
    )

    _one_tracker_or_many = field_validator("track", mode="before")(_as_list)

    @field_validator("track")
    @classmethod
    def _each_tracker_once(cls, value: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        return tuple(dict.fromkeys(value))


class SamplingSettings(Settings):
    """Sampling: how text is generated"""

    max_new_tokens: int = Field(120, ge=1, description="Maximum number of tokens per generated text.")
    temperature: float = Field(0.8, ge=0, le=100, description="Sampling temperature. 0: always the most likely token.")
    top_k: int = Field(0, ge=0, description="Sample from the k most likely tokens. 0: from all.")
    top_p: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Sample from the smallest set of tokens whose probabilities add up to this. 1: from all.",
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Exclude tokens whose probability is below this share of the most likely token's."
    )
    repetition_penalty: float = Field(
        1.0, gt=0, le=10, description="Above 1: make tokens that have occurred less likely."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Subtract this from the score of each token that was generated before."
    )
    frequency_penalty: float = Field(
        0.0,
        ge=-2,
        le=2,
        description="Subtract this from the score of a token for each time that it was generated before.",
    )
    no_repeat_ngram_size: int = Field(
        0, ge=0, description="Never generate the same sequence of this many tokens twice. 0: off."
    )
    num_beams: int = Field(
        1, ge=1, le=64, description="Use beam search with this many beams instead of sampling. 1: off."
    )
    stop: tuple[str, ...] = Field((), description="Strings that end a text; they are not part of it.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of all random numbers.")

    _one_stop_or_many = field_validator("stop", mode="before")(_as_list)

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not item for item in value):
            raise ValueError("a stop string is empty")
        return _only_text(value)


class CompareSettings(SamplingSettings):
    """Comparison: prompts and samples"""

    prompts: tuple[str, ...] = Field(
        (), description="Prompts of the samples. auto: the beginnings of held-out documents."
    )
    num_prompts: int = Field(3, ge=1, le=100, description="Number of prompts to take from held-out documents.")
    num_samples: int = Field(2, ge=1, le=100, description="Texts per prompt.")
    num_answers: int = Field(
        50,
        ge=0,
        le=100_000,
        description="Number of held-out examples that both models answer, for exact match and chrF. 0: none.",
    )
    audit_tokens: int | None = Field(
        None,
        ge=0,
        description="Training tokens to search for passages that the model has memorised: passages with personal "
        "data or repeats first, then a random choice. auto: a twentieth of all training tokens, between "
        "20,000 and 200,000. 0: no search.",
    )

    @model_validator(mode="after")
    def _samples_of_a_beam_search(self) -> Self:
        if 1 < self.num_beams < self.num_samples:
            raise ValueError(f"num_samples {self.num_samples} is larger than num_beams {self.num_beams}")
        return self

    _one_prompt_or_many = field_validator("prompts", mode="before")(_as_list)

    @field_validator("prompts")
    @classmethod
    def _prompts_are_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _only_text(value)


class OutputSettings(Settings):
    """Output: where the run goes"""

    out: Path | None = Field(None, description="Run directory. auto: runs/NAME.")
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run. auto: model, source and a number."
    )
    overwrite: bool = Field(False, description="Replace the run directory if it holds a Finetale run.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.out is not None and self.name is not None:
            raise ValueError(f"out {self.out} and name {self.name} both set the run directory; give only one of them")
        return self


class Config(
    TextSettings,
    TokenSettings,
    ModelSettings,
    MethodSettings,
    TrainSettings,
    SpeedSettings,
    EvaluationSettings,
    CompareSettings,
    OutputSettings,
):
    """All settings of one run. Only the pipeline sees all of them."""

    sources: tuple[str, ...] = Field(
        (), description="Text to train on: files, folders, -, bundled:tales or hf:DATASET[/CONFIG][:SPLIT]."
    )

    @field_validator("sources", mode="before")
    @classmethod
    def _training_sources(cls, value: Any) -> Any:
        return as_sources(value)

    def for_new_run(self) -> Self:
        """Return the settings with which a new run begins: where `auto` has a new meaning, its value."""
        return self.model_copy(update={"attention_dropout": self.attention_dropout or 0.0})

    @model_validator(mode="after")
    def _adapter_fits_the_rest(self) -> Self:
        if not self.has_adapter:
            return self
        if self.model.startswith("new:"):
            raise ValueError(
                f"method {self.method} keeps the weights of the model, and those of {self.model} are random; use "
                "method full"
            )
        if self.freeze is not None:
            raise ValueError(f"freeze has no effect with method {self.method}, which freezes all weights of the model")
        if self.new_tokens:
            raise ValueError(f"new_tokens need trained embeddings, which method {self.method} keeps; use method full")
        return self

    @model_validator(mode="after")
    def _shards_are_not_compiled(self) -> Self:
        if self.shard and self.compile == "on":
            raise ValueError("compile on and shard can't be combined; leave out one of them")
        return self

    @model_validator(mode="after")
    def _new_tokens_are_trained(self) -> Self:
        if self.new_tokens and self.freeze is not None:
            raise ValueError(
                f"new_tokens need trained embeddings, and freeze {self.freeze} keeps them; give only one of them"
            )
        return self

    @property
    def all_sources(self) -> tuple[str, ...]:
        """The names of all sources: training, validation, test, mixed and watched text."""
        mixed = [mix.source for mix in self.mixes]
        return (*self.sources, *self.validation, *self.test, *mixed, *self.watch)

    def with_sources(self, change: Callable[[str], str]) -> Self:
        """Return the settings with another name for each source."""
        update = {name: tuple(map(change, getattr(self, name))) for name in ("sources", "validation", "test", "watch")}
        # The text of a share stays as it was given.
        mixed = tuple(
            f"{change(mix.source)}:{given.rpartition(':')[2]}" for mix, given in zip(self.mixes, self.mix, strict=True)
        )
        return self.model_copy(update={**update, "mix": mixed})

    def to_yaml(self) -> str:
        """Return the settings as the content of a settings file, in groups."""
        lines = ["# The resolved settings of a Finetale run. `finetale train --config FILE` reads them.", ""]
        values = self.model_dump(mode="json")
        for group, names in setting_groups():
            lines.append(f"# {group}")
            for name in names:
                if values[name] is None:
                    lines.append(f"# {name}: null")
                else:
                    lines.append(yaml.safe_dump({name: values[name]}, allow_unicode=True, width=10_000).rstrip())
            lines.append("")
        return "\n".join(lines)


SECTIONS = cast(tuple[type[Settings], ...], Config.__bases__)


def setting_groups(sections: Iterable[type[Settings]] = SECTIONS) -> list[tuple[str, list[str]]]:
    """Return the titles of groups and their settings, in the order of help texts and files."""
    seen: set[str] = set()
    groups = [("Source", ["sources"])]
    for section in sections:
        names = [name for name in section.model_fields if name not in seen]
        seen.update(names)
        groups.append((str(section.__doc__).split("\n")[0], names))
    return groups


def as_sources(value: Any) -> Any:
    """Return one source or several (strings or paths) as a tuple of strings. Leave other values to validation."""
    if isinstance(value, str | Path):
        return (str(value),)
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else value


def _only_text(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if problem := describe_surrogates(value, from_bytes=True):
            raise ValueError(problem)
    return values
