"""Which engine serves a model: the fastest here of those whose numbers are right.

A converted model is held against PyTorch before it serves: its scores in fp32 within 0.1% (so the conversion is right), and
with int8 weights its perplexity on held-out text within 1%, else its weights stay as they are, if that holds. What was found is
kept beside the converted model.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetale import cache, environment, rundir
from finetale.config import SamplingSettings
from finetale.errors import ModelError
from finetale.export import FORMATS, openvino
from finetale.extras import require
from finetale.models import LoadedModel
from finetale.notify import Notify
from finetale.rundir import RunDirectory
from finetale.schema import StageEvent, WarningEvent
from finetale.server.engines import Job, Rows
from finetale.server.engines.batching import BatchingEngine
from finetale.server.engines.pytorch_rows import ALL_THREADS, SeparateRows, TorchRows

_TORCH_TOLERANCE = 0.02
"""Largest difference of scores, as a share of the largest, between rows together and alone: bf16 has 1%."""
_CONVERTED_TOLERANCE = 1e-3
MOST_CHANGE = 0.01
"""Of the perplexity, by int8 weights."""
_ROUNDINGS: tuple[dict[str, Any], ...] = (
    {"weights": "int8", "symmetric": True, "group": 128},
    {"weights": "int8", "symmetric": False, "group": 32},
    {"weights": "as they are", "group": 0},
)
"""Of weights and of what they are multiplied with, the faster first."""
_UNTOUCHED_SECONDS = 3600.0
"""After which a conversion that was begun is taken for left behind."""
_MODEL, _RECORD = "model.xml", "engine.json"
_CHUNK = 256


@dataclass(frozen=True)
class Facts:
    """What an engine needs to know of a model.

    Attributes:
        vocab_size: ids from here on are padding of the vocabulary.
        holes: ids below it that are no token.
        context: tokens of a text at most.
        begin: id of beginning-of-text.
    """

    vocab_size: int
    holes: tuple[int, ...]
    context: int
    begin: int

    def engine(self, rows: Rows) -> BatchingEngine:
        """An engine on some rows."""
        return BatchingEngine(rows, vocab_size=self.vocab_size, holes=self.holes)


def torch_engine(loaded: LoadedModel, facts: Facts, slots: int, dtype: torch.dtype = torch.float32) -> BatchingEngine:
    """PyTorch: rows together where the model's code bears it, else one at a time.

    Raises:
        ModelError: the model can't go on from what it has read, in either way.
    """
    model = loaded.model.to(dtype)

    def alone(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(input_ids=ids.to(model.device)).logits
            return logits

    why = ""
    for rows in (TorchRows(model, context=facts.context, slots=slots), SeparateRows(model, slots=slots)):
        engine = facts.engine(rows)
        try:
            far = engine.deviation(alone, min(40, facts.context))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError) as error:
            why = f"its code fails: {type(error).__name__}"
            continue
        if far <= _TORCH_TOLERANCE:
            _take_weights(model)
            return engine
        why = f"scores differ by {far:.1%}"
    raise ModelError(
        f"A {model.config.model_type} model can't be served: going on from what was read does not give the scores of the whole text ({why}).",
        "`finetale generate` works with it.",
    )


def _take_weights(model: torch.nn.Module) -> None:
    """Hold weights in memory of our own: read from their file as they are used, a file that is overwritten ends the process."""
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
) -> BatchingEngine:
    """The engine that is wanted, or with `auto` the fastest whose numbers are right.

    Args:
        held_out: token ids of texts that the model was not trained on; none if it is not known.
        dtype: of PyTorch's weights; what another engine is held against is fp32.

    Raises:
        ConfigError: the engine that is wanted is not installed.
        ModelError: it can't serve this model.
    """
    if wanted == "openvino":
        for package in FORMATS["openvino"].packages:
            require(package, "--engine openvino")
    here = FORMATS["openvino"].is_installed()
    if wanted == "torch" or not here or (wanted == "auto" and loaded.model.device.type != "cpu"):
        return torch_engine(loaded, facts, slots, dtype)
    places = _places(loaded)
    found = ((kept, place) for place in places if (kept := _read_record(place)) is not None)
    limit = cache.size_limit()
    record, folder = next(found, None) or _make(loaded, facts, places, slots, held_out, notify)
    held = cache.hold(folder) if folder == places[-1] else None
    cache.evict(cache.cache_root(None), limit)
    problem = record["problem"]
    if problem is None:
        from finetale.server.engines.openvino_rows import OpenVinoRows

        if record["hurt"] is not None:
            message = f"{record['hurt']}; its weights stay as they are, which is slower."
            notify(WarningEvent(message=message))
        speeds = record["tokens_per_second"]
        if wanted == "openvino" or speeds["openvino"] >= speeds["torch"]:
            group = record["rounding"]["group"]
            try:
                rows = OpenVinoRows(folder / _MODEL, context=facts.context, slots=slots, group=group)
                engine = facts.engine(rows)
                if held is not None:  # as long as the engine lives
                    weakref.finalize(engine, held.release)
                return engine
            except (RuntimeError, OSError) as error:  # it is gone meanwhile, or there is no memory for it
                problem = f"what was kept of it can't be opened: {openvino.last_line(error)}"
    if problem is not None:
        if wanted == "openvino":
            raise ModelError(f"OpenVINO can't serve this model: {problem}.", "`--engine torch` serves it.")
        notify(WarningEvent(message=f"OpenVINO can't serve this model: {problem}. PyTorch does."))
    return torch_engine(loaded, facts, slots, dtype)


def _places(loaded: LoadedModel) -> list[Path]:
    """Where the converted model may stand: in the run's directory, or in the cache, under a hash of all it comes from."""
    words = {
        "weights": loaded.provenance.sha256,
        "config": loaded.model.config.to_diff_dict(),
        "conversion": openvino.VERSION,
        "versions": environment.versions("torch", "transformers", "openvino", "nncf"),
        "machine": [platform.machine(), environment.cpu_name(), ALL_THREADS],
    }
    digest = hashlib.sha256(json.dumps(words, sort_keys=True, default=str).encode()).hexdigest()[:16]
    cached = cache.cache_root(None) / "engines" / f"openvino-{digest}"
    if loaded.provenance.kind == "run":
        return [RunDirectory(Path(loaded.provenance.name).expanduser()).engines / cached.name, cached]
    return [cached]


