"""Write a model as a folder of transformers, in fp32, fp16 or bf16, which vLLM, TGI and most programs load."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from finetale import models
from finetale.errors import ModelError
from finetale.export.torch_runtime import TorchRuntime
from finetale.models import LoadedModel
from finetale.models.progress_bars import no_progress_bars

_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def check(loaded: LoadedModel) -> None:
    """See Exporter. Every model can be written."""


def write(loaded: LoadedModel, folder: Path, weights: str) -> None:
    """See Exporter."""
    model = copy.deepcopy(loaded.model).to(_TYPES[weights])
    for name, tensor in model.named_parameters():
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"Weights of {name} are too large for {weights}.", "Choose --weights bf16.")
    models.save(model, loaded.tokenizer, folder)


def open(folder: Path, loaded: LoadedModel) -> TorchRuntime:
    """See Exporter. Sums are in fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    return TorchRuntime(model.eval(), AutoTokenizer.from_pretrained(str(folder), local_files_only=True))


def usage(folder: Path) -> str:
    """See Exporter."""
    return """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
```

vLLM and TGI take the path of this folder as the model."""
