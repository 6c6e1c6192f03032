"""Generate text from Python: `load` and `Writer`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from finetale import models
from finetale.chat import conversation_prompt
from finetale.config import SamplingSettings
from finetale.formatting import count
from finetale.library.html import block, table
from finetale.text.conversations import Message

if TYPE_CHECKING:
    from finetale.generate import Generator
    from finetale.library.results import Run
    from finetale.models import Provenance


class Writer:
    """A loaded model that generates text. `finetale.load` returns it."""

    def __init__(self, generator: Generator, provenance: Provenance) -> None:
        self._generator = generator
        self.provenance = provenance

    def __repr__(self) -> str:
        return f"<Writer {self.provenance.name}: {count(self.provenance.parameters)} parameters>"

    def _repr_html_(self) -> str:
        model = self._generator.model
        rows = [
            ("parameters", count(self.provenance.parameters)),
            ("context, tokens", count(self._generator.context)),
            ("device", str(model.device)),
        ]
        return block(f"Writer {self.provenance.name}", "Continue a prompt: writer.generate(…)", table(("", ""), rows))

    @overload
    def generate(self, prompt: str = "", *, n: int = 1, truncate: bool = False, **settings: Any) -> list[str]: ...

    @overload
    def generate(
        self, prompt: Sequence[str], *, n: int = 1, truncate: bool = False, **settings: Any
    ) -> list[list[str]]: ...

    def generate(
        self, prompt: str | Sequence[str] = "", *, n: int = 1, truncate: bool = False, **settings: Any
    ) -> list[str] | list[list[str]]:
        """Continue a prompt, or each of several prompts, n times. The returned texts do not include the prompt.

        Args:
            prompt: a text, or several. Several are computed together, which is faster than one call per prompt.
            n: number of texts per prompt.
            truncate: cut a prompt that is too long for the model on its left instead of refusing it.
            settings: any of `SamplingSettings`: temperature, top_p, max_new_tokens, seed …

        Returns:
            n texts for one prompt; for several, a list of n texts per prompt.

        Raises:
            GenerationError: a prompt is too long, or is not text.
            ConfigError: a setting is unknown or out of range.
        """
        sampling = SamplingSettings.resolve(settings)
        prompts = list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, str) else [prompt]
        groups = self._generator.generate(prompts, sampling, n=n, truncate=truncate)
        texts = [[sample.text for sample in group] for group in groups]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str = "", *, truncate: bool = False, **settings: Any) -> Iterator[str]:
        """Continue a prompt, and yield pieces of text as they are generated."""
        return self._generator.stream(prompt, SamplingSettings.resolve(settings), truncate=truncate)

    def chat(self, messages: str | Sequence[Mapping[str, str]], *, n: int = 1, **settings: Any) -> list[str]:
        """Return n answers of a model that was trained on conversations.

        Args:
            messages: a question, or a conversation as a list of {"role": …, "content": …}.
            n: number of answers.
            settings: any of `SamplingSettings`.

        Raises:
            GenerationError: the model has no chat template, or the template refuses the conversation.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        talk = [Message(each["role"], each["content"], False) for each in turns]
        prompt = conversation_prompt(self._generator.tokenizer, talk, self.provenance.name)
        samples = self._generator.generate([prompt], SamplingSettings.resolve(settings), n=n, truncate=True)[0]
        return [sample.text for sample in samples]


def load(model: str | Path | Run, *, revision: str | None = None, offline: bool = False) -> Writer:
    """Load a model to generate with: a run, a folder, a Hub id, or `bundled`."""
    from finetale.generate import Generator

    loaded = models.open_model(model_name(model), lambda event: None, revision=revision, offline=offline)
    return Writer(Generator(loaded.model, loaded.tokenizer), loaded.provenance)


def model_name(model: str | Path | Run) -> str:
    """Return the name of a model. A path is that folder; only a string can be `bundled`, new:SHAPE or a Hub id."""
    return model if isinstance(model, str) else models.name_of_folder(Path(model))
