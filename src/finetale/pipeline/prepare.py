"""Prepare a run: check the settings, read the text, load the model, resolve automatic settings.

Writes only to the cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetale import devices, models, speed, text
from finetale.blocks import Blocks, CutExamples, check_positions, check_stride, choose_block_size, pack, windows
from finetale.chat import PLAIN_TEMPLATE
from finetale.config import DEFAULT_EPOCHS, Config
from finetale.environment import resolve_precision
from finetale.errors import ModelError, RunError, SourceError
from finetale.extras import is_installed, require
from finetale.formatting import plural, shell_command
from finetale.generate import find_way
from finetale.models import LoadedModel
from finetale.models.frozen import keep_in_bf16, restore_fp32
from finetale.notify import Notify, note, stage, warn
from finetale.out_of_memory import check_address_space
from finetale.pipeline.data import cut_in_run, tokenise, trained_tokenizer
from finetale.pipeline.kept_text import check_fits
from finetale.pipeline.tuning import Tuned, tune
from finetale.pipeline.validation_sample import choose_eval_tokens, sample_blocks
from finetale.rundir import RunDirectory
from finetale.text.findings import text_findings, text_notes
from finetale.text.source_names import kind_of_saved_text
from finetale.tokens import TokenStore, begin_and_end
from finetale.training import StepBudget, default_learning_rate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STEPS = 150
"""Number of steps that the default batch size aims at."""
_STEPS_FROM_SCRATCH = 1500
"""The same for a model with random weights."""
_STEP_TOKENS = (2048, 32768)
"""Minimum and maximum tokens per step of the default batch size."""


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start. In `config`, all automatic settings that influence the result are resolved."""

    config: Config
    loaded: LoadedModel
    store: TokenStore
    train: Blocks
    validation: Blocks | None
    tuned: Tuned
    adapted: models.AdaptedBase | None = None
    """The base of the adapter that is trained; None where all weights are."""

    @property
    def budget(self) -> StepBudget:
        """Return the step budget of the run."""
        return step_budget(self.config, self.train)

    def blocks_json(self) -> dict[str, Any]:
        """Return size, count and padding of the training blocks, for data.json."""
        return {
            "size": self.train.block_size,
            "count": len(self.train),
            "padding_share": round(self.train.padding_share, 6),
        }


