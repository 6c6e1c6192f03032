"""The content of `run.json`: a run's base, status, progress and machine."""

from __future__ import annotations

import shlex
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from finetale.schema.base import SCHEMA_VERSION, Record, SparseRecord

Status = Literal["running", "finished", "interrupted", "failed"]


class Process(Record):
    """The process of a run. It tells a killed run from a running one."""

    pid: int = Field(description="Process ID.")
    host: str = Field(description="Host name of the machine.")


class BaseModelSource(Record):
    """The model that training started from."""

    name: str = Field(description="Name as given to `--model`.")
    kind: str | None = Field(default=None, description="`hub`, `local`, `gguf`, `run`, `bundled` or `new`.")
    revision: str | None = Field(default=None, description="Commit on the Hub.")
    sha256: str | None = Field(default=None, description="SHA-256 of the weights.")
    parameters: int | None = Field(default=None, description="Number of parameters.")
    weights: str | None = Field(
        default=None, description="Type and bits of the weights in a GGUF file; absent for other models."
    )
    base: str | None = Field(
        default=None,
        description="Base of an adapter, with its commit if it is on the Hub (`NAME@COMMIT`); absent for other models.",
    )
    license: str | None = Field(
        default=None, description="Licence that its card states, as the Hub names it; absent if it is not known."
    )

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        rare = ("weights", "base", "license")
        return {key: value for key, value in handler(self).items() if key not in rare or value is not None}


class Choice(Record):
    """One way to compute a run."""

    precision: str = Field(description="`fp32` or `bf16`.")
    attention: str = Field(description="`documents` (packed documents) or `model` (the model's own).")
    micro_batch_size: int = Field(description="Blocks per forward pass.")
    compile: str = Field(description="`on` or `off`: torch.compile.")
    threads: int | None = Field(default=None, description="CPU threads; null on an accelerator.")


class Trial(Choice, SparseRecord):
    """A way to compute a run, and the speed that the probe measured."""

    tokens_per_second: float = Field(description="Target tokens per second; 0 when it failed.")
    error: str | None = Field(default=None, description="Why it could not be tried.")


class ProbeResult(Record):
    """What the probe tried, and what it chose."""

    chosen: Choice = Field(description="The way that the run is computed.")
    trials: list[Trial] = Field(description="The ways that were tried.")
    seconds: float = Field(description="Seconds that the probe took.")
    left_out: int = Field(default=0, description="Number of ways that there was no time to try.")
    skipped: str | None = Field(default=None, description="Why nothing was tried.")


class Speed(Record):
    """The parts of the model that were replaced by faster ones."""

    activation: str | None = Field(default=None, description="The activation function in use.")
    dropout: str | None = Field(default=None, description="The source of dropout's random numbers.")
    documents: str | None = Field(default=None, description="How packed documents are kept apart.")
    logits: str | None = Field(default=None, description="Whether logits are computed whole or in chunks.")
    probe: ProbeResult | None = Field(default=None, description="What the probe tried.")


class Gpu(Record):
    """The accelerators of a machine."""

    name: str = Field(description="Name of the first accelerator.")
    count: int = Field(default=1, description="Number of accelerators.")
    memory_bytes: int | None = Field(default=None, description="Memory of the first accelerator, bytes.")


class Hardware(Record):
    """The machine that a run was computed on."""

    system: str | None = Field(default=None, description="Operating system.")
    cpu: str | None = Field(default=None, description="Processor.")
    cores: int | None = Field(default=None, description="Cores that the process may use.")
    memory_bytes: int | None = Field(default=None, description="Main memory, bytes.")
    cpu_bf16: bool | None = Field(default=None, description="Whether the CPU supports bf16.")
    gpu: Gpu | None = Field(default=None, description="Accelerators; null when there are none.")


class Trained(Record):
    """The weights that are trained."""

    method: str = Field(description="`full`, `lora` or `dora`.")
    parameters: int = Field(description="Number of parameters that are trained.")
    rank: int | None = Field(default=None, description="Rank of the adapter's matrices; null where there are none.")
    alpha: float | None = Field(default=None, description="Scale of the adapter's update.")
    layers: list[str] | None = Field(default=None, description="Names of the layers that the adapter changes.")


class AcceptedChange(Record):
    """Changes of settings or text that were accepted when a run was resumed."""

    step: int = Field(description="Optimizer steps done when the run was resumed.")
    what: list[str] = Field(description="A description of each change.")


class RunManifest(Record):
    """The content of `run.json`."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of the file format.")
    status: Status | None = Field(default=None, description="State of the run.")
    error: str | None = Field(default=None, description="What ended a failed run.")
    process: Process | None = Field(default=None, description="The process that executes the run, or executed it last.")
    name: str | None = Field(default=None, description="Name of the run: that of its directory.")
    created: str | None = Field(default=None, description="Start of the run, ISO 8601 in UTC.")
    finished: str | None = Field(default=None, description="End of the run, ISO 8601 in UTC.")
    command: list[str] | None = Field(
        default=None, description="Words of the command line; null when the run was started from Python."
    )
    seed: int | None = Field(default=None, description="Random seed.")
    steps: int = Field(default=0, description="Optimizer steps done.")
    total_steps: int | None = Field(default=None, description="Optimizer steps of the whole run.")
    best_step: int | None = Field(default=None, description="Optimizer steps after which the best model was saved.")
    best_loss: float | None = Field(default=None, description="Validation loss of the best model, nats per token.")
    targets: int | None = Field(default=None, description="Target tokens trained on so far.")
    seconds: float | None = Field(default=None, description="Seconds of training, evaluations and saving included.")
    train_seconds: float | None = Field(default=None, description="Seconds of training steps alone.")
    tokens_per_second: float | None = Field(default=None, description="Target tokens per second of training steps.")
    peak_memory_bytes: int | None = Field(default=None, description="Peak memory of the process, bytes.")
    base: BaseModelSource | None = Field(
        default=None, description="Model that training started from; null before it began."
    )
    trained: Trained | None = Field(default=None, description="The weights that are trained.")
    data_sha256: str | None = Field(default=None, description="SHA-256 of the tokens of the text.")
    config_sha256: str | None = Field(default=None, description="SHA-256 of `config.yaml`, which holds the settings.")
    config: dict[str, Any] | None = Field(
        default=None, description="Settings by name; only in files of version 1. Later versions refer to `config.yaml`."
    )
    speed: Speed | None = Field(default=None, description="How the run is computed.")
    versions: dict[str, str] | None = Field(default=None, description="Versions of Finetale, Python and libraries.")
    hardware: Hardware | None = Field(default=None, description="The machine.")
    tracking_id: str | None = Field(
        default=None, description="Identity of the run for the trackers of `track`; absent without them."
    )
    changes: list[AcceptedChange] = Field(default=[], description="Changes accepted when the run was resumed.")

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `config` if it is None, as in all files of version 2, and `tracking_id`."""
        rare = ("config", "tracking_id")
        return {key: value for key, value in handler(self).items() if key not in rare or value is not None}

    @field_validator("command", mode="before")
    @classmethod
    def _split_joined(cls, value: Any) -> Any:
        """Split the string that version 1 joined with spaces."""
        if isinstance(value, str):
            try:
                return shlex.split(value)
            except ValueError:  # an unbalanced quote
                return value.split()
        return value

    @field_validator("changes", mode="before")
    @classmethod
    def _no_changes(cls, value: Any) -> Any:
        return [] if value is None else value
