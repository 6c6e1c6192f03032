"""The specification of a model to serve; it opens the model at the start and again for a reload."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jinja2 import Environment, TemplateSyntaxError

from finetale import environment, models, pipeline
from finetale.errors import ConfigError, ModelError
from finetale.formatting import shell_command
from finetale.generate import Generator
from finetale.models import LoadedModel, Provenance
from finetale.notify import Notify, note
from finetale.server.answer import Served
from finetale.server.completion import Vocabulary
from finetale.server.engines import selection
from finetale.server.vllm import Upstream, UpstreamAdapter, start, upstream_adapter
from finetale.server.worker import Worker

_UNLIMITED_CONTEXT = 8192
_COMPARED_TOKENS = 8192
"""Number of held-out tokens for comparing a converted model with PyTorch."""
_WINDOW = 512
BYTES_PER_WEIGHT = 2.1
"""Memory of a model that OpenVINO has compiled with int8 weights, per weight, as measured at GPT-2's shape."""


@dataclass(frozen=True)
class ModelSpec:
    """A model to serve.

    Attributes:
        name: name in requests.
        load: loads the model.
        engine: auto, openvino, torch or vllm.
        precision: of PyTorch's weights: fp32 or bf16; auto for bf16 on a GPU, fp32 elsewhere. With fp32, OpenVINO
            computes in fp32 with the model's own weights.
        slots: maximum number of completions at a time.
        max_waiting: maximum number of requests in the queue.
        kv_memory: maximum bytes of keys and values of attention; None for no limit.
        chat_template: file with a chat template; None for the model's own.
        adapters: runs, folders or Hub ids of the adapters that AdapterSpecs serve beside it, by their names.
        parent: name of the model that it was trained from, if that is served too.
        offline: whether to use only files of adapters that are on this machine.
    """

    name: str
    load: Callable[[Notify], LoadedModel]
    engine: str = "auto"
    precision: str = "auto"
    slots: int = 16
    max_waiting: int = 32
    kv_memory: int | None = None
    chat_template: Path | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    offline: bool = False

    def open(self, notify: Notify, models_now: Mapping[str, Served | Upstream]) -> Served | Upstream | None:
        """Return the model, ready to serve; None if the one that is served has the same weights and its engine works.

        Args:
            notify: receives the events of loading.
            models_now: the models that are served now, by name.

        Raises:
            FinetaleError: the model cannot be loaded, or the engine cannot serve it.
        """
        serving = models_now.get(self.name)
        before = None if serving is None else serving.provenance
        check_still_there(before)
        loaded = self.load(notify)
        if self.chat_template is not None:
            loaded.tokenizer.chat_template = read_template(self.chat_template)
        beside = self._upstream_adapters(loaded) if self.engine == "vllm" else ()
        if (
            serving is not None
            and serving.works
            and before is not None
            and before.sha256 == loaded.provenance.sha256
            and not (isinstance(serving, Upstream) and serving.backend.adapters != beside)
        ):
            return None
        if self.engine == "vllm":
            return self._start_vllm(loaded, beside)
        return serve_model(
            self.name,
            loaded,
            slots=self.slots,
            max_waiting=self.max_waiting,
            engine=self.engine,
            precision=self.precision,
            kv_memory=self.kv_memory,
            num_adapters=len(self.adapters),
            notify=notify,
        )

    def _upstream_adapters(self, loaded: LoadedModel) -> tuple[UpstreamAdapter, ...]:
        """Return the adapters for vLLM, checked."""
        found = models.find_adapters(self.adapters, offline=self.offline)
        made = []
        for name, adapter in found.items():
            adapter.check_base(name, loaded.provenance.name, loaded.provenance.sha256)
            fit = models.adapters.fit_of(loaded.model, adapter.folder, name)
            sha256 = models.adapted_sha256(loaded.provenance.sha256, adapter.folder)
            made.append(upstream_adapter(name, adapter.folder, fit, sha256))
        return tuple(made)

    def _start_vllm(self, loaded: LoadedModel, beside: tuple[UpstreamAdapter, ...]) -> Upstream:
        found = loaded.provenance
        if loaded.located is not None and loaded.located.adapter is not None:
            raise ModelError(
                f"The engine vllm does not serve adapters as models ({found.name}).",
                "Serve its base with --adapter NAME=FOLDER, or merge it first: "
                f"`{shell_command('finetale', 'merge', found.name, '--out', 'FOLDER')}`.",
            )
        if found.kind == "gguf":
            raise ModelError(
                f"The engine vllm does not serve GGUF files ({found.name}).", "Choose another engine, or train first."
            )
        located = models.locate(found.name, revision=found.revision, offline=True)
        facts = Generator(loaded.model, loaded.tokenizer)
        return start(
            self.name,
            located.folder,
            Vocabulary(
                loaded.tokenizer,
                facts.vocab_size,
                facts.context,
                facts.ends,
                bos_before_text=models.mark_of(loaded.model),
            ),
            slots=self.slots,
            max_waiting=self.max_waiting,
            provenance=found,
            chat_template=self.chat_template,
            beside=beside,
        )