def prepare(
    config: Config,
    notify: Notify,
    *,
    loaded: LoadedModel | None = None,
    store: TokenStore | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Prepared:
    """Check and load everything that a run needs, and resolve automatic settings. Writes only to the cache.

    Args:
        loaded: model to use instead of loading `config.model`; for a resumed run.
        store: tokens to use instead of reading the text.
        tokenizer: tokenizer to use instead of training one for a `new:` model.
    """
    check_address_space()
    ignored = devices.ignored_settings()
    if ignored:
        message = (
            f"Accelerate's environment variables {', '.join(ignored)} are ignored. Finetale uses its own settings."
        )
        warn(notify, message)
    require_sources(config)
    if config.tensorboard is None:
        config = config.model_copy(update={"tensorboard": is_installed("tensorboard")})
    elif config.tensorboard:
        require("tensorboard", "--tensorboard")
    for tracker in config.track:
        require(tracker, f"--track {tracker}")
    if store is None:
        text.check_sources(config.sources, config)
    given, config = config.model, absolute_names(config)
    kept = tokenizer is not None
    located = None
    if loaded is not None:
        tokenizer = loaded.tokenizer
    elif models.is_new(config.model):
        models.check_name(config.model)
        tokenizer = _given_tokenizer(config) or tokenizer or trained_tokenizer(config, notify)
    else:
        stage(notify, f"Looking for {config.model}")
        located = models.locate(config.model, revision=config.revision, offline=config.offline)
        if located.warning:
            warn(notify, located.warning)
        if config.has_adapter and located.adapter is not None:
            raise ModelError(
                f"{config.model} is an adapter, so no other adapter can be trained beside it.",
                f"Merge it first: `{shell_command('finetale', 'merge', config.model, '--out', 'FOLDER')}`; or use "
                "--method full.",
            )
        check_positions(config.block_size, located.positions)
        tokenizer = _given_tokenizer(config) or models.tokenizer_of(located)
    if unusual := models.tokenizer_warning(tokenizer):
        warn(notify, unusual)
    new_tokens: list[models.NewToken] = []
    if config.new_tokens and loaded is None and not kept:
        new_tokens, config = _add_new_tokens(config, tokenizer, notify)
    elif located is not None and isinstance(located.config.get("vocab_size"), int):
        missing = models.check_vocabulary(located.config["vocab_size"], tokenizer, config.model)
        if missing:  # found before the text is read
            warn(notify, missing)
    store = store or tokenise(config, tokenizer, notify)
    findings = [finding.sentence() for finding in text_findings(store.report) if finding.matters]
    for warning in [*store.warnings, *findings]:
        warn(notify, warning)
    for finding in text_notes(store.report):
        (warn if finding.matters else note)(notify, finding.line())
    if loaded is None:
        stage(notify, f"Loading {config.model}")
        if located is None:
            loaded = models.load(config.model, tokenizer=tokenizer, dropout=models.Dropout.of(config), seed=config.seed)
        else:
            loaded = models.load_located(
                located, tokenizer=tokenizer, dropout=models.Dropout.of(config), new_tokens=new_tokens
            )
        loaded = replace(loaded, provenance=replace(loaded.provenance, name=given))
    examples = store.report.get("examples") or {"documents": 0}
    if examples["documents"] > examples.get("by_template", 0) and loaded.tokenizer.chat_template is None:
        loaded.tokenizer.chat_template = PLAIN_TEMPLATE  # saved with the model, for `serve` and `generate --chat`
    if not models.lead_of(loaded.tokenizer, models.mark_of(loaded.model)):
        begin = loaded.tokenizer.convert_ids_to_tokens(begin_and_end(loaded.tokenizer)[0])
        note(
            notify,
            f"The tokenizer of {given} puts nothing before a text. Training puts {begin} before each document, and "
            "the trained model gets it before each prompt.",
        )
    models.set_mark(loaded.model, True)
    check_fits(store, loaded)
    size = choose_block_size(store, models.positions_of(loaded.model.config.to_dict()), config.block_size)
    if config.stride is not None:
        check_stride(config.stride, size)
    _report_cut_examples(cut_in_run(store, size, config.stride), size, notify)
    if config.gradient_checkpointing:
        models.enable_checkpointing(loaded.model)
    models.freeze(loaded.model, config.freeze)
    adapted = None
    if config.has_adapter:
        assert loaded.located is not None
        adapted = models.AdaptedBase(loaded.located, loaded.provenance, models.Dropout.of(config))
        names = models.adapters.attach(loaded.model, config, config.seed)
        config = config.model_copy(update=config.resolved_adapter(names))
    blocks = pack(store, "train", size, fill=True)
    new = models.is_new(config.model)
    if config.epochs is None and config.max_steps is None:
        config = config.model_copy(update={"epochs": DEFAULT_EPOCHS})
    batch_size = config.batch_size or _batch_size(round((config.epochs or DEFAULT_EPOCHS) * len(blocks)), size, new=new)
    config = config.model_copy(update={"block_size": size, "batch_size": batch_size})
    _report_budget(config, step_budget(config, blocks), notify)
    loaded.model.to(devices.device())
    precision = resolve_precision(config.precision)
    find_way(loaded.model)  # refuses models that can't continue texts
    if adapted is not None and precision == "bf16":
        keep_in_bf16(loaded.model)  # before the speed-ups, which replace the classes that it knows
    set_up = partial(speed.set_up, enabled=config.speed, attention=config.attention, training=True)
    set_up(loaded.model, precision=precision)
    tuned = tune(config, loaded.model, blocks, step_budget(config, blocks), notify)
    if adapted is not None and precision != tuned.choice.precision == "fp32":  # the probe found bf16 to be slower
        speed.undo(loaded.model)
        restore_fp32(loaded.model, partial(adapted.read, loaded.tokenizer))
        set_up(loaded.model, precision="fp32")
        speed.use_documents(loaded.model, tuned.choice.attention == "documents")
    resolved = config.model_copy(
        update=tuned.choice.to_dict()
        | {
            "learning_rate": config.learning_rate
            or default_learning_rate(loaded.provenance.parameters, new=new, adapter=config.has_adapter),
            "revision": loaded.provenance.revision or config.revision,
        }
    )
    validation = evaluation_blocks(store, "validation", resolved)
    if validation is not None:
        held_out = validation.num_targets
        tokens = resolved.eval_tokens or choose_eval_tokens(validation, blocks, step_budget(resolved, blocks))
        validation = sample_blocks(validation, tokens)
        if validation.num_targets < held_out:
            resolved = resolved.model_copy(update={"eval_tokens": tokens})
            message = (
                f"Each evaluation within the run measures the same sample of {validation.num_targets:,} of the "
                f"{held_out:,} validation tokens. The final comparison measures all of them. Change the sample size "
                "with --eval-tokens."
            )
            note(notify, message)
    return Prepared(resolved, loaded, store, blocks, validation, tuned, adapted)


def _add_new_tokens(
    config: Config, tokenizer: PreTrainedTokenizerBase, notify: Notify
) -> tuple[list[models.NewToken], Config]:
    """Add the new tokens of a config to a tokenizer. Return them, and the config with their texts in place of files."""
    added, existing = models.add_new_tokens(tokenizer, models.read_new_tokens(config.new_tokens))
    if existing:
        names = ", ".join(map(repr, existing[:5])) + (" …" if len(existing) > 5 else "")
        warn(notify, f"{plural(len(existing), 'new token')} left out, because the tokenizer has them already: {names}.")
    pieces = sum(len(token.pieces) for token in added) / len(added)
    note(
        notify,
        f"{plural(len(added), 'token')} added to the {added[0].id:,} of the model. Each was {pieces:.1f} tokens "
        "before, and begins with the mean of their embeddings.",
    )
    return added, config.model_copy(update={"new_tokens": tuple(token.text for token in added)})


def _report_cut_examples(cut: CutExamples, block_size: int, notify: Notify) -> None:
    """Warn if context is left out, or answers are cut, because examples are longer than a block."""
    parts = []
    if cut.lost_context:
        lost = plural(cut.lost_context, "token")
        parts.append(f"{plural(cut.shortened, 'example')} lose{'s' * (cut.shortened == 1)} {lost} of context")
    if cut.cut_answers:
        one = cut.cut_answers == 1
        parts.append(
            f"{plural(cut.cut_answers, 'answer')} {'is' if one else 'are'} cut into pieces, all of them learned"
        )
    if parts:
        whose = f"{plural(cut.examples, 'example')} {'is' if cut.examples == 1 else 'are'} longer than a block"
        warn(notify, f"{whose} of {block_size:,} tokens: {' and '.join(parts)}.")


def _report_budget(config: Config, budget: StepBudget, notify: Notify) -> None:
    """Report which of two limits ends the run. Warn if the run is far too short for random weights."""
    steps = budget.total_steps
    if config.epochs is not None and config.max_steps is not None:
        first = "--max-steps" if steps == config.max_steps else "--epochs"
        note(
            notify,
            f"The run ends after {plural(steps, 'step')}, because it reaches {first} first "
            f"(--epochs {config.epochs:g}, --max-steps {config.max_steps}).",
        )
    if models.is_new(config.model) and steps < _STEPS_FROM_SCRATCH // 3:
        warn(
            notify,
            f"{config.model} starts from random weights and needs about {_STEPS_FROM_SCRATCH:,} steps to learn to "
            f"write. This run has {steps:,}. Set --max-steps {_STEPS_FROM_SCRATCH}, use more text, or start from a "
            "trained model such as bundled.",
        )


def step_budget(config: Config, blocks: Blocks) -> StepBudget:
    """Return the step budget of a run with these settings."""
    assert config.batch_size is not None
    return StepBudget(
        len(blocks), config.batch_size, config.epochs, config.max_steps, config.eval_every, config.save_every
    )


def absolute_names(config: Config) -> Config:
    """Return the settings with absolute paths, so that the run can be resumed and compared from another folder."""

    def absolute(name: str, in_package: str) -> str:
        path = _local(name, in_package)
        return name if path is None else str(path.absolute())

    config = config.with_sources(lambda name: absolute(name, text.BUNDLED_SOURCE))
    update = {"model": absolute(config.model, models.BUNDLED_NAME)}
    if config.tokenizer is not None:
        update["tokenizer"] = absolute(config.tokenizer, models.BUNDLED_NAME)
    return config.model_copy(update=update)


def _local(name: str, in_package: str) -> Path | None:
    """Return the path with this name; None if nothing exists there or the name means something in the package."""
    path = Path(name).expanduser()
    return path if name != in_package and path.exists() else None


def evaluation_blocks(store: TokenStore, split: str, config: Config) -> Blocks | None:
    """Return the blocks of a held-out split, as sliding windows if `stride` is set. None if the split is empty."""
    if not len(store.parts_of(split)):
        return None
    assert config.block_size is not None
    if config.stride is not None:
        return windows(store, split, config.block_size, config.stride)
    return pack(store, split, config.block_size)


def require_sources(config: Config) -> None:
    """Check that the settings name at least one source of text.

    Raises:
        SourceError: they name none. The hint lists what a source can be.
    """
    if not config.sources:
        raise SourceError(
            "No text was given.", "Name a file, a folder, - for standard input, bundled:tales, or hf:DATASET."
        )


def run_directory(config: Config) -> RunDirectory:
    """Return the directory of a new run. Creates nothing yet.

    Raises:
        SourceError: no source of text was given.
        RunError: the directory exists already, or has the name of a model.
    """
    require_sources(config)
    root = config.out.expanduser() if config.out is not None else Path("runs") / (config.name or _free_name(config))
    if models.name_of_folder(root) != str(root):
        raise RunError(
            f"{root} is the name of a model, so it can't be the name of a run.", "Choose another directory with --out."
        )
    if RunDirectory(root).holds_anything():
        if not RunDirectory(root).is_run():
            raise RunError(f"{root} exists already and is not a run directory.", "Choose another directory with --out.")
        _check_not_inside(root, config)
        if not config.overwrite:
            raise RunError(
                f"{root} contains a run already.",
                f"Continue it with `{shell_command('finetale', 'resume', root)}`, replace it with --overwrite, or "
                "choose another directory with --out.",
            )
    return RunDirectory(root)


def _check_not_inside(root: Path, config: Config) -> None:
    """Check that replacing a run would not delete the text, the model or the tokenizer of the new run.

    Raises:
        RunError: one of them is inside the directory.
    """
    named = [(name, models.BUNDLED_NAME) for name in (config.model, config.tokenizer) if name is not None]
    named += [(name, text.BUNDLED_SOURCE) for name in config.all_sources]
    for name, in_package in named:
        path = _local(name, in_package)
        if path is not None and path.resolve().is_relative_to(root.resolve()):
            raise RunError(
                f"{root} can't be replaced: the new run reads {name}, which would be deleted.",
                "Choose another directory with --out.",
            )


def _free_name(config: Config) -> str:
    """Return a name under `runs` that no run has yet, made of the model, the first source and a number."""
    source = config.sources[0]
    words = [
        Path(config.model.removeprefix("new:")).name,
        kind_of_saved_text(source) or Path(re.sub(r"^(hf|bundled):", "", source)).stem or "text",
    ]
    base = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-.") or "text" for word in words)
    number = 1
    while (Path("runs") / f"{base}-{number}").exists():
        number += 1
    return f"{base}-{number}"


def _given_tokenizer(config: Config) -> Any:
    if config.tokenizer is None:
        return None
    return models.load_tokenizer(config.tokenizer, offline=config.offline)


def _batch_size(total_blocks: int, block_size: int, *, new: bool) -> int:
    """Return the default number of blocks per step: about 150 steps in total (1,500 from random weights).

    A step has 2,048 to 32,768 tokens.
    """
    least, most = (max(1, step_tokens // block_size) for step_tokens in _STEP_TOKENS)
    return min(max(least, round(total_blocks / (_STEPS_FROM_SCRATCH if new else _STEPS))), most)
