"""Turn prompts into tokens and text. Knows nothing of servers, files and training.

Rows (one sample of one prompt each) are decoded together in batches and leave when they are finished. In float32 a text
is the same alone and in a batch. In bfloat16 the rounding of the model depends on the batch, so that a text can differ
after a near tie.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetale import models
from finetale.config import SamplingSettings
from finetale.errors import GenerationError
from finetale.generate.reading import UNPADDED, WHOLE, find_way, inference, new_reader
from finetale.generate.sampler import EXHAUSTED, NOT_A_NUMBER, Sampler, Stream, random_stream
from finetale.generate.text import CONTEXT_TOKENS, TextStream
from finetale.surrogates import describe_surrogates, quoted
from finetale.tokenizing import encode_batch
from finetale.tokens import begin_and_end

FinishReason = Literal["end", "length", "stop"]

_UNLIMITED = 2**62


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation of a prompt.

    `text` is the continuation alone. `num_tokens` counts the generated tokens, an end-of-text not included.
    `finish_reason`: the model ended the text (end), max_new_tokens or the context were used up (length), or a stop
    string came (stop). `seed` is the settings' seed; with prompt and sample number it determines the text.
    """

    prompt: str
    text: str
    num_tokens: int
    finish_reason: FinishReason
    seed: int


