"""One request on its way: prompts → jobs for an engine → choices. Knows no network and no threads."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetale.encoding import encode_batch
from finetale.errors import RequestError
from finetale.generate.sampler import EXHAUSTED
from finetale.generate.text import CONTEXT_TOKENS, TextStream
from finetale.server import wire
from finetale.server.engines import Job, Token
from finetale.tokens import begin_and_end


class Vocabulary:
    """What requests need to know of a tokenizer: ids of a text, and the text of an id."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, context: int, ends: tuple[int, ...] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.begin, end = begin_and_end(tokenizer)
        self.ends = ends or (end,)
        self.vocab_size = vocab_size
        self.context = context
        self._names: dict[int, str] = {}

    def encode(self, prompts: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
        """Token ids of prompts that are texts or ids, without beginning-of-text.

        Raises:
            RequestError: an id is none of the vocabulary's.
        """
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if texts:
            return [ids.tolist() for ids in encode_batch(self.tokenizer, texts)]
        lists = [list(prompt) for prompt in prompts if not isinstance(prompt, str)]
        if any(token >= self.vocab_size for ids in lists for token in ids):
            raise RequestError(f"prompt: token ids must be below {self.vocab_size}.", "prompt")
        return lists

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the model's message begins.

        Raises:
            RequestError: the model has no template for conversations, or it refuses this one.
        """
        if not self.tokenizer.chat_template:
            raise RequestError(
                "The model has no chat template, for it was not trained on conversations. Ask /v1/completions.",
                "model",
                code="no_chat_template",
            )
        try:
            ids = self.tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise RequestError(f"messages: the model's chat template refuses them: {error}.", "messages") from None
        return [int(token) for token in ids]

    def name_of(self, token: int) -> str:
        """A token's text; one that is part of a character is told by its bytes, as bytes:\\xe4."""
        if token not in self._names:
            text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            if "\ufffd" in text:
                known = self.tokenizer.convert_ids_to_tokens(token)
                data = [_byte_table().get(character) for character in known]
                if None not in data:
                    text = "bytes:" + "".join(f"\\x{value:02x}" for value in data)
            self._names[token] = text
        return self._names[token]


def _byte_table() -> dict[str, int]:
    """How byte-level tokenizers write bytes: printable ones as they are, the others as characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + at): value for at, value in enumerate(others)}


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a choice, with the tokens it came from and where each begins; the last one has a finish_reason."""

    index: int
    text: str
    tokens: tuple[tuple[Token, int], ...] = ()
    finish_reason: str | None = None


@dataclass(slots=True)
class Writer:
    """A job and the text that comes of it.

    Attributes:
        index: number of the choice.
        room: tokens that may follow.
        whole: nothing of the text is needed before its end, so that it is made then.
    """

    index: int
    job: Job
    text: TextStream
    ends: tuple[int, ...]
    room: int
    whole: bool = False
    finished: Literal["end", "length", "stop"] | None = None
    logprob: float = 0.0
    _begun: bool = False
    _tokens: list[tuple[Token, int]] = field(default_factory=list)

    def accept(self, token: Token) -> None:
        """Take the next token, and see whether the text ends with it."""
        if token.id in self.ends:
            self.logprob += token.logprob or 0.0
            # It is no text, but it was generated: who counts tokens from the end of `logprobs` relies on it.
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
            elif len(self.job.tokens) >= self.room:
                self.finished = "length"
        if self.finished is not None:
            if self.whole:
                self.text.add_all([made for made in self.job.tokens if made not in (*self.ends, EXHAUSTED)])
            self.text.finish()

    def take(self) -> Piece | None:
        """What is new since the last time; None if nothing can be told yet."""
        last = self.finished is not None
        if self.whole and not last:
            begins, self._begun = not self._begun, True
            return Piece(self.index, "") if begins else None
        text = self.text.take(final=last)
        if not text and not last:
            return None
        # Those that would begin where the text ends may yet be cut off with a stop string, or were.
        if last and self.finished != "stop":
            tokens, self._tokens = tuple(self._tokens), []
        else:
            tokens = tuple(pair for pair in self._tokens if pair[1] < self.text.taken)
            self._tokens = self._tokens[len(tokens) :]
        reason = wire.finish_reason(self.finished) if self.finished is not None else None
        return Piece(self.index, text, tokens, reason)


class Completion:
    """A request as jobs, and its answer from their pieces.

    Args:
        request: what was asked for.
        vocabulary: of the model.
        fills: whether a text may fill the context where no number of tokens is named.

    Raises:
        RequestError: a prompt does not fit the model.
    """

    def __init__(self, request: wire.CompletionRequest, vocabulary: Vocabulary, *, fills: bool = False) -> None:
        self.request = request
        self.vocabulary = vocabulary
        settings = request.sampling(secrets.randbelow(2**32))
        self.prompts = vocabulary.encode(request.prompts)
        # A text begins a document, as for `finetale generate`; token ids are taken for all there is.
        lead = [vocabulary.begin] if isinstance(request.prompts[0], str) else []
        wanted = request.max_tokens if fills else request.wanted
        bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
        if any(token >= vocabulary.vocab_size for token in bias):
            raise RequestError(f"logit_bias: token ids must be below {vocabulary.vocab_size}.", "logit_bias")
        top = request.logprobs if request.logprobs is not None else 0 if request.count > (request.n or 1) else None
        self.groups: list[list[Writer]] = []
        before: Counter[tuple[int, ...]] = Counter()  # the same prompt again goes on with other samples
        for number, ids in enumerate(self.prompts):
            room = vocabulary.context - len(lead) - len(ids)
            least = 0 if wanted == 0 else 1
            if room < least or (wanted is not None and wanted > room):
                raise RequestError(
                    f"The prompt has {len(lead) + len(ids)} tokens{', that of beginning-of-text among them,' if lead else ''}"
                    + (f" and max_tokens is {wanted}" if wanted is not None else "")
                    + f", and the model's context holds {vocabulary.context}.",
                    "max_tokens" if room >= 1 else "prompt",
                    code="context_length_exceeded",
                )
            room = room if wanted is None else wanted
            self.groups.append(
                [
                    Writer(
                        number * request.count + sample,
                        Job(
                            [*lead, *ids],
                            settings,
                            bias,
                            before[tuple(ids)] + sample,
                            top,
                            reads_prompt=bool(request.echo) and request.logprobs is not None and sample == 0,
                        ),
                        TextStream(vocabulary.tokenizer, ids[-CONTEXT_TOKENS:], settings.stop),
                        vocabulary.ends,
                        room,
                        whole=not (request.stream or settings.stop or request.logprobs is not None),
                        finished="length" if room == 0 else None,
                    )
                    for sample in range(request.count)
                ]
            )

            before[tuple(ids)] += request.count

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts and of all completions that were made."""
        made = sum(len([t for t in writer.job.tokens if t >= 0]) for group in self.groups for writer in group)
        return wire.usage(sum(map(len, self.prompts)), made)

    def opening(self, group: Sequence[Writer]) -> tuple[str, list[tuple[Token, int]]]:
        """What echo puts before a completion: the prompt's text, and its tokens with where they begin."""
        if not self.request.echo:
            return "", []
        number = group[0].index // self.request.count
        given = self.request.prompts[number]
        text = (
            given
            if isinstance(given, str)
            else self.vocabulary.tokenizer.decode(given, clean_up_tokenization_spaces=False)
        )
        told = group[0].job.prompt
        if not group[0].job.reads_prompt:
            return text, []
        if len(told) < len(self.prompts[number]):
            told = [Token(self.prompts[number][0]), *told]
        stream = TextStream(self.vocabulary.tokenizer, [], (), special=True)
        places = []
        for token in told:
            places.append(len(stream.text))
            stream.add(token.id)
        return text, list(zip(told, places, strict=True))

    def told(self, tokens: Sequence[tuple[Token, int]]) -> list[wire.Told]:
        """Tokens with their places in the text, in words."""
        name_of = self.vocabulary.name_of
        return [
            wire.Told(name_of(token.id), token.logprob, [(name_of(other), value) for other, value in token.top], place)
            for token, place in tokens
        ]
