"""Save and load what a run with an adapter trains: the adapter, and the model that it gives with its base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from finetale.models import adapters
from finetale.models.beginning import set_mark
from finetale.models.dropout import OWN_RATES, Dropout
from finetale.models.loading import Provenance, load_located, save
from finetale.models.locating import Located

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class AdaptedBase:
    """The base of an adapter in training: where its weights lie on this machine, and what they are.

    Attributes:
        located: the files, in which the weights have their full precision.
        provenance: name, revision and SHA-256.
        dropout: the rates that the base was loaded with.
    """

    located: Located
    provenance: Provenance
    dropout: Dropout = OWN_RATES

    def read(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Read the base again, in fp32, with embeddings for the tokenizer."""
        return load_located(self.located, tokenizer=tokenizer, dropout=self.dropout).model

    def save_adapter(
        self, model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Write the adapter of a model in PEFT's layout, with the tokenizer if one is given."""
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        adapters.write(
            model,
            folder,
            base=_public_name(self.provenance),
            revision=self.provenance.revision,
            base_sha256=self.provenance.sha256,
        )

    def save_merged(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter: Path, folder: Path
    ) -> None:
        """Write the model that the base and an adapter folder give together.

        The weights of the base are read again, because those in memory may be in bf16.
        """
        merged = adapters.merge_into(self.read(tokenizer), adapter, self.provenance.name)
        set_mark(merged, True)
        save(merged, tokenizer, folder)


def _public_name(provenance: Provenance) -> str:
    """Return the name of a base for files that are published: of a folder only its last part, as `./NAME`."""
    name = provenance.name
    if provenance.kind in ("hub", "bundled"):
        return name
    last = PureWindowsPath(name).name if PureWindowsPath(name).is_absolute() else PurePosixPath(name).name
    return f"./{last}"