class Generator:
    """Generates text with a model and its tokenizer.

    The model keeps its device, dtype and train/eval mode; torch's global random state is not touched.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.begin, _ = begin_and_end(tokenizer)
        self.lead = models.lead_of(tokenizer, models.mark_of(model))
        self.ends = models.end_ids(model, tokenizer)
        config = model.config.get_text_config()
        self.context: int = models.positions_of(config.to_dict()) or _UNLIMITED
        # Embeddings are often padded to a round number, and vocabularies can have gaps: such ids are not text.
        known = set(tokenizer.get_vocab().values())
        self.vocab_size: int = min(config.vocab_size, max(known) + 1)
        known -= set(models.suppressed_ids(model))
        self.forbidden = [token for token in range(config.vocab_size) if token not in known]

    def generate(
        self,
        prompts: Sequence[str],
        settings: SamplingSettings,
        *,
        n: int = 1,
        truncate: bool = False,
        batch_size: int = 16,
        between: Callable[[], None] | None = None,
    ) -> list[list[Sample]]:
        """Continue each prompt n times.

        Sample i of a prompt depends on the prompt, the settings and i; not on n, batch_size or the other prompts. With
        temperature 0 all n are the same; with beams they are the n best.

        Args:
            prompts: texts to continue; an empty one starts a new document.
            settings: the sampling settings.
            n: samples per prompt.
            truncate: cut prompts that are too long for the context at their start instead of refusing them.
            batch_size: samples decoded at the same time, at most.
            between: called between tokens; an exception that it raises ends the work.

        Raises:
            GenerationError: a prompt is too long, n does not fit the settings, or the model's output is not a number.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts must be a sequence of strings, not one string")
        if n < 1 or batch_size < 1:
            raise GenerationError(
                f"n = {n} and batch_size = {batch_size} must be at least 1.", "Give a positive number."
            )
        if settings.num_beams > 1:
            _check_beams(n, settings)
        rows = self._rows(prompts, settings, n, truncate)
        with inference(self.model):
            if settings.num_beams > 1:
                for prompt in range(len(prompts)):
                    self._search_beams(rows[prompt * n : (prompt + 1) * n], settings)
            else:
                # Without randomness all samples of a prompt are the first one.
                random = settings.temperature > 0
                for batch in self._batches([row for row in rows if random or row.sample == 0], settings, batch_size):
                    while batch.rows:
                        if between is not None:
                            between()
                        batch.step()
                rows = rows if random else [rows[row.prompt * n] for row in rows]
        samples = [row.as_sample(prompts[row.prompt], settings.seed) for row in rows]
        return [samples[start : start + n] for start in range(0, len(samples), n)]

    def stream(
        self, prompt: str, settings: SamplingSettings, *, truncate: bool = False
    ) -> abc.Generator[str, None, Sample]:
        """Continue a prompt piece by piece; joined, the pieces are the text of `generate([prompt], settings)[0][0]`.

        A piece never ends within a character or within what may become a stop string. Beam search gives one piece, at
        the end. The finished Sample is the generator's return value (`sample = yield from ...`). Between the pieces
        the model is in its own mode, and the iterator can be dropped at any time.

        Raises:
            GenerationError: the prompt is too long (raised before the first token), or the model's output is NaN.
        """
        if settings.num_beams > 1:
            _check_beams(1, settings)
        (row,) = self._rows([prompt], settings, 1, truncate)
        return self._stream(row, prompt, settings)

    def _stream(self, row: _Row, prompt: str, settings: SamplingSettings) -> abc.Generator[str, None, Sample]:
        if settings.num_beams > 1:
            with inference(self.model):
                self._search_beams([row], settings)
        else:
            (batch,) = self._batches([row], settings, 1)
            while row.finish_reason is None:
                with inference(self.model):
                    batch.step()
                if piece := row.text.take(final=row.finish_reason is not None):
                    yield piece
        if piece := row.text.take(final=True):
            yield piece
        return row.as_sample(prompt, settings.seed)

    def _rows(self, prompts: Sequence[str], settings: SamplingSettings, n: int, truncate: bool) -> list[_Row]:
        for number, prompt in enumerate(prompts, 1):
            if not isinstance(prompt, str):
                raise GenerationError(f"Prompt {number} is {prompt!r:.60}, not a text.", "Give strings.")
            if problem := describe_surrogates(prompt):
                raise GenerationError(
                    f"The prompt {quoted(prompt)} {problem}.", "Replace it by the whole character, or leave it out."
                )
        rows = []
        encoded = encode_batch(self.tokenizer, list(prompts)) if prompts else []
        for place, array in enumerate(encoded):
            text_ids = array.tolist()
            ids = self._fit(models.with_lead(text_ids, self.lead, self.begin), settings.max_new_tokens, truncate)
            room = min(settings.max_new_tokens, self.context - len(ids))
            for sample in range(n):
                text = TextStream(self.tokenizer, text_ids[-CONTEXT_TOKENS:], settings.stop)
                rows.append(_Row(place, sample, ids, room, self.ends, text))
        return rows

    def _fit(self, ids: list[int], max_new_tokens: int, truncate: bool) -> list[int]:
        """Return the ids of a prompt, cut at the left if they are too long and `truncate` is set.

        A prompt is cut further than necessary to leave room for max_new_tokens, but not below half of the context.
        """
        if len(ids) < self.context:
            return ids
        if not truncate:
            raise GenerationError(
                f"The prompt has {len(ids)} tokens, and the model's context of {self.context} holds at most "
                f"{self.context - 1} and one new token.",
                "Shorten the prompt, or allow it to be cut at its start with --truncate (truncate=True).",
            )
        return ids[-max(self.context - max_new_tokens, self.context // 2) :]

    def _batches(self, rows: list[_Row], settings: SamplingSettings, batch_size: int) -> Iterator[_Batch]:
        """Yield batches of prompts of similar length.

        A shorter prompt joins a batch only if its padding, its prompt and its new text together fit into the context.
        Models with a causal mask of fixed size (GPT-Neo) have no more columns. Only prompts of one length share a
        batch if the model's code allows no more.
        """
        pads = find_way(self.model) != UNPADDED
        groups: list[list[_Row]] = []
        for row in sorted(rows, key=lambda row: -len(row.ids)):
            if groups and len(groups[-1]) < batch_size:
                longest = len(groups[-1][0].ids)
                if longest == len(row.ids) or (pads and longest + row.room <= self.context):
                    groups[-1].append(row)
                    continue
            groups.append([row])
        holes = [token for token in self.forbidden if token < self.vocab_size]
        for group in groups:
            streams = {row.stream: random_stream(settings.seed, row.sample, row.ids) for row in group}
            yield _Batch(self.model, group, Sampler(settings, self.vocab_size, holes, streams))

    def _search_beams(self, rows: list[_Row], settings: SamplingSettings) -> None:
        """Set the tokens of a prompt's rows to the best beams of transformers' beam search."""
        ids = torch.tensor([rows[0].ids], device=self.model.device)
        config = GenerationConfig(
            max_new_tokens=rows[0].room,
            num_beams=settings.num_beams,
            num_return_sequences=len(rows),
            do_sample=False,
            use_cache=find_way(self.model) != WHOLE,
            repetition_penalty=settings.repetition_penalty,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
            suppress_tokens=self.forbidden or None,
            bos_token_id=self.begin,
            eos_token_id=list(self.ends),
            pad_token_id=self.ends[0],
        )
        found = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        for row, beam in zip(rows, found[:, ids.shape[1] :].tolist(), strict=True):
            for token in beam:
                row.accept(token)
                if row.finish_reason is not None:
                    break


@dataclass(slots=True)
class _Row:
    """One sample of one prompt. `ids` are the prompt's tokens, `room` is the maximum number of new tokens."""

    prompt: int
    sample: int
    ids: list[int]
    room: int
    ends: tuple[int, ...]
    text: TextStream
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def stream(self) -> Stream:
        """Return the key of the random stream. It depends on prompt and sample number, not on the batch."""
        return (self.sample, *self.ids)

    def accept(self, token: int) -> None:
        """Add the next token, and end the sample if the token ends it."""
        if token == NOT_A_NUMBER:
            raise GenerationError(
                f"The model's scores are not numbers (NaN) after {self.num_tokens} new tokens.",
                "Its weights are corrupted or its training diverged: use an earlier checkpoint.",
            )
        if token in self.ends:
            self.finish_reason = "end"
        elif token == EXHAUSTED:
            self.finish_reason = "length"
        else:
            self.tokens.append(token)
            self.text.add(token)
            if self.text.stopped:
                self.finish_reason = "stop"
            elif self.num_tokens == self.room:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            self.text.finish()

    def as_sample(self, prompt: str, seed: int) -> Sample:
        assert self.finish_reason is not None, "the row is not finished"
        return Sample(prompt, self.text.text, self.num_tokens, self.finish_reason, seed)


class _Batch:
    """Rows that are decoded together. Finished rows are removed."""

    def __init__(self, model: PreTrainedModel, rows: list[_Row], sampler: Sampler) -> None:
        self.model = model
        self.rows = rows
        self.sampler = sampler
        self.reader = new_reader(model)
        lengths = [len(row.ids) for row in rows]
        self.width = self.prompts = max(lengths)  # columns in use, and those of the prompts
        self.starts = [self.width - length for length in lengths]
        columns = self.width + max(row.room for row in rows)
        ids = torch.zeros(len(rows), columns, dtype=torch.long)
        for place, (row, start) in enumerate(zip(rows, self.starts, strict=True)):
            ids[place, start : self.width] = torch.tensor(row.ids)
        self.ids = ids.to(model.device)  # (rows, columns)

    def step(self) -> None:
        """Add one token to each row."""
        if self.width == self.prompts:
            logits = self._read_prompts()
        else:
            logits = self.reader.read(self.ids[:, : self.width], self.starts)
        streams = [row.stream for row in self.rows]
        tokens = self.sampler.choose(
            logits, self.ids[:, : self.width], self.starts, streams, [row.tokens for row in self.rows]
        )
        self.ids[:, self.width] = tokens
        self.width += 1
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.accept(token)
        stay = [place for place, row in enumerate(self.rows) if row.finish_reason is None]
        if len(stay) < len(self.rows):
            self._keep(stay)

    def _read_prompts(self) -> Tensor:
        """Return the logits after the prompts. The model reads a prompt that occurs in several rows once."""
        first: dict[tuple[int, ...], int] = {}
        for place, row in enumerate(self.rows):
            first.setdefault(tuple(row.ids), place)
        places = list(first.values())
        logits = self.reader.read(self.ids[places, : self.width], [self.starts[place] for place in places])
        if len(places) < len(self.rows):
            order = {key: index for index, key in enumerate(first)}
            copies = torch.tensor([order[tuple(row.ids)] for row in self.rows], device=logits.device)
            self.reader.select(copies)
            logits = logits[copies]
        return logits  # (rows, padded vocabulary)

    def _keep(self, stay: list[int]) -> None:
        self.rows = [self.rows[place] for place in stay]
        self.starts = [self.starts[place] for place in stay]
        if self.rows:
            indices = torch.tensor(stay, device=self.ids.device)
            self.ids = self.ids[indices]
            self.reader.select(indices)


def _check_beams(n: int, settings: SamplingSettings) -> None:
    if settings.presence_penalty or settings.frequency_penalty:
        raise GenerationError(
            "presence_penalty and frequency_penalty can't be used with beam search.", "Remove them or num_beams."
        )
    if n > settings.num_beams:
        raise GenerationError(
            f"n = {n} samples were requested, but {settings.num_beams} beams hold only {settings.num_beams} texts.",
            f"Ask for at most {settings.num_beams} samples, or set num_beams to {n} or more.",
        )
