"""Evaluation of one model, and the comparison of two, on the same texts and prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from finetale import comparison, memorisation, models, tokens
from finetale.answers import Exercise, answer, exercises
from finetale.blocks import choose_evaluation_size
from finetale.chat import chat_renderer
from finetale.config import DEFAULT_EPOCHS, Config, read_settings_file
from finetale.environment import resolve_precision
from finetale.errors import FinetaleError, HubError, RunError, SourceError
from finetale.forward import PackedForward
from finetale.metrics import INTERVAL_METHOD, Measurement, measure
from finetale.models import LoadedModel
from finetale.notify import Notify, counted, stage
from finetale.out_of_memory import check_address_space, fit_batches, memory_errors
from finetale.pipeline.data import keep_standard_input, retokenise, tokenise
from finetale.pipeline.kept_text import check_fits, kept_text
from finetale.pipeline.prepare import evaluation_blocks
from finetale.rundir import RunDirectory
from finetale.schema import ComparisonFile, Evaluation, Memorisation
from finetale.text.fingerprint import is_elsewhere
from finetale.text.personal import find_personal_data
from finetale.text.words import spaces_separate_words

if TYPE_CHECKING:
    from finetale.tokens import TokenStore

T = TypeVar("T")
Between = Callable[[], None]
_SPACED_DOCUMENTS, _SPACED_TOKENS = 100, 1000
"""How many documents, and tokens of each, show whether white space separates words."""


class MeasuredText(Enum):
    """Which text a model is measured on."""

    HELD_OUT = "held out"
    """The splits that were held out of the text that one of the models was trained on."""
    WHOLE = "whole"
    """All of an unsplit text. It is reported under the name of the test text."""

    @property
    def splits(self) -> dict[str, str]:
        """Names of the measurements, each with the split of the token store that it measures."""
        if self is MeasuredText.HELD_OUT:
            return {"validation": "validation", "test": "test"}
        return {"test": "all"}


def open_as_configured(name: str, config: Config, notify: Notify, tokenizer: Any = None) -> LoadedModel:
    """Load a model for use, with the settings of a run."""
    return models.open_model(
        name,
        notify,
        tokenizer=tokenizer,
        revision=config.revision,
        offline=config.offline,
        dropout=models.Dropout.of(config),
        seed=config.seed,
        precision=config.precision,
        attention=config.attention,
        fast=config.speed,
    )


def evaluate_model(
    loaded: LoadedModel,
    store: TokenStore,
    measured_text: MeasuredText,
    config: Config,
    notify: Notify,
    between: Between | None = None,
) -> dict[str, Measurement]:
    """Measure a model on each part of the measured text that is not empty; return the measurements by name.

    Watched text is measured beside held-out text, under the names of its splits.
    """
    positions = models.positions_of(loaded.model.config.to_dict())
    sized = config.model_copy(update={"block_size": choose_evaluation_size(positions, config.block_size)})
    forward = PackedForward(loaded.model, precision=resolve_precision(config.precision))
    leads = bool(models.lead_of(loaded.tokenizer, models.mark_of(loaded.model)))
    begins = (leads, leads or chat_renderer(loaded.tokenizer, "answers").writes_begin())
    found = {}
    watched = store.watched if measured_text is MeasuredText.HELD_OUT else []
    for label, split in (measured_text.splits | {name: name for name in watched}).items():
        blocks = evaluation_blocks(store, split, sized)
        if blocks is None:
            continue
        blocks = replace(blocks, begins=begins)
        what = f"watched text {label.split()[1]}" if label in watched else f"the {label} text"
        message = f"Measuring {loaded.provenance.name} on {what}"
        stage(notify, message)
        work = partial(measure, forward, blocks, progress=partial(_tell, notify, message), between=between)
        batch_size = config.micro_batch_size or _batch_size(loaded, blocks.block_size)
        measured = fit_batches(partial(_call_with_batch_size, work), batch_size, blocks.block_size)
        found[label] = replace(measured, spaced=_is_spaced(store, split, loaded.tokenizer))
    return found


def _is_spaced(store: TokenStore, split: str, tokenizer: Any) -> bool:
    """Return whether white space separates the words of a split, judged by the beginnings of some documents."""
    parts = store.parts_of(split)
    chosen = parts[:: max(1, len(parts) // _SPACED_DOCUMENTS)]
    return spaces_separate_words(
        tokenizer.decode(store.ids(int(part))[:_SPACED_TOKENS].tolist(), skip_special_tokens=True) for part in chosen
    )


def _tell(notify: Notify, message: str, done: int, total: int) -> None:
    stage(notify, message, done=done, total=total)


def held_out_ids(loaded: LoadedModel, notify: Notify, *, most: int, window: int) -> list[list[int]]:
    """Return pieces of the held-out documents of a run as token ids, each after beginning-of-text.

    The beginnings of all documents come first, then the following pieces of longer documents. The list is empty if the
    model is not a run, or if the held-out text is not on this machine.

    Args:
        most: total number of tokens.
        window: tokens per piece, beginning-of-text included.
    """
    if loaded.provenance.kind != "run":
        return []
    run = RunDirectory(Path(loaded.provenance.name).expanduser())
    try:
        store = kept_text(run, notify)
        if store is None:
            config = Config.resolve(read_settings_file(run.config))
            if any(map(is_elsewhere, config.all_sources)):
                return []
            store = tokenise(config, loaded.tokenizer, notify)
        check_fits(store, loaded)
    except (FinetaleError, OSError):
        return []
    begin, _ = tokens.begin_and_end(loaded.tokenizer)
    found: list[list[int]] = []
    parts = [store.ids(int(part)) for part in (*store.parts_of("validation"), *store.parts_of("test"))]
    step = max(1, window - 1)
    starts = range(0, max(map(len, parts), default=0), step)
    for piece in (ids[start : start + step] for start in starts for ids in parts if len(ids) > start):
        found.append([begin, *piece[:most].tolist()])
        most -= len(piece)
        if most <= 0:
            break
    return found


@memory_errors()
def evaluate_on(name: str, config: Config, notify: Notify) -> Evaluation:
    """Return a model's figures on all of the text of the sources, for `finetale evaluate`."""
    check_address_space()
    loaded = open_as_configured(name, config, notify)
    models.warn_if_unfinished(loaded.provenance, notify)
    store = tokenise(keep_standard_input(_unsplit(config)), loaded.tokenizer, notify)
    measured = evaluate_model(loaded, store, MeasuredText.WHOLE, config, notify)
    figures = measured["test"].summary()
    method = INTERVAL_METHOD if figures.interval else None
    return Evaluation.model_validate(dict(figures) | {"model": name, "interval_method": method})


