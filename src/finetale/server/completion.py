"""A request as jobs for an engine, and the choices made of their tokens. Knows no network and no threads."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetale import models
from finetale.errors import RequestError
from finetale.generate.sampler import EXHAUSTED
from finetale.generate.text import CONTEXT_TOKENS, TextStream
from finetale.models.adapter_hooks import LoadedAdapter
from finetale.server import wire
from finetale.server.engines import Job, Token
from finetale.server.forms import Form
from finetale.server.grammars import Constraint, Grammars
from finetale.server.token_bytes import byte_table
from finetale.tokenizing import encode_batch
from finetale.tokens import begin_and_end


class Vocabulary:
    """A tokenizer for requests: token ids of a text, and the text of a token id.

    Args:
        bos_before_text: as `models.mark_of` returns it. If True, a conversation begins with beginning-of-text even
            where the template writes none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        context: int,
        ends: tuple[int, ...] = (),
        *,
        bos_before_text: bool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.bos_before_text = bos_before_text
        self.lead = models.lead_of(tokenizer, bos_before_text)
        self.begin, end = begin_and_end(tokenizer)
        self.ends = ends or (end,)
        self.vocab_size = vocab_size
        self.context = context
        self.grammars = Grammars(tokenizer, vocab_size, self.ends)
        self._names: dict[int, str] = {}
        self.max_characters = context * max(map(len, tokenizer.get_vocab()))
        """Longest prompt in characters; a longer one cannot fit the context, whatever its tokens are."""

    def with_tokenizer(
        self, tokenizer: PreTrainedTokenizerBase, ends: tuple[int, ...], *, bos_before_text: bool | None
    ) -> Vocabulary:
        """Return the vocabulary of an adapter of this model, whose tokenizer has the same tokens."""
        found = Vocabulary(tokenizer, self.vocab_size, self.context, ends, bos_before_text=bos_before_text)
        if ends == self.ends:
            found.grammars = self.grammars  # the tokens are the same, so they are read and compiled for once
        return found

    def check_size(self, characters: int, parameter: str) -> None:
        """Check the size of a prompt before tokenizing it, which would take long for a huge one.

        Raises:
            RequestError: the prompt is too long.
        """
        if characters > self.max_characters:
            raise RequestError(
                f"The model's context length is {self.context:,} tokens. The prompt has {characters:,} characters; the "
                f"maximum is {self.max_characters:,}.",
                parameter,
                code="context_length_exceeded",
            )

    def with_lead(self, ids: Sequence[int]) -> list[int]:
        """Return the token ids of a text with those that come before it."""
        return models.with_lead(ids, self.lead, self.begin)

    def encode(self, prompts: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the token ids of prompts, which are strings or ids, without those that come before a text.

        Raises:
            RequestError: an id is not in the vocabulary.
        """
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        for text in texts:
            self.check_size(len(text), "prompt")
        if texts:
            # One after the other: the tokenizer's own results take a hundred times the memory of the text.
            return [ids.tolist() for text in texts for ids in encode_batch(self.tokenizer, [text])]
        lists = [list(prompt) for prompt in prompts if not isinstance(prompt, str)]
        if any(token >= self.vocab_size for ids in lists for token in ids):
            raise RequestError(f"prompt: token ids must be below {self.vocab_size}.", "prompt")
        return lists

    @property
    def chat_template(self) -> str | None:
        """The chat template; of several the one for tools, else the default."""
        found = self.tokenizer.chat_template
        return found.get("tool_use", found.get("default")) if isinstance(found, dict) else found

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation, up to the start of the model's message.

        Args:
            messages: the messages, as templates take them.
            tools: the tools that the model may call; None for none.
            options: other options of `apply_chat_template`; None for a prompt that begins the model's message.

        Raises:
            RequestError: the model has no chat template, or the template rejects the conversation.
        """
        if not self.tokenizer.chat_template:
            raise RequestError(
                "The model has no chat template: it was not trained on conversations. Use /v1/completions.",
                "model",
                code="no_chat_template",
            )
        self.check_size(sum(len(message["content"]) for message in messages), "messages")
        try:
            ids = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=True, return_dict=False, **(options or {"add_generation_prompt": True})
            )
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RequestError(f"messages: the model's chat template rejects them: {error}.", "messages") from None
        found = [int(token) for token in ids]
        return self.with_lead(found) if self.bos_before_text else found

    def is_special(self, text: str) -> bool:
        """Return whether a text is a special token, which texts leave out."""
        added = self.tokenizer.added_tokens_decoder.values()
        return any(token.special and token.content == text for token in added)

    def name_of(self, token: int) -> str:
        """Return a token's text; for a part of a character its bytes, as bytes:\\xe4."""
        if token not in self._names:
            text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            if "\ufffd" in text:
                known = self.tokenizer.convert_ids_to_tokens(token)
                data = [byte_table().get(character) for character in known]
                if None not in data:
                    text = "bytes:" + "".join(f"\\x{value:02x}" for value in data)
            self._names[token] = text
        return self._names[token]


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a choice, with its tokens and their offsets. The last piece has a finish_reason."""

    index: int
    text: str
    tokens: tuple[tuple[Token, int], ...] = ()
    finish_reason: str | None = None


@dataclass(slots=True)
class ChoiceBuilder:
    """Builds the text of one choice from the tokens of its job.

    Attributes:
        index: number of the choice.
        job: the job that generates the tokens.
        text: decodes the tokens.
        ends: ids of end-of-text.
        stops: ids that end the text, too. `shows_stop` tells whether their text is a part of it.
        room: maximum number of tokens.
        constraint: the constraint of the job; None without one.
        whole: decode the text once at its end, because nothing needs it earlier.
        finished: why the text ended; None while it has not.
        logprob: sum of the tokens' log-probabilities in nats.
    """

    index: int
    job: Job
    text: TextStream
    ends: tuple[int, ...]
    room: int
    constraint: Constraint | None = None
    stops: tuple[int, ...] = ()
    shows_stop: bool = False
    whole: bool = False
    finished: Literal["end", "length", "stop"] | None = None
    logprob: float = 0.0
    _begun: bool = False
    _tokens: list[tuple[Token, int]] = field(default_factory=list)

    def accept(self, token: Token) -> None:
        """Add the next token, and check whether it ends the text."""
        if token.id in self.ends or (token.id in self.stops and not self.shows_stop):
            self.logprob += token.logprob or 0.0
            # Clients that count tokens by `logprobs` need end-of-text too, although it has no text.
            self._tokens.append((token, len(self.text.text)))
            self.finished = "end"
        elif token.id == EXHAUSTED:
            self.finished = "length"
        else:
            self.logprob += token.logprob or 0.0
            if not self.whole:
                self._tokens.append((token, len(self.text.text)))
                self.text.add(token.id)
            if self.text.stopped:
                self.finished = "stop"
            elif token.id in self.stops or (self.constraint is not None and self.constraint.complete):
                self.finished = "end"
            elif len(self.job.tokens) >= self.room:
                self.finished = "length"
        if self.finished is not None:
            if self.whole:
                self.text.add_all([made for made in self.job.tokens if made not in (*self._hidden, EXHAUSTED)])
            self.text.finish()

    @property
    def _hidden(self) -> tuple[int, ...]:
        return self.ends if self.shows_stop else (*self.ends, *self.stops)

    def take(self) -> Piece | None:
        """Return the piece that is new since the last call; None if there is none yet."""
        last = self.finished is not None
        if self.whole and not last:
            begins, self._begun = not self._begun, True
            return Piece(self.index, "") if begins else None
        text = self.text.take(final=last)
        if not text and not last:
            return None
        # A token that begins where the text ends so far may still be cut off by a stop string.
        if last and self.finished != "stop":
            tokens, self._tokens = tuple(self._tokens), []
        else:
            tokens = tuple(pair for pair in self._tokens if pair[1] < self.text.taken)
            self._tokens = self._tokens[len(tokens) :]
        reason = wire.finish_reason(self.finished) if self.finished is not None else None
        return Piece(self.index, text, tokens, reason)


class Completion:
    """The jobs of a request, and what its response needs of them.

    Args:
        request: the request.
        vocabulary: the model's vocabulary.
        fills: let a completion fill the context if the request sets no maximum.
        form: the form of the text, in place of the request's.
        keeps_special: leave special tokens in the text, because tool calls begin with one.
        adapter: the adapter to generate with.

    Raises:
        RequestError: a prompt does not fit the model.
    """

    def __init__(
        self,
        request: wire.CompletionRequest,
        vocabulary: Vocabulary,
        *,
        fills: bool = False,
        form: Form | None = None,
        keeps_special: bool = False,
        adapter: LoadedAdapter | None = None,
    ) -> None:
        self.request = request
        self.vocabulary = vocabulary
        settings = request.sampling(secrets.randbelow(2**32))
        form = form or request.form()
        constraint = _constraint(form, vocabulary)
        if constraint is not None and constraint.ends_itself:
            settings = settings.model_copy(update={"stop": ()})  # a stop string would cut the text
        is_text = isinstance(request.prompts[0], str)
        wanted = request.max_tokens if fills else request.wanted
        if (most := request.truncate_prompt_tokens) is not None:
            most = max(1, (vocabulary.context - (wanted or 1)) if most == -1 else most) - len(vocabulary.lead) * is_text
        self.prompts = [_end_of(ids, most) for ids in vocabulary.encode(request.prompts)]
        stops = tuple(request.stop_token_ids or ())
        if any(token >= vocabulary.vocab_size for token in stops):
            raise RequestError(f"stop_token_ids: token ids must be below {vocabulary.vocab_size}.", "stop_token_ids")
        ends = () if request.ignore_eos else vocabulary.ends
        late = [token for token in (*vocabulary.ends, *stops) if token < vocabulary.vocab_size]
        reads_prompt = request.prompt_logprobs is not None or (bool(request.echo) and request.logprobs is not None)
        keeps_special = keeps_special or request.skip_special_tokens is False
        bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
        if any(token >= vocabulary.vocab_size for token in bias):
            raise RequestError(f"logit_bias: token ids must be below {vocabulary.vocab_size}.", "logit_bias")
        top = request.logprobs if request.logprobs is not None else 0 if request.count > (request.n or 1) else None
        self.groups: list[list[ChoiceBuilder]] = []
        before: Counter[tuple[int, ...]] = Counter()  # a repeated prompt gets other samples
        for number, ids in enumerate(self.prompts):
            # As in `finetale generate`. Token ids are used unchanged.
            whole = vocabulary.with_lead(ids) if is_text else ids
            room = vocabulary.context - len(whole)
            least = 0 if wanted == 0 else 1
            if room < least or (wanted is not None and wanted > room):
                raise RequestError(
                    f"The model's context length is {vocabulary.context} tokens. "
                    f"The prompt has {len(whole)} tokens"
                    + (", including beginning-of-text" if len(whole) > len(ids) else "")
                    + (f", and max_tokens is {wanted}." if wanted is not None else "."),
                    "max_tokens" if room >= 1 else "prompt",
                    code="context_length_exceeded",
                )
            room = room if wanted is None else wanted
            self.groups.append([])
            for sample in range(request.count):
                own = None if constraint is None else constraint.copy()
                job = Job(
                    whole,
                    settings,
                    bias,
                    before[tuple(ids)] + sample,
                    top,
                    reads_prompt=sample == 0 and reads_prompt,
                    constraint=own,
                    late=late,
                    min_tokens=request.min_tokens or 0,
                    prompt_top=max(request.prompt_logprobs or 0, request.logprobs or 0),
                    adapter=adapter,
                )
                context = ids[-CONTEXT_TOKENS:] if own is None else [own.anchor]
                builder = ChoiceBuilder(
                    number * request.count + sample,
                    job,
                    TextStream(
                        vocabulary.tokenizer,
                        context,
                        settings.stop,
                        special=keeps_special,
                        keeps_stop=bool(request.include_stop_str_in_output),
                    ),
                    ends,
                    room,
                    own,
                    stops,
                    bool(request.include_stop_str_in_output),
                    whole=not (request.stream or settings.stop or request.logprobs is not None),
                    finished="length" if room == 0 else None,
                )
                self.groups[-1].append(builder)
            before[tuple(ids)] += request.count

    def extras(self, builder: ChoiceBuilder) -> dict[str, Any]:
        """Return the fields of a choice that OpenAI's API does not have."""
        found: dict[str, Any] = {}
        number = builder.index // self.request.count
        job = self.groups[number][0].job
        if self.request.prompt_logprobs is not None:
            most = self.request.prompt_logprobs
            found["prompt_logprobs"] = [None, *(self._ranked(token, most) for token in job.prompt)]
        if self.request.return_token_ids:
            found["prompt_token_ids"] = list(job.ids)
            found["token_ids"] = [token for token in builder.job.tokens if token >= 0]
        return found

    def _ranked(self, token: Token, most: int) -> dict[str, Any]:
        """Return a token of the prompt with the likely ones at its place, by id, as vLLM does."""
        name_of = self.vocabulary.name_of
        likely = {
            str(other): {"logprob": value, "rank": rank, "decoded_token": name_of(other)}
            for rank, (other, value) in enumerate(token.top[:most], start=1)
        }
        own = {"logprob": token.logprob, "rank": None, "decoded_token": name_of(token.id)}
        return {str(token.id): likely.get(str(token.id), own)} | likely

    def usage(self) -> dict[str, int]:
        """Return the `usage`: tokens of the prompts and of all generated completions."""
        made = sum(len([t for t in builder.job.tokens if t >= 0]) for group in self.groups for builder in group)
        return wire.usage(sum(map(len, self.prompts)), made)

    def usage_so_far(self) -> dict[str, int]:
        """Return the `usage` of a stream that still runs. Takes the same time whatever the length of the texts."""
        made = sum(len(builder.job.tokens) for group in self.groups for builder in group)
        return wire.usage(sum(map(len, self.prompts)), made)

    def opening(self, group: Sequence[ChoiceBuilder]) -> tuple[str, list[tuple[Token, int]]]:
        """Return what echo puts before a completion: the prompt's text, and its tokens with their offsets."""
        if not self.request.echo:
            return "", []
        number = group[0].index // self.request.count
        given = self.request.prompts[number]
        text = (
            given
            if isinstance(given, str)
            else self.vocabulary.tokenizer.decode(given, clean_up_tokenization_spaces=False)
        )
        job = group[0].job
        if not job.reads_prompt:
            return text, []
        stream = TextStream(self.vocabulary.tokenizer, [], (), special=True)
        # The first token has no log-probability. Beginning-of-text is not part of the text, so it takes no room there.
        lead = len(job.ids) - len(self.prompts[number])
        places = [(Token(job.ids[0]), 0)]
        if not lead:
            stream.add(job.ids[0])
        for token in job.prompt:
            shown = Token(token.id, token.logprob, token.top[: self.request.logprobs or 0])
            places.append((shown, len(stream.text)))
            stream.add(token.id)
        return text, places

    def with_texts(self, tokens: Sequence[tuple[Token, int]]) -> list[wire.TokenText]:
        """Return tokens with their texts, from tokens with their offsets."""
        name_of = self.vocabulary.name_of
        return [
            wire.TokenText(
                name_of(token.id), token.logprob, [(name_of(other), value) for other, value in token.top], place
            )
            for token, place in tokens
        ]


def _constraint(form: Form | None, vocabulary: Vocabulary) -> Constraint | None:
    """Return the constraint of a form.

    Raises:
        RequestError: the form cannot be enforced, and it is not optional.
    """
    try:
        return None if form is None else vocabulary.grammars.constraint(form)
    except RequestError:
        if form is not None and form.optional:
            return None
        raise


def _end_of(ids: list[int], most: int | None) -> list[int]:
    """Return the last `most` ids; all if it is None."""
    return ids if most is None else ids[max(0, len(ids) - most) :]
