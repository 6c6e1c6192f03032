"""Selection of the engine for a model: the fastest one on this machine whose numbers are right.

A converted model is compared with PyTorch before it serves. Its scores in fp32 must agree within 0.1%, which proves the
conversion. With int8 weights its perplexity on held-out text must agree within 1%; otherwise the weights are not
rounded. The results are stored beside the converted model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetale import cache, environment, models, rundir
from finetale.errors import FinetaleError, ModelError
from finetale.export import FORMATS, openvino
from finetale.export.proof import general_texts
from finetale.generate.reading import FAILURES
from finetale.models import LoadedModel, adapter_hooks
from finetale.notify import Notify
from finetale.rundir import RunDirectory
from finetale.schema import StageEvent, WarningEvent
from finetale.server.engines import Rows, speeds
from finetale.server.engines.batching import CHUNK, BatchingEngine
from finetale.server.engines.pytorch_rows import ALL_THREADS, SeparateRows, TorchRows, WholeRows

if TYPE_CHECKING:
    from finetale.server.engines.openvino_rows import OpenVinoRows

_TORCH_TOLERANCE, _HALF_TOLERANCE = 1e-3, 0.02
"""Largest difference between scores of rows read together and alone, as a share of the largest score, in fp32 and in
types of 16 bits; bf16 has 1%."""
_CONVERTED_TOLERANCE = 1e-3
"""Largest difference between the scores of a converted model and PyTorch's, as a share of the largest score."""
MAX_PERPLEXITY_CHANGE = 0.01
"""Largest relative change of the perplexity by int8 weights."""
_ROUNDINGS: tuple[dict[str, Any], ...] = (
    {"weights": "int8", "symmetric": True, "group": 128, "fp32": False},
    {"weights": "int8", "symmetric": False, "group": 32, "fp32": False},
    {"weights": "int8", "symmetric": False, "group": 32, "fp32": True},
    {"weights": "as they are", "group": 0, "fp32": True},
)
"""Roundings of weights and activations to try, fastest first. Without `fp32`, OpenVINO computes in bf16 where the
processor has it."""
_EXACT: tuple[dict[str, Any], ...] = ({"weights": "as they are", "group": 0, "fp32": True, "exact": True},)
"""The only candidate if the numbers must be those of fp32: keys and values are in fp32 too."""
_UNTOUCHED_SECONDS = 3600.0
"""After this time without a write, an unfinished conversion counts as abandoned."""
_MODEL, _RECORD = "model.xml", "engine.json"
_PIECE = 5
"""Number of tokens of a piece when the test of an engine reads a text in pieces."""


@dataclass(frozen=True)
class Facts:
    """What an engine needs to know about a model.

    Attributes:
        vocab_size: size of the vocabulary; the model's ids from here on are padding.
        holes: ids below `vocab_size` without a token.
        context: maximum tokens of a text.
    """

    vocab_size: int
    holes: tuple[int, ...]
    context: int

    def engine(self, rows: Rows) -> BatchingEngine:
        """Return an engine on the given rows."""
        return BatchingEngine(rows, vocab_size=self.vocab_size, holes=self.holes)


