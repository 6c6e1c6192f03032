"""The specification of an adapter to serve beside its base; it opens the adapter at the start and for a reload.

With PyTorch, the adapter runs on the base's weights in memory. OpenVINO gets a copy of the weights with the adapter
merged in. vLLM is started with the adapters, so its base opens them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from finetale import models
from finetale.chat import PLAIN_TEMPLATE
from finetale.errors import ModelError
from finetale.models import AdapterFolder, LoadedModel, Provenance
from finetale.models.adapter_hooks import load_adapter
from finetale.notify import Notify, stage
from finetale.server.answer import Served
from finetale.server.completion import Vocabulary
from finetale.server.model_spec import ModelSpec, check_still_there, serve_model
from finetale.server.vllm import Upstream


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter to serve.

    Attributes:
        name: name in requests.
        path: the run that trained it, its folder, or its Hub id.
        base: the specification of its base, which is opened first.
        offline: whether to use only files that are on this machine.
    """

    name: str
    path: str
    base: ModelSpec
    offline: bool = False

    @property
    def parent(self) -> str:
        """Name of its base."""
        return self.base.name

    def open(self, notify: Notify, models_now: Mapping[str, Served | Upstream]) -> Served | Upstream | None:
        """Return the adapter, ready to serve; None if the one that is served has the same files and the same base.

        Args:
            notify: receives the events of loading.
            models_now: the models that are served now, by name. The base is one of them.

        Raises:
            FinetaleError: the adapter cannot be loaded, or does not fit its base.
        """
        base, serving = models_now[self.base.name], models_now.get(self.name)
        assert base.provenance is not None
        check_still_there(None if serving is None else serving.provenance)
        found = models.find_adapter(self.path, offline=self.offline)
        sha256 = models.adapted_sha256(base.provenance.sha256, found.folder)
        if serving is not None and _is_current(serving, base, sha256):
            return None
        stage(notify, f"Loading the adapter {self.name}")
        found.check_base(self.name, base.provenance.name, base.provenance.sha256)
        provenance = Provenance(self.path, found.kind, found.commit, sha256, base.provenance.parameters)
        models.warn_if_unfinished(provenance, notify)
        tokenizer = _tokenizer(found, self.name, base.vocabulary)
        trained = found.base_sha256 is not None or tokenizer.chat_template == PLAIN_TEMPLATE  # by Finetale
        mark = True if trained else base.vocabulary.bos_before_text
        if isinstance(base, Upstream):
            vocabulary = base.vocabulary.with_tokenizer(tokenizer, base.vocabulary.ends, bos_before_text=mark)
            return Upstream(self.name, base.backend, vocabulary, int(time.time()), provenance, is_adapter=True)
        if base.host is None:
            return self._merged(found, tokenizer, mark, provenance, base.provenance, notify)
        adapter = load_adapter(base.host, found.folder, self.name)
        ends = models.end_ids(base.host, tokenizer)
        vocabulary = base.vocabulary.with_tokenizer(tokenizer, ends, bos_before_text=mark)
        return Served(self.name, vocabulary, base.worker, int(time.time()), provenance, base.host, adapter)

    def _merged(
        self,
        found: AdapterFolder,
        tokenizer: PreTrainedTokenizerBase,
        mark: bool | None,
        provenance: Provenance,
        base: Provenance,
        notify: Notify,
    ) -> Served:
        """Return the adapter merged into a copy of the base's weights."""
        loaded = self.base.load(lambda event: None)
        if loaded.provenance.sha256 != base.sha256:
            raise ModelError(f"The base {base.name} has changed since it was loaded.", "Reload once more.")
        model = models.adapters.merge_into(loaded.model, found.folder, self.name)
        if mark is not None:
            models.set_mark(model, mark)
        merged = LoadedModel(model, tokenizer, provenance)
        served = serve_model(
            self.name,
            # The run's directory keeps the conversion of its model/ only.
            replace(merged, provenance=replace(provenance, kind="local")),
            slots=self.base.slots,
            max_waiting=self.base.max_waiting,
            engine=self.base.engine,
            precision=self.base.precision,
            kv_memory=self.base.kv_memory,
            held_out=merged,
            notify=notify,
        )
        served.is_merged = True
        return served


def _is_current(serving: Served | Upstream, base: Served | Upstream, sha256: str) -> bool:
    """Return whether an adapter that is served has these files and runs on this base."""
    if not serving.works or serving.provenance is None or serving.provenance.sha256 != sha256:
        return False
    is_merged = isinstance(serving, Served) and serving.is_merged
    return is_merged or serving.backend is base.backend


def _tokenizer(found: AdapterFolder, name: str, base: Vocabulary) -> PreTrainedTokenizerBase:
    """Return the tokenizer of an adapter: its own, whose chat template may differ, or that of its base.

    Raises:
        ModelError: its tokens differ from those of the base.
        TokenizerError: its files can't be used.
    """
    if found.tokenizer is None:
        return base.tokenizer
    tokenizer = models.load_tokenizer(found.tokenizer, name=name)
    if tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise ModelError(
            f"The adapter {name} has a tokenizer with other tokens than its base.",
            f"Serve the merged model with --also {name}={found.path}.",
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = base.tokenizer.chat_template
    return tokenizer
