"""Write an adapter alone, in PEFT's layout, for programs that put it beside its base."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from finetale import models
from finetale.environment import versions
from finetale.errors import ModelError
from finetale.export.torch_runtime import TorchRuntime
from finetale.models import LoadedModel, Located, adapter_files
from finetale.rundir import RunDirectory


def check(loaded: LoadedModel) -> None:
    """See Exporter. There must be an adapter."""
    _with_base(loaded)


def write(loaded: LoadedModel, folder: Path, weights: str) -> None:
    """See Exporter. The matrices are copied as they were trained, in fp32."""
    source = _with_base(loaded).adapter
    assert source is not None
    for name in (adapter_files.CONFIG_NAME, adapter_files.WEIGHTS_NAME):
        shutil.copyfile(source / name, folder / name)
    loaded.tokenizer.save_pretrained(str(folder))


def open(folder: Path, loaded: LoadedModel) -> TorchRuntime:
    """See Exporter. PEFT puts the adapter beside the base, which is read again."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    base = models.load_located(replace(_with_base(loaded), adapter=None), tokenizer=loaded.tokenizer).model
    adapted = PeftModel.from_pretrained(base, str(folder)).base_model.model
    runtime = TorchRuntime(adapted.eval(), AutoTokenizer.from_pretrained(str(folder), local_files_only=True))
    runtime.name = f"PEFT {versions('peft')['peft']}, {runtime.name}"
    return runtime


def usage(folder: Path) -> str:
    """See Exporter."""
    base, revision = adapter_files.named_base(folder, folder.name)
    on_hub = base is not None and base != models.BUNDLED_NAME and models.is_hub_id(base)
    place = f'"{base}"' if on_hub else '"path/of/the/base"'
    commit = f', revision="{revision}"' if on_hub and revision else ""
    return f"""The adapter works only beside the weights that it was trained on: those of {base}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
base = AutoModelForCausalLM.from_pretrained({place}{commit})
model = PeftModel.from_pretrained(base, ".")
```

`finetale serve BASE --adapter NAME=PATH` serves it. vLLM takes LoRA, but not DoRA, as `--lora-modules NAME=PATH`."""


def _with_base(loaded: LoadedModel) -> Located:
    """Locate the adapter and its base.

    Raises:
        ModelError: the model has no adapter, or the adapter can't be used.
    """
    located, name = loaded.located, loaded.provenance.name
    if located is not None and located.adapter is not None:
        return located
    run = RunDirectory(Path(name).expanduser())
    if loaded.provenance.kind == "run" and models.is_adapter(run.adapter):
        return models.locate_adapter(name, run.adapter, run)
    raise ModelError(
        f"{name} has no adapter.",
        "Choose --to safetensors for the whole model, or train with --method lora or dora.",
    )