def _call_with_batch_size(work: Callable[..., T], batch_size: int) -> T:
    return work(batch_size=batch_size)


def _batch_size(loaded: LoadedModel, block_size: int) -> int:
    """Return the number of blocks per pass: at most 4,096 tokens, and at most 1 GiB of logits in fp32."""
    vocabulary = int(loaded.model.get_input_embeddings().weight.shape[0])
    return max(1, min(4096, 2**28 // vocabulary) // block_size)


def _unsplit(config: Config) -> Config:
    """Return the settings with nothing held out and nothing beside, so that the whole text is measured."""
    alone: dict[str, Any] = {"validation": (), "test": (), "mix": (), "watch": ()}
    return config.model_copy(update=alone | {"validation_fraction": 0.0, "test_fraction": 0.0})


def compare_models(
    before: LoadedModel,
    after: LoadedModel,
    config: Config,
    notify: Notify,
    *,
    names: tuple[str, str],
    measured_text: MeasuredText = MeasuredText.HELD_OUT,
    store: TokenStore | None = None,
    data_sha256: str | None = None,
    between: Between | None = None,
) -> ComparisonFile:
    """Measure and sample two models on the held-out text of `config`; the content of comparison.json.

    Args:
        measured_text: the text. If it was held out, `after` was trained on the training split of the same sources, and
            its samples are compared with that text too.
        store: the tokens of `after`'s text, if its run keeps them; else the text is read again.
        data_sha256: of the token store `after` was trained from.

    Raises:
        RunError: the text is another one by now, so that held-out text may have been trained on.
    """
    sides = [comparison.Side(name, loaded) for name, loaded in zip(names, (before, after), strict=True)]
    # Blocks of one size for both, so that the same pieces of text are compared and neither sees more context.
    sizes = [
        choose_evaluation_size(models.positions_of(side.loaded.model.config.to_dict()), config.block_size)
        for side in sides
    ]
    config = config.model_copy(update={"block_size": min(sizes)})
    same = tokens.tokenizer_hash(before.tokenizer) == tokens.tokenizer_hash(after.tokenizer)
    kept = store
    if kept is not None:
        check_fits(kept, after)
    if config.sources:
        store = store or tokenise(config, after.tokenizer, notify)
        if data_sha256 is not None and store.info["sha256"] != data_sha256:
            raise RunError(
                "The text has changed since the run began, so what is held out now may have been trained on.",
                "Restore the text, or name other text with --text.",
            )
        if same:
            other = store
        elif kept is None:
            other = tokenise(config, before.tokenizer, notify)
        else:
            other = _with_tokenizer(kept, after, before, config, notify)
        for side, own_tokens in zip(sides, (other, store), strict=True):
            side.measurements = evaluate_model(side.loaded, own_tokens, measured_text, config, notify, between)
    prompts = list(config.prompts)
    asked: list[Exercise] = []
    if store is not None:
        asked = exercises(store, after.tokenizer, config.num_answers, tuple(measured_text.splits.values())[::-1])
    references: dict[str, str] = {}
    if not prompts:
        shown = [each for each in asked if not find_personal_data(f"{each.prompt}\n{each.reference}")]
        references = {each.prompt: each.reference for each in shown[: config.num_prompts]}
        prompts = list(references)
    if not prompts:
        prompts = (
            [""]  # the language is unknown, so the models begin
            if store is None
            else comparison.held_out_prompts(
                store, after.tokenizer, config.num_prompts, tuple(measured_text.splits.values())[::-1]
            )
        )
    for side in sides:
        stage(notify, f"Sampling from {side.name}")
        progress = partial(_tell, notify, f"Sampling from {side.name}")
        comparison.draw_samples(side, prompts, config, between, progress, references)
        if asked:
            progress = partial(_tell, notify, f"Answering held-out examples with {side.name}")
            side.answers = answer(side.loaded, asked, config.max_new_tokens, between, progress)
    stage(notify, "Comparing")
    texts = (
        partial(training_texts, store, after.tokenizer, notify, between)
        if store is not None and measured_text is MeasuredText.HELD_OUT
        else None
    )
    shared = shared_shares(store) if store is not None and measured_text is MeasuredText.HELD_OUT else None
    result = comparison.build(
        sides[0],
        sides[1],
        config,
        prompts,
        same_tokenizer=same,
        training_texts=texts,
        shared=shared,
        is_held_out=measured_text is MeasuredText.HELD_OUT,
        watched=None if store is None else _names_of_watched(store),
    )
    if store is not None and measured_text is MeasuredText.HELD_OUT and config.audit_tokens != 0:
        # An earlier run can have memorised the same text, and random weights have memorised nothing.
        base = before if same and before.provenance.kind in ("hub", "local", "gguf", "bundled") else None
        memorised = audit_model(after, base, store, config, notify, between)
        result = result.model_copy(update={"memorisation": memorised})
    return result


def _names_of_watched(store: TokenStore) -> dict[str, str]:
    """Return the names of the sources of watched text, by the names of their splits."""
    sources = [entry["source"] for entry in store.report.get("watched") or ()]
    return dict(zip(store.watched, sources, strict=False))


def _with_tokenizer(
    store: TokenStore, after: LoadedModel, before: LoadedModel, config: Config, notify: Notify
) -> TokenStore:
    """Return the text of the store of `after` as tokens of `before`.

    If the text is gone or has changed, the tokens are decoded.

    Raises:
        RunError: the text is not what it was, and the tokens do not give it back exactly.
    """
    with contextlib.suppress(SourceError, HubError):  # the text is gone
        own = tokenise(config, before.tokenizer, notify)
        if own.has_text_of(store):
            return own
    return retokenise(store, after.tokenizer, before.tokenizer, config, notify)


def shared_shares(store: TokenStore) -> dict[str, float]:
    """Return, for each held-out split, the share of its words in passages that also occur in the training text."""
    found = store.report.get("shared_passages") or {}
    return {
        split: found[split]["shared"] / max(1, found[split]["words"])
        for split in ("validation", "test")
        if split in found
    }


def audit_model(
    after: LoadedModel,
    before: LoadedModel | None,
    store: TokenStore,
    config: Config,
    notify: Notify,
    between: Between | None = None,
) -> Memorisation:
    """Find the passages of the training text that a model has memorised, and for contrast those of the held-out text.

    Args:
        before: the model that `after` was trained from, if both have the same tokens.
    """
    precision = resolve_precision(config.precision)
    forward = PackedForward(after.model, precision=precision)
    base = PackedForward(before.model, precision=precision) if before is not None else None
    assert config.block_size is not None
    read = store.num_targets("train") * (config.epochs or DEFAULT_EPOCHS)
    if config.max_steps is not None and config.batch_size is not None:
        steps_read = float(config.max_steps * config.batch_size * config.block_size)
        read = steps_read if config.epochs is None else min(read, steps_read)
    wanted = config.audit_tokens or min(max(round(read / 20), 20_000), 200_000)
    found = {}
    for name, splits in (("training", ("train",)), ("held_out", ("validation", "test"))):
        if not any(store.num_targets(split) for split in splits):
            continue
        message = f"Looking for {name.replace('_', '-')} text that {after.provenance.name} has memorised"
        stage(notify, message)
        work = partial(
            memorisation.audit,
            forward,
            base,
            store,
            splits,
            window=config.block_size,
            budget=wanted if name == "training" else max(min(20_000, wanted), wanted // 4),
            seed=config.seed,
            risk_first=name == "training",
            progress=partial(_tell, notify, message),
            between=between,
        )
        batch_size = config.micro_batch_size or _batch_size(after, config.block_size)
        found[name] = fit_batches(partial(_call_with_batch_size, work), batch_size, config.block_size)
    return comparison.describe_audit(found, store, after.tokenizer, has_base=base is not None)


def training_texts(store: TokenStore, tokenizer: Any, notify: Notify, between: Between | None = None) -> Iterator[str]:
    """Yield the training documents, decoded from their tokens."""
    parts = store.parts_of("train").tolist()
    for part in counted(parts, lambda done: stage(notify, "Comparing", done=done, total=len(parts), unit="documents")):
        if between is not None:
            between()
        yield tokenizer.decode(store.ids(part).tolist())


@memory_errors()
def compare_on(
    before: str, after: str, sources: Sequence[str], settings: dict[str, Any], notify: Notify
) -> ComparisonFile:
    """Compare two models on all of the text of `sources`, or else on the held-out text of the run `after`.

    Raises:
        FinetaleError: a model or a text can't be used.
    """
    check_address_space()
    directory = RunDirectory(Path(after).expanduser())
    measured_text = MeasuredText.HELD_OUT
    kept = None
    if sources or not directory.is_run():
        config, measured_text, sha256 = (
            _unsplit(Config.resolve(settings, {"sources": tuple(sources)})),
            MeasuredText.WHOLE,
            None,
        )
    else:
        config = Config.resolve(read_settings_file(directory.config), settings)
        sha256 = directory.read_manifest().data_sha256
        kept = kept_text(directory, notify)
    models.check_name(before)
    models.check_name(after)
    config = keep_standard_input(config)
    second = open_as_configured(after, config, notify)
    own = before == config.model  # the run's own base; config.revision belongs to it alone
    first = open_as_configured(
        before,
        config if own else config.model_copy(update={"revision": None}),
        notify,
        tokenizer=second.tokenizer if models.is_new(before) else None,
    )
    for loaded in (first, second):
        models.warn_if_unfinished(loaded.provenance, notify)
    return compare_models(
        first,
        second,
        config,
        notify,
        names=(before, after),
        measured_text=measured_text,
        store=kept,
        data_sha256=sha256,
    )
