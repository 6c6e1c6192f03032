"""The Python interface: the functions of the commands, and what they return."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetale import cache, pipeline
from finetale.config import Config, read_settings_file
from finetale.environment import calm_threads
from finetale.library.results import Comparison, Figures, Run
from finetale.library.watching import OnEvent, watching
from finetale.library.writer import Writer, load, model_name
from finetale.schema import CheckResult, Evaluation, PlanResult, PushResult
from finetale.text.in_memory import as_source_names, write_texts

__all__ = [
    "Comparison",
    "Figures",
    "Run",
    "Sources",
    "Writer",
    "check",
    "compare",
    "evaluate",
    "load",
    "plan",
    "push",
    "resolve",
    "resume",
    "train",
]

calm_threads()  # before anything below loads torch

Sources = str | Path | Sequence[str | Path] | Any
"""Paths or names of sources, or data: records (dictionaries), or a pandas, polars, pyarrow or datasets table."""


def train(
    sources: Sources = (),
    *,
    texts: Iterable[str] | None = None,
    config: str | Path | None = None,
    quiet: bool = False,
    on_event: OnEvent | None = None,
    cancel: threading.Event | None = None,
    **settings: Any,
) -> Run:
    """Train a model on text, the same path as `finetale train`.

    Args:
        sources: files, folders, "bundled:tales" or "hf:DATASET"; or data in memory: records (dictionaries), or a table
            of pandas, polars, pyarrow or datasets. `validation=` and `test=` take the same.
        texts: texts to train on, one document each, in place of or besides `sources`.
        config: a settings file. `settings` override it.
        quiet: show warnings only.
        on_event: called with each event (see docs/schema.md), in the thread that trains. An exception that it raises
            ends the run.
        cancel: setting it, from any thread, stops the run as Ctrl-C does: the run saves a checkpoint and raises
            InterruptedRun.
        settings: any setting of `finetale.config.Config`.

    Raises:
        FinetaleError: the run can't begin or continue. The message names the reason, the hint the next step.
        InterruptedRun: the run was stopped, and can be resumed.
    """
    resolved = resolve(sources, config, settings, texts)
    with watching(quiet=quiet, on_event=on_event, cancel=cancel) as notify:
        return Run(pipeline.train_run(resolved, notify).root)


def resume(
    run: str | Path | Run,
    *,
    accept_changes: bool = False,
    quiet: bool = False,
    on_event: OnEvent | None = None,
    cancel: threading.Event | None = None,
    **changes: Any,
) -> Run:
    """Continue a run where it stopped; see `finetale resume`. `quiet`, `on_event` and `cancel` are those of `train`.

    Args:
        accept_changes: resume although the text or config.yaml has changed since the run began.
        changes: `epochs` or `max_steps` to train to, counted from the beginning of the run.
    """
    with watching(quiet=quiet, on_event=on_event, cancel=cancel) as notify:
        return Run(pipeline.resume_run(Path(run), notify, accept_changes=accept_changes, budget=changes).root)


def check(
    sources: Sources = (),
    *,
    texts: Iterable[str] | None = None,
    exact_tokens: bool = False,
    quiet: bool = True,
    **settings: Any,
) -> CheckResult:
    """Return what would be trained on, with every problem: see `finetale check`. Trains nothing.

    Args:
        exact_tokens: count all tokens of a text above 20 MB, not a sample.
    """
    with watching(quiet=quiet) as notify:
        return pipeline.check_text(resolve(sources, None, settings, texts), notify, exact_tokens=exact_tokens)


def plan(
    sources: Sources = (),
    *,
    texts: Iterable[str] | None = None,
    config: str | Path | None = None,
    quiet: bool = True,
    **settings: Any,
) -> PlanResult:
    """Return what training would take on this machine, measured: see `finetale plan`. Trains nothing."""
    with watching(quiet=quiet) as notify:
        return pipeline.plan_run(resolve(sources, config, settings, texts), notify)


def evaluate(
    model: str | Path | Run,
    sources: Sources = (),
    *,
    texts: Iterable[str] | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Evaluation:
    """Return loss, perplexity and bits per byte of a model on text: see `finetale evaluate`."""
    with watching(quiet=quiet) as notify:
        return pipeline.evaluate_on(model_name(model), resolve(sources, None, settings, texts), notify)


def compare(
    before: str | Path | Run,
    after: str | Path | Run,
    sources: Sources = (),
    *,
    texts: Iterable[str] | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Comparison:
    """Compare two models on the same held-out text and prompts: see `finetale compare`.

    Args:
        sources: text that neither model was trained on. Without any, and with a run as `after`: the run's own held-out
            text.
        texts: texts of the same kind, in memory.
    """
    names = _source_names(sources, texts, settings)
    with watching(quiet=quiet) as notify:
        return Comparison(pipeline.compare_on(model_name(before), model_name(after), names, settings, notify))


def push(
    run: str | Path | Run,
    repository: str,
    *,
    public: bool = False,
    anyway: bool = False,
    report: bool | None = None,
    quiet: bool = True,
) -> PushResult:
    """Upload a run or a model folder to the Hub: see `finetale push`.

    Args:
        repository: NAME or OWNER/NAME.
        public: whether everyone may read it.
        anyway: push although personal data or memorised passages were found.
        report: whether report.html of a run is part of it. None: unless `public`.
    """
    with watching(quiet=quiet) as notify:
        prepared = pipeline.prepare_push(str(run), repository, notify, public=public, with_report=report)
        if not anyway:
            prepared.refuse_findings()
        return prepared.send(notify)


def resolve(
    sources: Sources, config: str | Path | None, settings: dict[str, Any], texts: Iterable[str] | None = None
) -> Config:
    """Return the settings of a call: the file's, with those given on top. Data in memory is written to the cache."""
    layers: list[dict[str, Any]] = [] if config is None else [read_settings_file(config)]
    given = _source_names(sources, texts, settings)
    held_out = {
        split: _source_names(settings[split], None, settings)
        for split in ("validation", "test", "watch")
        if settings.get(split) is not None
    }
    return Config.resolve(*layers, settings | held_out, {"sources": given} if given else {})


def _source_names(sources: Sources, texts: Iterable[str] | None, settings: dict[str, Any]) -> tuple[str, ...]:
    given = settings.get("cache_dir")
    folder = cache.cache_root(None if given is None else Path(given)) / "in-memory"
    names = as_source_names(sources, folder)
    return names if texts is None else (*names, write_texts(texts, folder))
