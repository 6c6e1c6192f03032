"""Experiment trackers, each behind the same four calls. Knows nothing of runs or processes.

A new tracker is a class here and a line in `CLIENTS`. The package is imported when the client is created. Where the
data goes, and with which key, is up to the client: its own variables of the environment and its own files.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

_PROJECT = "finetale"
_MLFLOW_BATCH = 100
"""Most parameters that MLflow's API takes at once."""
_MLFLOW_VALUE = 6000
"""Most characters of a parameter's value in MLflow's API."""


@dataclass(frozen=True)
class Start:
    """What a tracker gets at the beginning.

    Attributes:
        id: identity of the run; the same after a resume.
        name: name of the run, for people.
        settings: the settings by name, as JSON values.
        offline: whether nothing may be sent to a server that the user has not named.
    """

    id: str
    name: str
    settings: dict[str, Any]
    offline: bool = False


class Client(Protocol):
    """A tracker's client, with a run that is open. To continue a run, it is created again with the same id."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Record numbers by name."""

    def sample(self, text: str, step: int) -> None:
        """Record a generated text."""

    def finish(self, figures: dict[str, float], status: str) -> None:
        """Record the final figures and close the run; return when all data is safe.

        Args:
            figures: the comparison of base and tuned model; empty for a run that did not get there.
            status: `finished`, `interrupted` or `failed`.
        """


class Wandb:
    """Weights & Biases. Console, code and git state are not collected."""

    def __init__(self, start: Start) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if start.offline:
            os.environ.setdefault("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=start.id,
            name=start.name,
            config=start.settings,
            resume="allow",
            allow_val_change=True,
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True),
        )
        # wandb's own step only grows, and a resumed run may repeat steps.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Record numbers by name."""
        self._run.log({"step": step, **values})

    def sample(self, text: str, step: int) -> None:
        """Record a generated text."""
        self._run.log({"step": step, "sample": text})

    def finish(self, figures: dict[str, float], status: str) -> None:
        """Put the figures into the summary and wait for the upload."""
        self._run.summary.update({**figures, "status": status})
        self._run.finish(exit_code=0 if status == "finished" else 1)


class Mlflow:
    """MLflow: a server, or a database on this machine. A tag carries the id, because MLflow chooses its own."""

    def __init__(self, start: Start) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._experiment()
        found = self._client.search_runs([experiment], f"tags.`finetale.id` = '{start.id}'", max_results=1)
        run = found[0] if found else self._client.create_run(experiment, tags={"finetale.id": start.id})
        self._id = run.info.run_id
        self._client.update_run(self._id, status="RUNNING", name=start.name)
        # A parameter can't be changed, so a resumed run keeps those that it began with.
        fresh = [name for name in start.settings if name not in run.data.params]
        values = {name: json.dumps(start.settings[name], ensure_ascii=False)[:_MLFLOW_VALUE] for name in fresh}
        for at in range(0, len(fresh), _MLFLOW_BATCH):
            batch = [Param(name, values[name]) for name in fresh[at : at + _MLFLOW_BATCH]]
            self._client.log_batch(self._id, params=batch)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Record numbers by name."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def sample(self, text: str, step: int) -> None:
        """Record a generated text as an artifact."""
        self._client.log_text(self._id, text, f"samples/step-{step:08d}.txt")

    def finish(self, figures: dict[str, float], status: str) -> None:
        """Record the figures and set the state of the run."""
        self.scalars(figures, 0)
        self._client.set_terminated(self._id, {"finished": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED"))


class Trackio:
    """Trackio: a database on this machine, a Space or a server. The name carries the id, because it is what resumes."""

    def __init__(self, start: Start) -> None:
        import trackio

        self._step = 0
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=f"{start.name}-{start.id[:6]}",
            config=start.settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Record numbers by name."""
        self._step = step
        self._run.log(dict(values), step=step)

    def sample(self, text: str, step: int) -> None:
        """Record a generated text."""
        self._run.log({"sample": text}, step=step)

    def finish(self, figures: dict[str, float], status: str) -> None:
        """Record the figures at the last step and wait until all is written."""
        if figures:
            self._run.log(dict(figures), step=self._step)
        self._run.finish()


CLIENTS: dict[str, Callable[[Start], Client]] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}
"""Name of a tracker, which is also that of its package → its client."""
