"""Export a model to another format: write it, load it with the program that it is for, prove it, and hand it over."""

from __future__ import annotations

import contextlib
import difflib
import math
from dataclasses import asdict
from pathlib import Path

from finetale import environment, models
from finetale.errors import ConfigError, ModelError, RunError
from finetale.export import FORMATS, Format
from finetale.export.proof import Proof, check_tokens, general_texts, prove
from finetale.export.runtimes import Runtime
from finetale.export.torch_runtime import TorchRuntime
from finetale.generate import Generator
from finetale.models import LoadedModel
from finetale.notify import Notify, stage, warn
from finetale.out_of_memory import memory_errors
from finetale.pipeline.evaluating import held_out_ids
from finetale.report import export_card
from finetale.rundir import RunDirectory, is_sealed, write_record, write_sealed_folder
from finetale.schema import ExportFile

RECORD_NAME = "export.json"
CARD_NAME = "README.md"
_MOST_TOKENS = 4096
_WINDOW = 512
"""Most tokens of the proof, and of one text."""


@memory_errors()
def export_model(
    name: str,
    to: str,
    notify: Notify,
    *,
    weights: str | None = None,
    out: Path | None = None,
    accept_loss: bool = False,
    revision: str | None = None,
    offline: bool = False,
) -> tuple[Path, ExportFile]:
    """Write a model in another format; return the folder and the result of its proof.

    The folder is written at once, after the proof. An export of the same format that is there is replaced.

    Args:
        name: the model.
        to: name of the format.
        weights: type of the weights. None: the format's first.
        out: folder to write. None: in `exports/` of a run, otherwise in the current folder.
        accept_loss: keep an export that differs more than the format's bounds.

    Raises:
        ConfigError: the format or type is unknown, or a package is missing.
        ModelError: the model can't be exported, or the exported model differs too much.
        RunError: `out` is in use.
    """
    chosen, kind = _chosen(to, weights)
    chosen.require_packages(f"Exporting to {to}")
    place = _place(name, chosen, kind, out)
    stage(notify, f"Loading {name}")
    loaded = models.load(name, revision=revision, offline=offline)
    if loaded.warning:
        warn(notify, loaded.warning)
    models.warn_if_unfinished(loaded.provenance, notify)
    exporter = chosen.exporter
    exporter.check(loaded)
    records: list[ExportFile] = []

    def fill(folder: Path) -> None:
        stage(notify, f"Writing {to} with {kind} weights")
        exporter.write(loaded, folder, kind)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        with contextlib.closing(exporter.open(folder, loaded)) as runtime:
            proof, text = _proof(loaded, runtime, notify)
            record = _record(loaded, chosen, kind, size, runtime.name, proof, text)
        records.append(_judged(record, accept_loss, notify))
        write_record(folder / RECORD_NAME, records[-1])
        card = export_card(records[-1], purpose=chosen.purpose, usage=exporter.usage(folder))
        (folder / CARD_NAME).write_text(card, encoding="utf-8")

    place.parent.mkdir(parents=True, exist_ok=True)
    write_sealed_folder(place, fill)
    return place, records[-1]


def list_formats(name: str, *, revision: str | None = None, offline: bool = False) -> list[dict[str, object]]:
    """Return what each format is for: its name, types of weights with their size for a model, and what is missing.

    A format for adapters has no types of weights for a model that has none on this machine.
    """
    parameters = models.count_parameters(name, revision=revision, offline=offline)
    run = RunDirectory(Path(name).expanduser())
    adapter = run.adapter if run.is_run() else run.root
    shapes = models.adapter_files.read_shapes(adapter) if models.is_adapter(adapter) else {}
    in_adapter = sum(map(math.prod, shapes.values()))
    return [
        {
            "format": each.name,
            "purpose": each.purpose,
            "weights": {
                kind: round((in_adapter if each.only_adapters else parameters) * value.bits / 8)
                for kind, value in each.weights.items()
                if shapes or not each.only_adapters
            },
            "installed": each.is_installed(),
            "extra": each.extra,
            "missing": each.missing(),
        }
        for each in FORMATS.values()
    ]