def read_template(path: Path) -> str:
    """Return the chat template of a file.

    Raises:
        ConfigError: the file cannot be read, or it is not a template.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
        # With the tag that transformers adds; a template that uses another one fails when it is used.
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The chat template {path} can't be read: {getattr(error, 'strerror', None) or error}.",
            "Check the path of --chat-template.",
        ) from None
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"The chat template {path} is not valid Jinja: {error.message} (line {error.lineno}).", "Correct it."
        ) from None
    return text


def check_still_there(served: Provenance | None) -> None:
    """Check that the files of a served model or adapter exist, or its path would be looked up on the Hub.

    Raises:
        ModelError: they do not.
    """
    if served is None or served.kind not in ("run", "local", "gguf") or Path(served.name).expanduser().exists():
        return
    raise ModelError(f"{served.name} does not exist any more.", "")


def serve_model(
    name: str,
    loaded: LoadedModel,
    *,
    slots: int,
    max_waiting: int,
    engine: str = "torch",
    precision: str = "auto",
    kv_memory: int | None = None,
    num_adapters: int = 0,
    held_out: LoadedModel | None = None,
    notify: Notify = lambda event: None,
) -> Served:
    """Return a model with a running worker. The arguments not listed are those of ModelSpec.

    Args:
        num_adapters: number of adapters that will be served beside it.
        held_out: model of a run whose held-out text a converted model is compared on. None: this model.

    Raises:
        FinetaleError: the engine is not installed or cannot serve this model.
    """
    generator = Generator(loaded.model, loaded.tokenizer)
    window = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
    context = min(generator.context, window or _UNLIMITED_CONTEXT, _UNLIMITED_CONTEXT)
    holes = tuple(token for token in generator.forbidden if token < generator.vocab_size)
    facts = selection.Facts(generator.vocab_size, holes, context)
    if engine == "auto" and num_adapters and not _has_memory(loaded, num_adapters + 1):
        note(notify, f"PyTorch serves {name} and its adapters: OpenVINO's copies of the weights need too much memory.")
        engine = "torch"
    half = precision == "bf16" or (precision == "auto" and loaded.model.device.type == "cuda")
    chosen = selection.choose(
        loaded,
        facts,
        slots=slots,
        wanted=engine,
        dtype=torch.bfloat16 if half else torch.float32,
        memory=kv_memory,
        held_out=lambda: pipeline.held_out_ids(
            held_out or loaded, notify, most=_COMPARED_TOKENS, window=min(context, _WINDOW)
        ),
        notify=notify,
        adapters=num_adapters > 0,
        exact=precision == "fp32",
    )
    vocabulary = Vocabulary(
        loaded.tokenizer, facts.vocab_size, context, generator.ends, bos_before_text=models.mark_of(loaded.model)
    )
    vocabulary.grammars.prepare()
    return Served(
        name,
        vocabulary,
        Worker(chosen, max_waiting=max_waiting),
        int(time.time()),
        loaded.provenance,
        loaded.model if chosen.rows.takes_adapters else None,
    )


def _has_memory(loaded: LoadedModel, copies: int) -> bool:
    """Return whether so many copies of the weights in int8 take at most half of the free memory."""
    needed = copies * loaded.provenance.parameters * BYTES_PER_WEIGHT
    return needed <= environment.available_memory() / 2
