"""Train in several processes: the loop that all of them run, and how the others load what the main one has written."""

from __future__ import annotations

from pathlib import Path

from finetale import models, training
from finetale.config import Config, read_settings_file
from finetale.errors import FinetaleError, RankError
from finetale.pipeline.kept_text import kept_tokenizer
from finetale.pipeline.prepare import Prepared, prepare
from finetale.ranks import Ranks
from finetale.rundir import RunDirectory
from finetale.schema import Event
from finetale.signals import StopRequest
from finetale.tokens import open_store
from finetale.training import Training


def training_of(run: RunDirectory, prepared: Prepared, checkpoint: Path | None, ranks: Ranks) -> Training:
    """Return the training loop of a run, the same in all its processes."""
    config = prepared.config
    step = None if checkpoint is None else training.read_state(checkpoint).step
    return Training(
        model=prepared.loaded.model,
        tokenizer=prepared.loaded.tokenizer,
        train_blocks=prepared.train,
        validation_blocks=prepared.validation,
        settings=config,
        evaluation=config,
        directory=run,
        budget=prepared.budget,
        precision=config.precision,
        compiled=config.compile == "on",
        # A run that was ended by its patience and is resumed with a new budget must not end again immediately.
        fresh_patience=any(change.step == step for change in run.read_manifest().changes),
        adapted=prepared.adapted,
        ranks=ranks,
    )


def follow(ranks: Ranks) -> RunDirectory | None:
    """Train as another process than the main one, once that has written the run directory.

    Returns:
        the run; None if the main process had nothing to train.

    Raises:
        FinetaleError: as in the main process, which shows it.
    """
    try:
        with StopRequest() as stop:
            plan = ranks.plan(stop.check)
            if "run" not in plan:
                return None
            try:
                with ranks.together():
                    run = RunDirectory.open(plan["run"])
                    checkpoint = None if plan["checkpoint"] is None else run.checkpoints / plan["checkpoint"]
                    prepared = _prepare_from(run, checkpoint, shard=plan["shard"])
                    loop = training_of(run, prepared, checkpoint, ranks)
                loop.run(checkpoint)
            except BaseException as error:
                if not (isinstance(error, RankError) and error.lost):
                    ranks.wait_after_failure()
                raise
            ranks.wait_for_main(stop.check)
            return run
    except FinetaleError as error:
        error.told = True
        raise
    finally:
        ranks.leave()


def _prepare_from(run: RunDirectory, checkpoint: Path | None, *, shard: bool) -> Prepared:
    """Prepare a run from its directory, where all automatic settings are resolved."""

    def silent(event: Event) -> None:
        """The main process shows what there is to show."""

    config = Config.resolve(read_settings_file(run.config), {"out": str(run.root), "shard": shard})
    loaded = tokenizer = None
    if checkpoint is not None and not config.has_adapter:
        loaded = models.load(models.name_of_folder(checkpoint), dropout=models.Dropout.of(config))
    else:
        tokenizer = kept_tokenizer(run, silent)
    return prepare(config, silent, loaded=loaded, store=open_store(run.tokens), tokenizer=tokenizer)
