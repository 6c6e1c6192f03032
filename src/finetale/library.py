"""The Python interface: `train`, `load`, `check`, `plan`, `evaluate`, `compare`, and what they return."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale import models, pipeline, text
from finetale.config import Config, SamplingSettings, as_sources, read_settings_file
from finetale.display import Display
from finetale.environment import calm_threads
from finetale.errors import RunError
from finetale.rundir import RunDirectory
from finetale.schema import ComparisonFile, DataFile, RunManifest, Side

if TYPE_CHECKING:
    from finetale.generate import Generator
    from finetale.models import Provenance

calm_threads()  # before anything below loads torch

Sources = str | Path | Sequence[str | Path]


class Figures:
    """One model's figures in a comparison.

    `validation` and `test` hold loss, perplexity, word_perplexity, bits_per_byte, counts and intervals, or are None. `perplexity`, `loss` and `bits_per_byte` are those of the test text, or of the validation text without one.
    """

    def __init__(self, side: Side) -> None:
        self.name = side.name
        self.validation = side.validation
        self.test = side.test
        self.samples = side.samples
        self.sample_metrics = side.sample_metrics

    @property
    def loss(self) -> float:
        return self._figure("loss")

    @property
    def perplexity(self) -> float:
        return self._figure("perplexity")

    @property
    def bits_per_byte(self) -> float:
        return self._figure("bits_per_byte")

    def _figure(self, name: str) -> float:
        held_out = self.test or self.validation
        if held_out is None:
            raise RunError(
                "There was no held-out text, so there are no figures.", "Train with a validation or test text."
            )
        return float(getattr(held_out, name))


class Comparison:
    """Before and after, as comparison.json holds it (`content`)."""

    def __init__(self, content: ComparisonFile) -> None:
        self.content = content
        self.before = Figures(content.before)
        self.after = Figures(content.after)
        self.verdict = content.verdict
        self.improved = content.improved

    def __str__(self) -> str:
        return self.verdict


class Run:
    """A run directory."""

    def __init__(self, path: str | Path) -> None:
        self._directory = RunDirectory.open(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> Path:
        return self._directory.root

    @property
    def manifest(self) -> RunManifest:
        """Content of run.json."""
        return self._directory.read_manifest()

    @property
    def data(self) -> DataFile:
        """Content of data.json: the token account and the data report."""
        return self._directory.read_data()

    @property
    def comparison(self) -> Comparison:
        """Before and after.

        Raises:
            RunError: the run was not finished.
        """
        return Comparison(self._directory.read_comparison())

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self._directory.report


class Writer:
    """A model that writes: made by `finetale.load`."""

    def __init__(self, generator: Generator, provenance: Provenance) -> None:
        self._generator = generator
        self.provenance = provenance

    def generate(self, prompt: str = "", *, n: int = 1, truncate: bool = False, **settings: Any) -> list[str]:
        """Continue a prompt n times; the texts are without the prompt.

        Args:
            truncate: cut a prompt that is too long for the model on its left instead of refusing it.
            settings: any of `SamplingSettings`: temperature, top_p, max_new_tokens, seed …
        """
        sampling = SamplingSettings.resolve(settings)
        return [sample.text for sample in self._generator.generate([prompt], sampling, n=n, truncate=truncate)[0]]

    def stream(self, prompt: str = "", *, truncate: bool = False, **settings: Any) -> Iterator[str]:
        """Continue a prompt and yield pieces of text as they come."""
        return self._generator.stream(prompt, SamplingSettings.resolve(settings), truncate=truncate)


def train(sources: Sources = (), *, config: str | Path | None = None, quiet: bool = False, **settings: Any) -> Run:
    """Train a model on text, the same path as `finetale train`.

    Args:
        sources: files, folders, "bundled:tales", or "hf:DATASET".
        config: a settings file; `settings` win over it.
        settings: any setting of `finetale.config.Config`.

    Raises:
        FinetaleError: says what was wrong and what to do.
    """
    resolved = resolve(sources, config, settings)
    with Display(quiet=quiet) as display:
        return Run(pipeline.train_run(resolved, display).root)


def resume(run: str | Path | Run, *, accept_changes: bool = False, quiet: bool = False, **changes: Any) -> Run:
    """Go on with a run where it stopped, the same path as `finetale resume`. A finished run is returned as it is.

    Args:
        accept_changes: go on although the text or config.yaml has changed since the run began.
        changes: `epochs` or `max_steps`, counted from the beginning of the run: train on until then.

    Raises:
        FinetaleError: says what was wrong and what to do.
    """
    with Display(quiet=quiet) as display:
        path = run.path if isinstance(run, Run) else run
        return Run(pipeline.resume_run(path, display, accept_changes=accept_changes, budget=changes).root)


def load(model: str | Path | Run, *, revision: str | None = None, offline: bool = False) -> Writer:
    """Load a model to generate with: a run, a folder, a Hub id, or `bundled`."""
    from finetale.generate import Generator

    loaded = models.open_model(_name(model), lambda event: None, revision=revision, offline=offline)
    return Writer(Generator(loaded.model, loaded.tokenizer), loaded.provenance)


def check(sources: Sources, **settings: Any) -> dict[str, Any]:
    """The data report of text, without training: see `finetale check`."""
    resolved = resolve(sources, None, settings)
    parts, report = text.read_parts(resolved.sources, resolved, on_problem="collect", offline=resolved.offline)
    for _ in parts:
        pass
    return report.to_dict()


def plan(sources: Sources, *, quiet: bool = True, **settings: Any) -> dict[str, Any]:
    """What training would take on this machine, measured: see `finetale plan`."""
    with Display(quiet=quiet) as display:
        return pipeline.plan_run(resolve(sources, None, settings), display)


def evaluate(model: str | Path | Run, sources: Sources, *, quiet: bool = True, **settings: Any) -> dict[str, Any]:
    """Loss, perplexity and bits a byte of a model on text: see `finetale evaluate`."""
    with Display(quiet=quiet) as display:
        return pipeline.evaluate_on(_name(model), resolve(sources, None, settings), display)


def compare(
    before: str | Path | Run, after: str | Path | Run, sources: Sources = (), *, quiet: bool = True, **settings: Any
) -> Comparison:
    """Two models on the same held-out text and prompts: see `finetale compare`.

    Args:
        sources: text neither model was trained on. Without any, and with a run as `after`: the run's own held-out text.
    """
    with Display(quiet=quiet) as display:
        return Comparison(pipeline.compare_on(_name(before), _name(after), as_sources(sources), settings, display))


def _name(model: str | Path | Run) -> str:
    """A path stands for that folder, whatever it is called; only a string can be `bundled`, new:SHAPE or a Hub id."""
    return model if isinstance(model, str) else models.name_of_folder(Path(model))


def resolve(sources: Sources, config: str | Path | None, settings: dict[str, Any]) -> Config:
    """The settings of a call: the file's, with those given on top."""
    layers: list[dict[str, Any]] = [] if config is None else [read_settings_file(config)]
    given = as_sources(sources)
    return Config.resolve(*layers, settings, {"sources": given} if given else {})