def torch_engine(
    loaded: LoadedModel,
    facts: Facts,
    slots: int,
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
    *,
    adapters: bool = False,
) -> BatchingEngine:
    """Return the first PyTorch engine with right scores: all rows in one pass, one row per pass, without a cache.

    Args:
        adapters: whether jobs may have adapters. Rows with different ones must have right scores in one pass too.

    Raises:
        ModelError: no engine gives right scores.
    """
    model = loaded.model.to(dtype)
    if adapters:
        adapter_hooks.add_hooks(model)

    def alone(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
            return logits

    why = ""
    kinds: tuple[Rows, ...] = (
        TorchRows(model, context=facts.context, slots=slots, memory=memory),
        SeparateRows(model, slots=slots),
        WholeRows(model, slots=slots),
    )
    for rows in kinds:
        engine = facts.engine(rows)
        try:
            difference = max(engine.deviation(alone, min(40, facts.context)), _deviation_in_pieces(rows, alone, facts))
            if adapters and slots > 1:
                difference = max(difference, _deviation_of_adapters(rows, model, alone, facts))
        except FAILURES as error:
            why = f"its code fails: {type(error).__name__}"
            continue
        if difference <= (_TORCH_TOLERANCE if dtype == torch.float32 else _HALF_TOLERANCE):
            _copy_weights(model)
            engine.rest()
            return engine
        why = f"scores differ by {difference:.1%}"
    raise ModelError(
        f"A {model.config.model_type} model can't be served: read piece by piece, its scores differ from those of the "
        f"whole text ({why}).",
        "Choose a model such as gpt2 or EleutherAI/pythia-160m.",
    )


def _deviation_in_pieces(rows: Rows, alone: Callable[[Tensor], Tensor], facts: Facts) -> float:
    """Compare the scores of a text that is read in pieces, as long prompts are, with those of the text in one pass.

    Returns:
        The largest difference as a share of the largest score; infinite if a score is NaN.
    """
    ids = torch.arange(2, 2 + min(3 * _PIECE, facts.context))[None] % facts.vocab_size
    expected = alone(ids)[..., : facts.vocab_size].float().cpu()
    found = _alone(rows, ids, _PIECE)[..., : facts.vocab_size].cpu()
    far = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    return far if far == far else float("inf")


def _deviation_of_adapters(
    rows: Rows, model: PreTrainedModel, alone: Callable[[Tensor], Tensor], facts: Facts
) -> float:
    """Compare the scores of a row with an adapter and a row without one, read together, with those of each alone.

    Returns:
        The largest difference as a share of the largest score; infinite if a score is NaN.
    """
    ids = torch.arange(2, 2 + min(_PIECE, facts.context))[None] % facts.vocab_size
    chosen = (adapter_hooks.probe(model), None)
    worst = 0.0
    for adapter in chosen:
        rows.join((), adapter)
    try:
        with torch.inference_mode():
            found = rows.read([0, 1], ids.tolist() * 2)[:, : facts.vocab_size].cpu()
        for row, adapter in enumerate(chosen):
            with adapter_hooks.using([adapter]):
                expected = alone(ids)[0, -1, : facts.vocab_size].float().cpu()
            far = float((found[row] - expected).abs().max() / expected.abs().max().clamp(min=1))
            worst = max(worst, far if far == far else float("inf"))
    finally:
        for _ in chosen:
            rows.leave(0)
    return worst


def _copy_weights(model: torch.nn.Module) -> None:
    """Copy the weights from the mapped file into memory: overwriting a mapped file would crash the process."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def choose(
    loaded: LoadedModel,
    facts: Facts,
    *,
    slots: int,
    wanted: str,
    held_out: Callable[[], list[list[int]]],
    notify: Notify,
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
    adapters: bool = False,
    exact: bool = False,
) -> BatchingEngine:
    """Return the wanted engine, or with `auto` the fastest one whose numbers are right.

    Args:
        loaded: the model.
        facts: what an engine needs to know about it.
        slots: maximum number of completions at a time.
        wanted: auto, openvino or torch.
        held_out: callback; returns token ids of texts that the model was not trained on, none if unknown.
        notify: receives events.
        dtype: type of PyTorch's weights. Comparisons always use fp32.
        memory: maximum bytes of keys and values; None for no limit.
        adapters: whether PyTorch's jobs may have adapters.
        exact: whether a converted model computes in fp32 with the model's own weights.

    Raises:
        ConfigError: the wanted engine is not installed.
        ModelError: the wanted engine cannot serve this model.
    """
    if wanted == "openvino":
        FORMATS["openvino"].require_packages("--engine openvino")
    here = FORMATS["openvino"].is_installed()
    if wanted == "torch" or not here or (wanted == "auto" and loaded.model.device.type != "cpu"):
        return torch_engine(loaded, facts, slots, dtype, memory, adapters=adapters)
    places = _places(loaded, exact)
    found = ((kept, place) for place in places if (kept := _read_record(place)) is not None)
    limit = cache.size_limit()
    record, folder = next(found, None) or _make(loaded, facts, places, slots, held_out, notify, exact)
    held = cache.hold(folder) if folder == places[-1] else None
    cache.evict(cache.cache_root(None), limit)
    problem = record["problem"]
    if problem is None:
        if record["hurt"] is not None:
            message = f"{record['hurt']}; its weights stay as they are, which is slower."
            notify(WarningEvent(message=message))
        why = speeds.doubt(record) if wanted == "auto" else None
        if wanted == "openvino" or why is not None or _is_faster(record):
            try:
                engine = facts.engine(_rounded_rows(folder, record["rounding"], facts, slots, memory))
                if why is not None:
                    notify(StageEvent(message=f"Measuring again which engine is faster here, because {why}"))
                    record = _measured_again(record, folder, torch_engine(loaded, facts, slots), engine, facts)
                if wanted == "openvino" or _is_faster(record):
                    engine.rates = record["tokens_per_second"]
                    engine.rounds = record["rounding"]["weights"] == "int8"
                    if held is not None:  # until the engine is freed
                        weakref.finalize(engine, held.release)
                    return engine
                del engine
            except (RuntimeError, OSError) as error:  # another process deleted it, or memory ran out
                problem = f"the stored conversion can't be opened: {openvino.last_line(error)}"
    if problem is not None:
        if wanted == "openvino":
            raise ModelError(f"OpenVINO can't serve this model: {problem}.", "Use --engine torch.")
        notify(WarningEvent(message=f"OpenVINO can't serve this model: {problem}. PyTorch serves it instead."))
    engine = torch_engine(loaded, facts, slots, dtype, memory, adapters=adapters)
    engine.rates = record.get("tokens_per_second", {})
    return engine


def _rounded_rows(
    folder: Path, rounding: dict[str, Any], facts: Facts, slots: int, memory: int | None = None
) -> OpenVinoRows:
    """Return the rows of a stored conversion with the precision of a rounding."""
    from finetale.server.engines import openvino_rows

    return openvino_rows.OpenVinoRows(
        folder / _MODEL,
        context=facts.context,
        slots=slots,
        group=rounding["group"],
        fp32=rounding["fp32"],
        exact=rounding.get("exact", False),
        memory=memory,
    )


def _is_faster(record: dict[str, Any]) -> bool:
    """Return whether OpenVINO was at least as fast as PyTorch."""
    rates = record["tokens_per_second"]
    return bool(rates["openvino"] >= rates["torch"])


def _measured_again(
    record: dict[str, Any], folder: Path, reference: BatchingEngine, engine: BatchingEngine, facts: Facts
) -> dict[str, Any]:
    """Return a record with the results of another measurement, and store it."""
    found = record | speeds.combined(record, speeds.measure(reference, engine, facts.vocab_size, facts.context))
    with contextlib.suppress(OSError, FinetaleError):  # it is measured again next time
        rundir.add_file(folder, _RECORD, (json.dumps(found, indent=1) + "\n").encode())
    return found


def _places(loaded: LoadedModel, exact: bool) -> list[Path]:
    """Return the folders for the converted model: in the run's directory, then in the cache."""
    inputs = {
        "weights": loaded.provenance.sha256,
        "config": loaded.model.config.to_diff_dict(),
        "conversion": openvino.VERSION,
        "versions": environment.versions("torch", "transformers", "openvino", "nncf"),
        "machine": [platform.machine(), environment.cpu_name(), ALL_THREADS],
    } | ({"exact": True} if exact else {})
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]
    cached = cache.cache_root(None) / "engines" / f"openvino-{digest}"
    if loaded.provenance.kind == "run":
        return [RunDirectory(Path(loaded.provenance.name).expanduser()).engines / cached.name, cached]
    return [cached]


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Return the stored results of a conversion; None if there is none or it is corrupted."""
    if not rundir.is_sealed(folder) or rundir.verify_folder(folder):
        return None
    return rundir.read_json(folder / _RECORD)


def _make(
    loaded: LoadedModel,
    facts: Facts,
    places: Sequence[Path],
    slots: int,
    held_out: Callable[[], list[list[int]]],
    notify: Notify,
    exact: bool,
) -> tuple[dict[str, Any], Path]:
    """Convert a model, compare it with PyTorch and store it; return (results, folder)."""
    record: dict[str, Any] = {}

    def fill(place: Path) -> None:
        _convert(loaded, facts, place, slots, held_out, notify, record, _EXACT if exact else _ROUNDINGS)
        if record["problem"] is not None:
            for file in place.iterdir():
                file.unlink()
        (place / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    for number, place in enumerate(places):
        parent = place.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            rundir.recover(parent, untouched=_UNTOUCHED_SECONDS)
            record = {"problem": None, "hurt": None, "weights": loaded.provenance.sha256}
            rundir.write_sealed_folder(place, fill, keep=not place.exists())
        except OSError as error:
            reason = f"he converted model can't be kept in {parent}: {error.strerror or error}"
            if number < len(places) - 1:
                notify(WarningEvent(message=f"T{reason}; it goes to the cache."))
                continue
            return {"problem": f"t{reason}"}, place
        except Exception as error:  # OpenVINO raises many types; not stored, because the next try may succeed
            return {"problem": f"{type(error).__name__}: {openvino.last_line(error)}"}, place
        if number < len(places) - 1:  # in the run's directory: delete conversions of older weights
            for other in parent.glob("openvino-*"):
                if other != place and (_read_record(other) or {}).get("weights") != loaded.provenance.sha256:
                    shutil.rmtree(other, ignore_errors=True)
        return _read_record(place) or record, place  # another process may have stored the same
    raise AssertionError("there is no place for the converted model")


def _convert(
    loaded: LoadedModel,
    facts: Facts,
    place: Path,
    slots: int,
    held_out: Callable[[], list[list[int]]],
    notify: Notify,
    record: dict[str, Any],
    roundings: Sequence[dict[str, Any]],
) -> None:
    """Fill a folder with the converted model, and `record` with the results of the comparison."""
    from finetale.server.engines.openvino_rows import OpenVinoRows

    def announce(message: str) -> None:
        notify(StageEvent(message=message))

    announce(f"Converting {loaded.provenance.name} for OpenVINO (once)")
    reference = torch_engine(loaded, facts, slots)
    converted = openvino.convert(loaded.model)
    exact = facts.engine(OpenVinoRows(converted, context=facts.context, slots=2, exact=True))
    record["deviation"] = exact.deviation(lambda ids: _alone(reference.rows, ids), min(40, facts.context))
    if record["deviation"] > _CONVERTED_TOLERANCE:
        record["problem"] = f"its scores differ from PyTorch's by {record['deviation']:.1%}"
        return
    del exact
    announce("Comparing the converted model with PyTorch's")
    texts, of = held_out(), "held-out text"
    if not texts:
        lead = models.lead_of(loaded.tokenizer, models.mark_of(loaded.model))
        texts, of = general_texts(loaded.tokenizer, lead, facts.context), "general text"
    before, best = _predictions(reference.rows, texts, facts.vocab_size)
    record["perplexity"] = {"torch": before, "text": of, "tokens": sum(len(text) - 1 for text in texts)}
    for rounding in roundings:
        rounded = rounding["weights"] == "int8"
        smaller = openvino.compress(converted, symmetric=rounding["symmetric"]) if rounded else converted
        openvino.save(smaller, place / _MODEL)
        rows = _rounded_rows(place, rounding, facts, slots)
        after, chosen = _predictions(rows, texts, facts.vocab_size)
        record |= {"rounding": rounding}
        record["perplexity"] |= {"openvino": after, "same_choice": float((chosen == best).double().mean())}
        if abs(after - before) <= before * MAX_PERPLEXITY_CHANGE:
            break
        if rounded:
            record["hurt"] = f"int8 weights would change its perplexity on {of} from {before:.2f} to {after:.2f}"
    else:
        record["problem"] = f"its perplexity on {of} is {after:.2f} and not {before:.2f}"
        return
    fast = facts.engine(rows)
    announce("Measuring which engine is faster here")
    record |= speeds.measure(reference, fast, facts.vocab_size, facts.context)


def _alone(rows: Rows, ids: Tensor, piece: int = CHUNK) -> Tensor:
    """Return the scores after every token of one text, (1, tokens, vocabulary). The rows must be empty."""
    rows.join()
    try:
        with torch.inference_mode():
            # Each pass may overwrite the scores of the pass before.
            parts = [rows.read([0], part.tolist(), every=True).clone() for part in torch.split(ids, piece, dim=1)]
            return torch.cat(parts)[None]
    finally:
        rows.leave(0)


def _predictions(rows: Rows, texts: Sequence[Sequence[int]], vocab_size: int) -> tuple[float, Tensor]:
    """Return the perplexity of texts per token, and the most likely next token after each token, (all tokens,)."""
    nats, best = torch.zeros((), dtype=torch.float64), []
    for text in texts:
        ids = torch.tensor([list(text)])
        scores = _alone(rows, ids[:, :-1])[0, :, :vocab_size].cpu()
        nats += torch.nn.functional.cross_entropy(scores.double(), ids[0, 1:], reduction="sum")
        best.append(scores.argmax(dim=-1))
    likeliest = torch.cat(best)
    return float((nats / len(likeliest)).exp()), likeliest