def _read_record(folder: Path) -> dict[str, Any] | None:
    """What was found when the model was converted; None if it was not, or is damaged."""
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
) -> tuple[dict[str, Any], Path]:
    """Convert a model, hold it against PyTorch, and keep it; (what was found, where it stands)."""
    record: dict[str, Any] = {}

    def fill(place: Path) -> None:
        _convert(loaded, facts, place, slots, held_out, notify, record)
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
            elsewhere = "; it is kept in the cache" if number < len(places) - 1 else ""
            message = f"The converted model can't be kept in {parent}: {error.strerror or error}{elsewhere}."
            notify(WarningEvent(message=message))
            continue
        except Exception as error:  # whatever OpenVINO, its compressor or the tracer meet; not kept, for it may pass
            return {"problem": f"{type(error).__name__}: {openvino.last_line(error)}"}, place
        if number < len(places) - 1:  # in the run: those of earlier weights serve nobody
            for other in parent.glob("openvino-*"):
                if other != place and (_read_record(other) or {}).get("weights") != loaded.provenance.sha256:
                    shutil.rmtree(other, ignore_errors=True)
        return _read_record(place) or record, place  # another process may have made the same meanwhile
    return {"problem": "there is no place to keep it"}, places[-1]


def _convert(
    loaded: LoadedModel,
    facts: Facts,
    place: Path,
    slots: int,
    held_out: Callable[[], list[list[int]]],
    notify: Notify,
    record: dict[str, Any],
) -> None:
    """Fill a folder with a converted model, and `record` with what was found of it."""
    from finetale.server.engines.openvino_rows import OpenVinoRows

    def say(message: str) -> None:
        notify(StageEvent(message=message))

    say(f"Converting {loaded.provenance.name} for OpenVINO (once)")
    reference = torch_engine(loaded, facts, slots)
    converted = openvino.convert(loaded.model)
    exact = facts.engine(OpenVinoRows(converted, context=facts.context, slots=2, exact=True))
    record["deviation"] = exact.deviation(lambda ids: _alone(reference.rows, ids), min(40, facts.context))
    if record["deviation"] > _CONVERTED_TOLERANCE:
        record["problem"] = f"its scores differ from PyTorch's by {record['deviation']:.1%}"
        return
    del exact
    say("Measuring what int8 weights change")
    texts, of = held_out(), "held-out text"
    if not texts:
        texts, of = _own_samples(reference, facts), "text that it wrote"
    before = _perplexity(reference.rows, texts, facts.vocab_size)
    record["perplexity"] = {"torch": before, "text": of, "tokens": sum(len(text) - 1 for text in texts)}
    for rounding in _ROUNDINGS:
        rounded = rounding["weights"] == "int8"
        smaller = openvino.compress(converted, symmetric=rounding["symmetric"]) if rounded else converted
        openvino.save(smaller, place / _MODEL)
        rows = OpenVinoRows(place / _MODEL, context=facts.context, slots=slots, group=rounding["group"])
        after = _perplexity(rows, texts, facts.vocab_size)
        record |= {"rounding": rounding}
        record["perplexity"]["openvino"] = after
        if abs(after - before) <= before * MOST_CHANGE:
            break
        if rounded:
            record["hurt"] = f"int8 weights would change its perplexity on {of} from {before:.2f} to {after:.2f}"
    else:
        record["problem"] = f"its perplexity on {of} is {after:.2f} and not {before:.2f}"
        return
    fast = facts.engine(rows)
    say("Measuring which engine is faster here")
    rounds = [(_speed(reference, facts), _speed(fast, facts)) for _ in range(2)]  # in turns, for machines are noisy
    record["tokens_per_second"] = {
        "torch": round(max(speed for speed, _ in rounds), 1),
        "openvino": round(max(speed for _, speed in rounds), 1),
    }


