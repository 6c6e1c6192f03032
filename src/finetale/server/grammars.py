"""Structured output: which tokens may come next, so that a text has the form that a request asks for.

llguidance decides that from a JSON schema, a regular expression or a grammar. Its work per request and per token is
limited, because it comes from clients. Knows no network and no engine.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetale import extras
from finetale.errors import RequestError
from finetale.server.forms import Form
from finetale.server.token_bytes import InexactTokens, TokenBytes

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_MAX_CACHED = 32
"""Maximum number of compiled forms to keep per model."""
_MAX_LEXER_STATES = 50_000
"""Limit on the memory of a compiled form: about 25 MB."""
_SECONDS, _SECONDS_PER_TOKEN = 0.5, 0.01
"""Processor time that the masks of one text may take: at the start, and for each of its tokens."""
_LONGEST_REASON = 300


class Grammars:
    """Compiles forms for a tokenizer, and keeps those that were used last. Thread-safe.

    Args:
        tokenizer: the tokenizer.
        vocab_size: number of ids.
        ends: ids of end-of-text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, ends: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ends = [token for token in ends if token < vocab_size]
        self._words: tuple[TokenBytes, LLTokenizer] | InexactTokens | None = None
        self._compiled: OrderedDict[Form, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, form: Form) -> Constraint:
        """Return the constraint for a text of a form. This takes up to some seconds: call it outside the event loop.

        Raises:
            RequestError: the form is invalid or too large, or llguidance is not installed.
        """
        if not extras.is_installed("llguidance"):
            raise RequestError(
                f"{form.parameter}: needs the package llguidance, which is not installed on the server. "
                + extras.install_hint(extras.EXTRA_OF["llguidance"]),
                form.parameter,
                code="not_installed",
            )
        with self._lock:
            words, tokens = self._tokens(form)
            matcher = self._compiled.pop(form, None) or self._compile(form, words, tokens)
            self._compiled[form] = matcher
            while len(self._compiled) > _MAX_CACHED:
                self._compiled.popitem(last=False)
            return Constraint(matcher.deep_copy(), self, form, self._vocab_size, self._ends, words.anchor)

    def forget(self, form: Form) -> None:
        """Compile a form again when it is used next. Its automaton has reached the limit of its size."""
        self._compiled.pop(form, None)  # without the lock, because the engine must not wait while a form is compiled

    def prepare(self) -> None:
        """Read the vocabulary, which takes about half a second for 50,000 tokens, before the first request needs it."""
        with self._lock:
            if self._words is None and extras.is_installed("llguidance"):
                self._words = self._read()

    def _tokens(self, form: Form) -> tuple[TokenBytes, LLTokenizer]:
        if self._words is None:
            self._words = self._read()
        if isinstance(self._words, InexactTokens):
            raise RequestError(
                f"{form.parameter}: the model's tokenizer does not allow structured output: {self._words}.",
                form.parameter,
            )
        return self._words

    def _read(self) -> tuple[TokenBytes, LLTokenizer] | InexactTokens:
        from llguidance import LLTokenizer

        try:
            words = TokenBytes(self._tokenizer, self._vocab_size)
            bridge = _Bridge(words, self._ends)
            return words, LLTokenizer(bridge, n_vocab=self._vocab_size, eos_token=self._ends)  # type: ignore[arg-type]
        except InexactTokens as error:
            return error
        except Exception as error:  # a tokenizer of another kind; all else that the service does works
            return InexactTokens(f"it can't be read ({type(error).__name__})")

    def _compile(self, form: Form, words: TokenBytes, tokens: LLTokenizer) -> LLMatcher:
        from llguidance import LLMatcher

        try:
            grammar = _grammar(form)
        except (ValueError, RecursionError, IndexError) as error:  # the converter of GBNF indexes beyond the end
            raise _invalid(form, str(error)) from None
        matcher = LLMatcher(tokens, grammar, log_level=0, limits=_limits())
        if matcher.is_error():
            raise _invalid(form, matcher.get_error())
        first = matcher.deep_copy()
        forced = first.compute_ff_bytes().decode(errors="ignore")
        allowed = first.compute_bitmask()
        if _is_stuck(first) or not any(allowed) or (forced and not words.encode(forced)):
            raise _invalid(form, "it allows no text that the model's tokens can write")
        if first.is_error():
            raise _invalid(form, first.get_error())
        return matcher