def _chosen(to: str, weights: str | None) -> tuple[Format, str]:
    """Return the format, and the name of its type of weights.

    Raises:
        ConfigError: one of them is unknown.
    """
    names = [each.name for each in FORMATS.values()]
    if to not in names:
        near = difflib.get_close_matches(to, names, 1)
        raise ConfigError(
            f"The format {to!r} is unknown. Known are {', '.join(names)}.",
            f"Did you mean --to {near[0]}?" if near else "finetale export MODEL --to list says what each is for.",
        )
    kinds = list(FORMATS[to].weights)
    if weights is not None and weights not in kinds:
        raise ConfigError(
            f"The format {to} has no weights of the type {weights!r}. It has {', '.join(kinds)}.",
            f"The default is --weights {kinds[0]}.",
        )
    return FORMATS[to], weights or kinds[0]


def _place(name: str, chosen: Format, kind: str, out: Path | None) -> Path:
    """Return the folder to write.

    Raises:
        RunError: it holds something else than an earlier export.
    """
    ending = f"{chosen.name}-{kind}"
    if out is None:
        run = RunDirectory(Path(name).expanduser())
        if run.is_run() and run.exports.is_symlink():
            raise RunError(f"{run.exports} is a symbolic link, which is not followed.", "Choose a folder with --out.")
        out = run.exports / ending if run.is_run() else Path(f"{Path(name).name.replace(':', '-')}-{ending}")
    out = out.expanduser()
    is_export = is_sealed(out) and (out / RECORD_NAME).is_file()
    if out.is_symlink() or (out.exists() and not is_export and (not out.is_dir() or any(out.iterdir()))):
        raise RunError(f"{out} exists already and is not an export.", "Choose another folder with --out.")
    return out


def _proof(loaded: LoadedModel, runtime: Runtime, notify: Notify) -> tuple[Proof, str]:
    """Compare an exported model with the original; return the result, and what text was read."""
    generator = Generator(loaded.model, loaded.tokenizer)
    window = min(generator.context, _WINDOW)
    texts, of = held_out_ids(loaded, notify, most=_MOST_TOKENS, window=window), "held-out text"
    texts = [text for text in texts if len(text) > 1]
    if not texts:
        texts, of = general_texts(loaded.tokenizer, generator.lead, window), "general text"
    original = TorchRuntime(loaded.model, loaded.tokenizer)
    stage(notify, f"Loaded by {runtime.name}; comparing with PyTorch")
    check_tokens(original, runtime, [loaded.tokenizer.decode(text, skip_special_tokens=True) for text in texts])

    def progress(done: int, total: int) -> None:
        stage(notify, "Comparing with PyTorch", done=done, total=total, unit="tokens")

    return prove(original, runtime, texts, generator.vocab_size, generator.context, progress=progress), of


def _record(
    loaded: LoadedModel, chosen: Format, kind: str, size: int, runtime: str, proof: Proof, text: str
) -> ExportFile:
    bounds = chosen.weights[kind]
    return ExportFile(
        model=loaded.provenance.name,
        model_sha256=loaded.provenance.sha256,
        format=chosen.name,
        weights=kind,
        bytes=size,
        runtime=runtime,
        processor=environment.cpu_name(),
        text=text,
        largest_change=bounds.largest_change,
        smallest_same_choice=bounds.same_choice,
        **asdict(proof) | {"change": proof.change},
    )


def _judged(record: ExportFile, accept_loss: bool, notify: Notify) -> ExportFile:
    """Return the record if the exported model is within the bounds, or if its loss is accepted.

    Raises:
        ModelError: it is outside of them.
    """
    problems = []
    if record.change.percent > record.largest_change:
        problems.append(
            f"its perplexity on {record.text} is {record.perplexity:.2f} in place of {record.original_perplexity:.2f} "
            f"({record.change.percent:+.2f}%, bound +{record.largest_change:g}%)"
        )
    if record.same_choice < record.smallest_same_choice:
        problems.append(
            f"its most likely next token is the original's in {record.same_choice:.1%} of the places "
            f"(bound {record.smallest_same_choice:.1%})"
        )
    if not problems:
        return record
    message = f"The exported model differs too much: {' and '.join(problems)}."
    if not accept_loss:
        others = [kind for kind in FORMATS[record.format].weights if kind != record.weights]
        hint = f"Choose --weights {' or '.join(others)}, or" if others else "Choose another format, or"
        raise ModelError(message, f"{hint} keep it with --accept-loss. Nothing was written.")
    warn(notify, message)
    return record.model_copy(update={"accepted_loss": True})