def _alone(rows: Rows, ids: Tensor) -> Tensor:
    """Scores after every token of one text, (1, tokens, vocabulary)."""
    row = rows.join()
    try:
        with torch.inference_mode():
            # Each pass may write over the scores of the one before.
            parts = [rows.read(row, part.tolist(), every=True).clone() for part in torch.split(ids, _CHUNK, dim=1)]
            return torch.cat(parts)[None]
    finally:
        rows.leave(row)


def _perplexity(rows: Rows, texts: Sequence[Sequence[int]], vocab_size: int) -> float:
    nats = torch.zeros((), dtype=torch.float64)
    number = 0
    for text in texts:
        ids = torch.tensor([list(text)])
        scores = _alone(rows, ids[:, :-1])[0, :, :vocab_size]
        nats += torch.nn.functional.cross_entropy(scores.cpu().double(), ids[0, 1:], reduction="sum")
        number += len(text) - 1
    return float((nats / max(1, number)).exp())


def _own_samples(engine: BatchingEngine, facts: Facts, number: int = 8, length: int = 128) -> list[list[int]]:
    """Token ids of texts that a model wrote: where nothing else is known of it, those are what it should find likely."""
    settings = SamplingSettings.resolve({"temperature": 1.0, "top_p": 1.0, "seed": 0})
    length = min(length, facts.context - 1)
    found = []
    for start in range(0, number, engine.slots):
        jobs = [
            Job([facts.begin], settings, sample=sample) for sample in range(start, min(start + engine.slots, number))
        ]
        engine.admit([[job] for job in jobs])
        for _ in range(length):
            engine.step()
        for job in jobs:
            found.append([*job.ids, *(token for token in job.tokens if token >= 0)])
            engine.drop(job)
    return [text for text in found if len(text) > 1]


def _speed(engine: BatchingEngine, facts: Facts, texts: int = 8, prompt: int = 32, steps: int = 12) -> float:
    """Tokens a second of some texts together, the prompts read besides."""
    settings = SamplingSettings.resolve({"temperature": 0})
    ids = [token % facts.vocab_size for token in range(1, max(1, min(prompt, facts.context - steps)) + 1)]
    jobs = [Job([token % facts.vocab_size for token in ids], settings) for _ in range(min(texts, engine.slots))]
    threads = torch.get_num_threads()
    torch.set_num_threads(engine.threads)
    started = time.perf_counter()
    engine.admit([[job] for job in jobs])
    for _ in range(steps):
        engine.step()
    seconds = time.perf_counter() - started
    torch.set_num_threads(threads)
    for job in jobs:
        engine.drop(job)
    return len(jobs) * steps / seconds