class Constraint:
    """The tokens that may come next in one text.

    Attributes:
        anchor: a token to decode before the text, so that its first token has its bytes; see TokenBytes.
        failure: error of the grammar; None while there is none.
    """

    def __init__(
        self, matcher: LLMatcher, grammars: Grammars, form: Form, vocab_size: int, ends: list[int], anchor: int
    ) -> None:
        self._matcher = matcher
        self._grammars = grammars
        self._form = form
        self._vocab_size = vocab_size
        self._ends = ends
        self.anchor = anchor
        self.failure: RequestError | None = None
        self._words = np.zeros(-(-vocab_size // 32), dtype=np.int32)
        self._seconds = _SECONDS

    def copy(self) -> Constraint:
        """Return the constraint for another text."""
        return Constraint(
            self._matcher.deep_copy(), self._grammars, self._form, self._vocab_size, self._ends, self.anchor
        )

    @property
    def ends_itself(self) -> bool:
        """Whether the text is JSON or calls of tools, whose end is known."""
        return self._form.kind in ("json", "calls")

    @property
    def complete(self) -> bool:
        """Whether the text has its form and nothing can follow it."""
        return self.failure is None and self._matcher.is_stopped() and self._matcher.is_accepting()

    def mask(self) -> Tensor:
        """Return which tokens may come next, (vocabulary,). End-of-text may come when the text has its form.

        After a failure no token may come, nor where the vocabulary cannot write what must follow.
        """
        started = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        allowed = np.unpackbits(self._words.view(np.uint8), count=self._vocab_size, bitorder="little")
        # Decided here, because a grammar can name tokens by their id.
        allowed[self._ends] = self._matcher.is_accepting()
        self._seconds += _SECONDS_PER_TOKEN - (time.thread_time() - started)
        if self._matcher.is_error() and not _is_stuck(self._matcher):
            self._fail(_reason(self._matcher.get_error()))
        elif self._seconds < 0:
            self._fail("its tokens take too much time")
        if self._matcher.is_error() or self.failure is not None:
            allowed[:] = 0
        return torch.from_numpy(allowed).bool()

    def accept(self, token: int) -> None:
        """Continue with a token."""
        if token < 0 or token in self._ends or self.failure is not None:
            return
        if not self._matcher.consume_token(token):
            # The mask is wrong only where llguidance forces a text that the vocabulary cannot write.
            self.failure = _invalid(self._form, "the model's tokens cannot write the text that it requires")

    def _fail(self, reason: str) -> None:
        self._grammars.forget(self._form)
        self.failure = RequestError(
            f"{self._form.parameter}: is too complex: {reason}.", self._form.parameter, code="grammar_too_complex"
        )


class _Bridge:
    """A vocabulary as llguidance takes it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, words: TokenBytes, ends: list[int]) -> None:
        self.eos_token_id = ends[0]
        self.tokens = words.bytes
        self.special_token_ids = sorted({*words.special, *ends})
        self._words = words

    def __call__(self, text: str | bytes) -> list[int]:
        return self._words.encode(text if isinstance(text, str) else text.decode())


def _grammar(form: Form) -> str:
    """Return the form in llguidance's notation."""
    from llguidance import LLMatcher, grammar_from

    if form.kind == "regex":
        return LLMatcher.grammar_from_regex(form.source)
    if form.kind in ("calls", "possible calls"):
        return LLMatcher.grammar_from_lark(form.source)
    if form.kind == "grammar":
        return grammar_from("grammar", form.source)
    if form.space is None:
        return LLMatcher.grammar_from_json_schema(form.source, overrides={"whitespace_flexible": False})
    return LLMatcher.grammar_from_json_schema(form.source, overrides={"whitespace_pattern": form.space})


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=_MAX_LEXER_STATES,
        max_grammar_size=500_000,
        verbose_errors=False,
    )


def _is_stuck(matcher: LLMatcher) -> bool:
    """Return whether no token of the vocabulary can continue the text."""
    return matcher.get_error().startswith("NoExtensionBias")


def _invalid(form: Form, message: str) -> RequestError:
    return RequestError(f"{form.parameter}: is not supported: {_reason(message)}.", form.parameter)


def _reason(message: str) -> str:
    """Return the line of an error of llguidance that says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["unknown error"]
    found = next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")
    return found.rstrip(".")[:_LONGEST_REASON]
