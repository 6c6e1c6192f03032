"""Test that every engine gives the same numbers as PyTorch, and is not used otherwise."""

from __future__ import annotations

import gc
import json
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
)

from finetale import models, pipeline, rundir, speed
from finetale.config import SamplingSettings
from finetale.errors import ConfigError, GenerationError, ModelError
from finetale.export import openvino, tracing
from finetale.generate import Generator
from finetale.models import LoadedModel
from finetale.pipeline import evaluating
from finetale.server.engines import Job, Rows, selection, speeds
from finetale.server.engines.batching import BatchingEngine
from finetale.server.engines.openvino_rows import OpenVinoRows
from finetale.server.engines.pytorch_rows import SeparateRows, TorchRows
from finetale.tokens import begin_and_end
from tiny import model as tiny_model
from tiny import save_model

VOCABULARY = 300
SHAPE = {
    "vocab_size": VOCABULARY,
    "n_positions": 256,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 2,
    "initializer_range": 0.2,
}
NEO = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 256}
FACTS = selection.Facts(VOCABULARY, (), 256)


def build(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return speed.apply(model.eval())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build(GPT2Config(**SHAPE))


@pytest.fixture(scope="module")
def converted(model: PreTrainedModel) -> Any:
    return openvino.convert(model)


def play(rows: Rows) -> list[tuple[list[int], list[float]]]:
    """Run jobs that arrive and leave at random, some of them copies.

    Return the tokens and log-probabilities of each job in order of arrival.
    """
    engine = FACTS.engine(rows)
    drawn = random.Random(1)
    jobs: list[Job] = []
    running: list[Job] = []
    logprobs: dict[int, list[float]] = {}
    together = 0
    for _ in range(100):
        groups = []
        free = engine.slots - engine.active
        while (copies := drawn.choice([1, 1, 3])) <= free and drawn.random() < 0.4:
            ids = [drawn.randrange(VOCABULARY) for _ in range(drawn.choice([1, 7, 31, 32, 33, 90]))]
            settings = SamplingSettings.resolve({"temperature": drawn.choice([0.0, 1.0]), "top_p": 1.0, "seed": 5})
            reads_prompt = drawn.random() < 0.3
            groups.append(
                [Job(ids, settings, sample=sample, top=0, reads_prompt=reads_prompt) for sample in range(copies)]
            )
            free -= copies
        if groups:
            together += len(groups) > 1
            engine.start(groups)
            jobs += [job for group in groups for job in group]
            running += [job for group in groups for job in group]
        if running:
            for job, token in engine.step():
                assert token.logprob is not None
                logprobs.setdefault(id(job), []).append(token.logprob)
        for job in list(running):
            if drawn.random() < 0.06:
                engine.drop(job)
                running.remove(job)
    assert max(len(job.tokens) for job in jobs) > 20
    assert together > 3
    return [(job.tokens, [*(token.logprob or 0 for token in job.prompt), *logprobs.get(id(job), [])]) for job in jobs]


@pytest.fixture(scope="module")
def reference(model: PreTrainedModel) -> list[tuple[list[int], list[float]]]:
    return play(TorchRows(model, context=256, slots=6))


def test_a_converted_model_gives_the_same_tokens_and_probabilities(converted: Any, reference: Any) -> None:
    found = play(OpenVinoRows(converted, context=256, slots=6, exact=True))
    assert len(found) == len(reference) > 10
    for (tokens, logprobs), (expected, numbers) in zip(found, reference, strict=True):
        assert tokens == expected
        # Keys and values are held in 16 bits.
        assert logprobs == pytest.approx(numbers, abs=5e-3)


def test_separate_rows_give_the_same_tokens_and_probabilities(model: PreTrainedModel, reference: Any) -> None:
    for (tokens, logprobs), (expected, numbers) in zip(play(SeparateRows(model, slots=6)), reference, strict=True):
        assert tokens == expected
        assert logprobs == pytest.approx(numbers, abs=1e-4)


def all_rows(model: PreTrainedModel, converted: Any, kind: str, **values: Any) -> Rows:
    if kind == "torch":
        return TorchRows(model, context=256, slots=6, **values)
    if kind == "separate":
        return SeparateRows(model, slots=6)
    return OpenVinoRows(converted, context=256, slots=6, exact=True, **values)


def finish(engine: BatchingEngine, jobs: list[Job], *, length: int, chunk: int) -> int:
    """Run jobs until each has `length` tokens; return how often a job had to give its row back."""
    left, pauses, was_full = list(jobs), 0, False
    while left:
        engine.read(chunk)
        engine.step()
        pauses += engine._is_full and not was_full
        was_full = engine._is_full
        for job in [job for job in left if len(job.tokens) >= length]:
            engine.drop(job)
            left.remove(job)
    assert engine.active == 0
    return pauses


@pytest.mark.parametrize("kind", ["torch", "separate", "openvino"])
def test_neither_chunks_nor_little_memory_change_a_text(model: PreTrainedModel, converted: Any, kind: str) -> None:
    drawn = random.Random(3)
    prompts = [[drawn.randrange(VOCABULARY) for _ in range(length)] for length in (200, 5, 90, 33, 150, 64)]

    def jobs() -> list[Job]:
        made = []
        for number, ids in enumerate(prompts):
            settings = SamplingSettings.resolve({"temperature": number % 2, "top_p": 1.0, "seed": 5})
            made.append(Job(ids, settings, top=0, reads_prompt=number == 2))
        return made

    alone = jobs()
    for job in alone:
        engine = FACTS.engine(all_rows(model, converted, kind))
        engine.start([[job]])
        finish(engine, [job], length=20, chunk=256)
    for values, chunk in (({}, 7), ({"memory": 0}, 50), ({"memory": 500_000}, 50)):
        together = jobs()
        engine = FACTS.engine(all_rows(model, converted, kind, **values))
        engine.admit([[job] for job in together])
        pauses = finish(engine, together, length=20, chunk=chunk)
        assert (pauses > 0) == (bool(values) and kind != "separate")
        assert [job.tokens for job in together] == [job.tokens for job in alone]
        for job, single in zip(together, alone, strict=True):
            assert [token.logprob for token in job.prompt] == pytest.approx(
                [token.logprob for token in single.prompt], abs=5e-3
            )
        engine.rest()
        assert engine.rows.num_bytes <= 16 * 32 * 2 * 2 * 64 * 4, "the memory is returned"


def test_a_prompt_that_fails_in_a_pass_with_running_texts_fails_alone(
    converted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = SamplingSettings.resolve({"temperature": 0})
    bad = 17
    expected = Job([3, 4, 5], greedy)
    engine = FACTS.engine(all_rows(None, converted, "openvino"))  # type: ignore[arg-type]
    engine.start([[expected]])
    finish(engine, [expected], length=8, chunk=32)
    read = engine.rows.read
    sizes: list[list[int]] = []

    def failing(rows: Any, ids: Any, **more: Any) -> Any:
        sizes.append([len(new) for new in ids])
        if any(new[:1] == [bad] for new in ids):
            raise RuntimeError("this prompt fails")
        return read(rows, ids, **more)

    running, wrong, right = Job([3, 4, 5], greedy), Job([bad, 2, 3], greedy), Job([6, 7, 8, 9], greedy)
    engine.start([[running]])
    engine.step()
    monkeypatch.setattr(engine.rows, "read", failing)
    engine.admit([[wrong], [right]])
    found = dict(engine.read(32))
    assert str(found.pop(wrong)) == "this prompt fails"
    assert found == {right: None}
    assert sizes == [[1, 3, 4], [3], [4]], "a pass for all, then one for each prompt"
    engine.step()
    last = Job([9, 8, 7, 6, 5], greedy)
    engine.admit([[last]])
    sizes.clear()
    engine.read(32)
    engine.step()
    assert sizes == [[1, 1, 5]], "the running texts share the pass, and the step needs none"
    finish(engine, [running, right, last], length=8, chunk=32)
    assert running.tokens == expected.tokens


@pytest.mark.parametrize(("kind", "block"), [("torch", 64), ("openvino", 32)])
def test_a_prompt_asked_twice_is_read_once(
    model: PreTrainedModel, converted: Any, monkeypatch: pytest.MonkeyPatch, kind: str, block: int
) -> None:
    engine = FACTS.engine(all_rows(model, converted, kind))
    settings = SamplingSettings.resolve({"temperature": 0})
    counts: list[int] = []
    read = engine.rows.read

    def counting(rows: Any, ids: Any, **more: Any) -> Any:
        counts.append(sum(map(len, ids)))
        return read(rows, ids, **more)

    monkeypatch.setattr(engine.rows, "read", counting)
    prompt = [number * 7 % VOCABULARY for number in range(150)]
    found = []
    for ids in (prompt, prompt, [*prompt[:100], 1, *prompt[101:]], prompt):
        job = Job(ids, settings)
        counts.clear()
        engine.start([[job]])
        found.append((counts[0], job))
        finish(engine, [job], length=10, chunk=256)
    assert [count for count, _ in found] == [150, 150 - 128, 150 - 100 // block * block, 150 - 128]
    assert found[0][1].tokens == found[1][1].tokens == found[3][1].tokens
    engine = FACTS.engine(all_rows(model, converted, kind))
    fresh, beside = Job(found[2][1].ids, settings), Job(prompt, settings)
    engine.start([[fresh]])
    assert engine.rows.join(prompt) == 100 // block * block, "a running text counts too"
    engine.rows.leave(1)
    engine.start([[beside]])
    finish(engine, [fresh, beside], length=10, chunk=256)
    assert fresh.tokens == found[2][1].tokens
    assert beside.tokens == found[0][1].tokens


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=128,
            max_position_embeddings=256,
        ),
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=128,
            max_position_embeddings=256,
            word_embed_proj_dim=64,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_other_architectures_are_converted(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.GROUPED_HEADS, "1")  # as after an engine of PyTorch
    other = build(config)
    engine = FACTS.engine(OpenVinoRows(openvino.convert(other), context=256, slots=2, exact=True))
    assert engine.deviation(lambda ids: other(input_ids=ids).logits.detach()) < 1e-3


def test_a_conversion_does_not_change_the_model(model: PreTrainedModel, converted: Any) -> None:
    assert speed.is_applied(model)
    assert speed.packs_documents(model)
    assert "fused" in speed.applied(model)["activation"]


def test_models_without_a_batched_cache_are_served_one_row_at_a_time(tmp_path: Path) -> None:
    neo = build(GPTNeoConfig(**NEO | {"vocab_size": 400}, attention_types=[[["global", "local"], 1]], window_size=4))
    loaded = models.load(str(save_model(tmp_path / "tiny")))
    generator = Generator(neo, loaded.tokenizer)
    facts = selection.Facts(generator.vocab_size, (), 256)
    engine = selection.torch_engine(LoadedModel(neo, loaded.tokenizer, loaded.provenance), facts, 4)
    assert engine.name == "torch, one at a time"
    settings = SamplingSettings.resolve({"temperature": 1.0, "max_new_tokens": 20, "seed": 3})
    ids = [*generator.lead, *loaded.tokenizer("The lamp")["input_ids"]]
    jobs = [Job(ids, settings, sample=sample) for sample in range(3)]
    engine.start([jobs])
    for _ in range(20):
        engine.step()
    expected = generator.generate(["The lamp"], settings, n=3)[0]
    for job, sample in zip(jobs, expected, strict=True):
        assert loaded.tokenizer.decode(job.tokens).startswith(sample.text)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setenv("FINETALE_CACHE", str(tmp_path / "cache"))
    return models.open_model(str(save_model(tmp_path / "tiny")), lambda event: None)


def chosen(loaded: LoadedModel, wanted: str = "openvino", **values: Any) -> tuple[BatchingEngine, list[dict[str, Any]]]:
    events: list[Any] = []
    generator = Generator(loaded.model, loaded.tokenizer)
    facts = selection.Facts(generator.vocab_size, (), generator.context)
    given: dict[str, Any] = {"slots": 4, "held_out": list, "notify": events.append} | values
    return selection.choose(loaded, facts, wanted=wanted, **given), events


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.rglob("engine.json"))]


def record_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("engines/openvino-*/engine.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_a_model_is_converted_once(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, events = chosen(loaded)
    assert engine.name == "openvino"
    assert any("Converting" in event.message for event in events)
    record = record_of(tmp_path / "cache")
    assert record["problem"] is None
    assert record["deviation"] < 1e-3
    assert record["perplexity"]["openvino"] == pytest.approx(
        record["perplexity"]["torch"], rel=selection.MAX_PERPLEXITY_CHANGE
    )
    assert record["tokens_per_second"].keys() == {"torch", "openvino"}

    monkeypatch.setattr(openvino, "convert", None)
    engine, events = chosen(loaded)
    assert engine.name == "openvino"
    assert not events
    (binary,) = (tmp_path / "cache").glob("engines/*/model.bin")
    binary.write_bytes(binary.read_bytes()[:-5])
    with pytest.raises(ModelError, match="NoneType"):  # it converts the model again
        chosen(loaded)


def test_a_run_keeps_its_conversion(loaded: LoadedModel, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rundir.write_json(run / "run.json", {"schema": 1})
    provenance = models.Provenance(str(run), "run", None, "one", 1)
    texts = [[0, 5, 9, 7, 3, 20, 8], [0, 4, 4, 4]]
    chosen(LoadedModel(loaded.model, loaded.tokenizer, provenance), held_out=lambda: texts)
    assert record_of(run)["perplexity"]["text"] == "held-out text"
    assert record_of(run)["perplexity"]["tokens"] == 9
    # Other weights: the conversion of the old weights is replaced.
    other = models.Provenance(str(run), "run", None, "another", 1)
    chosen(LoadedModel(loaded.model, loaded.tokenizer, other))
    assert record_of(run)["perplexity"]["text"] == "general text"


def test_the_conversion_of_a_read_only_run_is_kept_in_the_cache(loaded: LoadedModel, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rundir.write_json(run / "run.json", {"schema": 1})
    (run / "engines").write_text("a file in place of the folder", encoding="utf-8")
    other = tmp_path / "cache/engines/openvino-of-another-model"
    other.mkdir(parents=True)
    provenance = models.Provenance(str(run), "run", None, "one", 1)
    for number in range(2):
        _, events = chosen(LoadedModel(loaded.model, loaded.tokenizer, provenance))
        assert any("Converting" in event.message for event in events) == (number == 0), (
            "the model is converted only once"
        )
    assert other.exists()


@pytest.mark.parametrize("kind", ["torch", "separate", "openvino"])
def test_failed_prompts_leave_no_row(
    model: PreTrainedModel, converted: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Any = all_rows(model, converted, kind)
    engine = FACTS.engine(rows)
    settings = SamplingSettings.resolve({"temperature": 0})

    def job(length: int, **values: Any) -> Job:
        return Job([number * 7 % VOCABULARY for number in range(length)], settings, **values)

    alone = job(40)
    engine.start([[alone]])
    for _ in range(10):
        engine.step()
    engine.drop(alone)

    kept = job(40)
    engine.start([[kept]])
    read, calls = rows.read, []

    def broken(row: int) -> int:
        raise RuntimeError("no more memory")

    def fail(*words: Any, **more: Any) -> Any:
        calls.append(words)
        if len(calls) >= 2:
            raise RuntimeError("no more memory")
        return read(*words, **more)

    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(rows, "read", fail)
        with pytest.raises(RuntimeError, match="no more memory"):
            engine.start([[job(5)], [job(9, reads_prompt=True)], [job(5)]])
    engine.step()
    assert engine.active == 1

    # A job whose copy fails reads the prompt itself.
    with monkeypatch.context() as patch:
        patch.setattr(rows, "copy", broken)
        copies = [job(5), job(5), job(5)]
        engine.start([copies, [job(9)]])
    engine.step()
    assert len({tuple(each.tokens) for each in copies}) == 1
    assert engine.active == 5
    for each in [seat.job for seat in engine._seats if seat.job is not kept]:
        engine.drop(each)
    for _ in range(8):
        engine.step()
    assert kept.tokens == alone.tokens
    engine.start([[job(70 + number)] for number in range(5)])  # all slots are there
    engine.step()
    assert len(kept.tokens) == 11


def test_rows_survive_running_out_of_memory_once(converted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = OpenVinoRows(converted, context=256, slots=6, exact=True)
    engine = FACTS.engine(rows)
    settings = SamplingSettings.resolve({"temperature": 0})

    def job(length: int) -> Job:
        return Job([number * 7 % VOCABULARY for number in range(length)], settings)

    alone, other = job(40), job(9)
    for each in (alone, other):
        engine.start([[each]])
        for _ in range(10):
            engine.step()
        engine.drop(each)
    first, kept = job(9), job(40)
    engine.start([[first], [kept]])
    tensor, calls = rows._tensor, []

    def second(*words: Any) -> Any:
        if len(words) == 2 and isinstance(words[1], list):  # a pool
            calls.append(words)
            if len(calls) > 1:
                raise MemoryError
        return tensor(*words)

    with monkeypatch.context() as patch:
        patch.setattr(rows, "_tensor", second)
        with pytest.raises(MemoryError):
            engine.start([[job(200)] for _ in range(4)])
    assert len(rows._table.rows) == engine.active == 2
    engine.start([[job(200)] for _ in range(4)])  # there is memory again
    engine.step()
    engine.drop(first)
    for _ in range(9):
        engine.step()
    assert kept.tokens == alone.tokens
    assert first.tokens == other.tokens[:1]


def test_finished_rows_leave_no_nan_in_the_cache(model: PreTrainedModel) -> None:
    """Attention multiplies masked values by zero, and zero times NaN is NaN."""
    rows = TorchRows(model, context=256, slots=4)
    with torch.inference_mode():
        for row, length in enumerate((50, 90, 20)):
            rows.join()
            rows.read([row], [list(range(length))])
        (cache,) = rows._caches.values()
        for keys, values in cache._store:
            keys[1, :, :90], values[1, :, :90] = float("nan"), float("nan")
        rows.leave(1)
        rows.leave(0)
        for keys, values in cache._store:
            assert not keys.isnan().any()
            assert not values.isnan().any()
        rows.join()
        rows.join()
        rows.read([1], [list(range(120))])
        rows.read([2], [[1]])
        assert not rows.read([0, 1, 2], [[1], [1], [1]]).isnan().any()


def test_nan_scores_of_a_prompt_are_reported() -> None:
    broken = build(GPT2Config(**SHAPE))
    with torch.no_grad():
        broken.get_input_embeddings().weight[7] = float("inf")
    engine = FACTS.engine(TorchRows(broken, context=256, slots=4))
    settings = SamplingSettings.resolve({"temperature": 0})
    with pytest.raises(GenerationError, match="not numbers"):
        engine.start([[Job([1, 7, 2], settings, top=0, reads_prompt=True)]])
    assert engine.active == 0


@pytest.mark.usefixtures("here")
def test_held_out_texts_are_measured_in_pieces() -> None:
    loaded = models.load("run")
    begin, _ = begin_and_end(loaded.tokenizer)
    whole = pipeline.held_out_ids(loaded, lambda event: None, most=10**6, window=10**6)
    pieces = pipeline.held_out_ids(loaded, lambda event: None, most=10**6, window=9)
    assert all(ids[0] == begin and 2 <= len(ids) <= 9 for ids in pieces)
    for number, ids in enumerate(whole):
        assert pieces[number] == ids[:9], "the first pieces are the beginnings of the documents"
    assert len(pieces) == sum(-(-(len(ids) - 1) // 8) for ids in whole)
    assert sorted(token for ids in pieces for token in ids[1:]) == sorted(token for ids in whole for token in ids[1:])
    few = pipeline.held_out_ids(loaded, lambda event: None, most=20, window=9)
    assert [len(ids) - 1 for ids in few] == [8, 8, 4]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("sources", [["-"], ["stories", "hf:some/dataset"]])
def test_text_of_stdin_or_the_hub_is_not_read_again(sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of older versions have no stored tokens. Their text cannot be read again from these sources."""
    loaded = models.load("run")
    monkeypatch.setattr(evaluating, "kept_text", lambda *words: None)
    monkeypatch.setattr(evaluating, "read_settings_file", lambda file: {"sources": sources})
    monkeypatch.setattr(evaluating, "tokenise", lambda *words: pytest.fail("the text was read again"))
    assert pipeline.held_out_ids(loaded, lambda event: None, most=100, window=9) == []


def test_a_run_keeps_a_conversion_for_each_machine(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    rundir.write_json(run / "run.json", {"schema": 1})
    of_run = LoadedModel(loaded.model, loaded.tokenizer, models.Provenance(str(run), "run", None, "one", 1))
    for threads, converts in ((2, True), (1, True), (2, False), (1, False)):
        monkeypatch.setattr(selection, "ALL_THREADS", threads)
        _, events = chosen(of_run)
        assert any("Converting" in event.message for event in events) == converts
    newer = LoadedModel(loaded.model, loaded.tokenizer, models.Provenance(str(run), "run", None, "two", 1))
    chosen(newer)
    assert len(list((run / "engines").glob("openvino-*"))) == 1, "conversions of older weights are deleted"


def test_the_place_of_a_conversion_does_not_depend_on_the_thread(loaded: LoadedModel) -> None:
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.set_num_threads, threads + 1).result()
        assert pool.submit(torch.get_num_threads).result() == threads + 1
        assert pool.submit(selection._places, loaded, False).result() == selection._places(loaded, False)
        pool.submit(torch.set_num_threads, threads).result()  # new threads inherit the last number set


def test_a_full_disk_in_openvino_is_recognised(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    save_there = openvino.save_model
    run = tmp_path / "run"
    rundir.write_json(run / "run.json", {"schema": 1})

    def full(converted: Any, file: Path, **values: Any) -> None:
        if run in Path(file).parents:
            raise RuntimeError("Check failed\nbasic_ios::clear: iostream error")
        save_there(converted, file, **values)

    monkeypatch.setattr(openvino, "save_model", full)
    of_run = LoadedModel(loaded.model, loaded.tokenizer, models.Provenance(str(run), "run", None, "one", 1))
    engine, events = chosen(of_run)
    assert engine.name == "openvino"
    (warning,) = [event.message for event in events if event.event == "warning"]
    assert "can't be kept" in warning
    assert "it goes to the cache" in warning


def test_a_disk_that_is_full_during_conversion_leaves_nothing_behind(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setenv("FINETALE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "engines"
    with monkeypatch.context() as patch:
        full = shutil.disk_usage(tmp_path)._replace(free=3_000)
        patch.setattr(shutil, "disk_usage", lambda path: full)
        engine, events = chosen(loaded, "auto")
    check_nothing_is_kept(engine, events, folder, "no space left: 1 MB are needed, and 0 MB are free")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # OpenVINO's error is that of a full disk
    try:
        engine, events = chosen(loaded, "auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_nothing_is_kept(engine, events, folder, "writing failed (1 MB are needed)")


def check_nothing_is_kept(engine: BatchingEngine, events: list[Any], folder: Path, reason: str) -> None:
    assert engine.name == "torch"
    (warning,) = [event.message for event in events if event.event == "warning"]
    assert f"the converted model can't be kept in {folder}: {reason}" in warning
    assert list(folder.iterdir()) == []


def test_pytorch_serves_a_model_whose_conversion_cannot_be_opened(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen(loaded)

    def gone(*words: Any, **values: Any) -> None:
        raise RuntimeError("directory_exists || file_exists")

    monkeypatch.setattr("finetale.server.engines.openvino_rows.OpenVinoRows", gone)
    monkeypatch.setattr(selection, "_read_record", faster(selection._read_record))
    engine, events = chosen(loaded, "auto")
    assert engine.name == "torch"
    assert "can't be opened" in events[-1].message
    with pytest.raises(ModelError, match="can't be opened"):
        chosen(loaded)


def faster(read: Any) -> Any:
    """Return a reader of records in which OpenVINO is the faster engine."""
    results = {"tokens_per_second": {"torch": 1, "openvino": 2}, "other_programs": 0.0}
    return lambda folder: (found := read(folder)) and found | results


def test_scores_of_long_texts_equal_those_of_pytorch() -> None:
    model = build(GPT2Config(**SHAPE | {"n_positions": 600}))
    ids = torch.randint(0, VOCABULARY, (1, 600), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(ids).logits
    for rows in (
        TorchRows(model, context=600, slots=2),
        SeparateRows(model, slots=2),
        OpenVinoRows(openvino.convert(model), context=600, slots=2, exact=True),
    ):
        assert torch.allclose(selection._alone(rows, ids), expected, atol=5e-3), rows.name


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the compression by one that returns another model."""
    compress = openvino.compress

    def ruin(converted: Any, *, symmetric: bool) -> Any:
        other = GPT2LMHeadModel(GPT2Config(**SHAPE | {"vocab_size": 400, "n_positions": 64, "n_embd": 32}))
        return compress(openvino.convert(other.eval()), symmetric=symmetric)

    monkeypatch.setattr(openvino, "compress", ruin)


def test_an_exact_engine_has_the_models_own_weights_and_is_stored_beside_the_fast_one(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    fast, _ = chosen(loaded)
    exact, _ = chosen(loaded, exact=True)
    found = {record["rounding"]["weights"]: record for record in records_of(tmp_path / "cache")}
    assert found.keys() == {"int8", "as they are"}
    assert found["as they are"]["rounding"]["fp32"]
    assert found["as they are"]["perplexity"]["same_choice"] == 1.0
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = loaded.model(input_ids=ids, use_cache=False).logits
    scale = float(expected.abs().max())
    differences = [
        float((selection._alone(engine.rows, ids)[..., : expected.shape[2]] - expected).abs().max()) / scale
        for engine in (exact, fast)
    ]
    assert differences[0] < 1e-5 < differences[1]


@pytest.mark.usefixtures("broken")
def test_weights_are_not_rounded_to_int8_if_the_perplexity_changes(loaded: LoadedModel, tmp_path: Path) -> None:
    for _ in range(2):  # the second time reads the result from the record, and warns again
        engine, events = chosen(loaded, held_out=lambda: [list(range(0, 300, 6))])
        assert engine.name == "openvino"
        (warning,) = [event.message for event in events if event.event == "warning"]
        assert "int8 weights would change its perplexity on held-out text from" in warning
        assert "its weights stay as they are" in warning
    record = record_of(tmp_path / "cache")
    assert record["rounding"]["weights"] == "as they are"
    assert record["perplexity"]["openvino"] == pytest.approx(
        record["perplexity"]["torch"], rel=selection.MAX_PERPLEXITY_CHANGE
    )


def test_pytorch_serves_a_model_whose_conversion_changes_its_perplexity(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MAX_PERPLEXITY_CHANGE", -1.0)
    engine, events = chosen(loaded, "auto", held_out=lambda: [list(range(0, 300, 6))])
    assert engine.name == "torch"
    (warning,) = [event.message for event in events if event.event == "warning"]
    assert "its perplexity on held-out text is" in warning
    assert not list((tmp_path / "cache").glob("engines/*/model.*"))
    with pytest.raises(ModelError, match="perplexity"):  # read from the record
        chosen(loaded)


def test_a_conversion_with_wrong_scores_is_refused(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    other = GPT2LMHeadModel(loaded.model.config).eval()
    convert = openvino.convert
    monkeypatch.setattr(openvino, "convert", lambda model: convert(other))
    with pytest.raises(ModelError, match="scores differ from PyTorch's by"):
        chosen(loaded)


def test_pytorch_serves_a_model_that_cannot_be_converted(loaded: LoadedModel) -> None:
    neo = build(GPTNeoConfig(**NEO | {"vocab_size": 400}, attention_types=[[["global", "local"], 1]]))
    engine, events = chosen(LoadedModel(neo, loaded.tokenizer, loaded.provenance), "auto")
    assert engine.name.startswith("torch")
    assert "does not find the model's attention" in str(events)


def test_auto_chooses_the_faster_engine(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"torch": 2.0, "openvino": 1.0}
    monkeypatch.setattr(speeds, "_speed", lambda engine, *sizes: rates[engine.name])
    assert chosen(loaded, "auto")[0].name == "torch"
    assert chosen(loaded, "openvino")[0].name == "openvino"


def test_pytorch_serves_without_openvino(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chosen(loaded, "auto")[0].name == "torch"
    with pytest.raises(ConfigError, match="not installed"):
        chosen(loaded, "openvino")


def test_a_read_only_disk_is_reported(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in place of the folder", encoding="utf-8")
    engine, events = chosen(loaded, "auto")
    assert engine.name == "torch"
    assert "can't be kept" in str(events)


def test_conversions_leak_no_memory_and_no_classes(model: PreTrainedModel) -> None:
    process = psutil.Process()
    sizes, classes = [], []
    for number in range(12):
        openvino.convert(model)
        if number > 1:
            gc.collect()
            sizes.append(process.memory_info().rss)
            classes.append(len(torch.nn.Module.__subclasses__()))
    assert sizes[-1] - sizes[0] < 30e6  # 10 leaked traces of this model would be 100 MB
    assert len(set(classes)) == 1  # tracing defines a class per module


def test_no_telemetry_is_sent(tmp_path: Path) -> None:
    script = """
import sys
def watch(event, given):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print(event, given)
sys.addaudithook(watch)
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from finetale.export import openvino, tracing
model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=1, n_head=2)).eval()
openvino.compress(openvino.convert(model), symmetric=True)
print("telemetry" if sys.modules.get("openvino_telemetry") else "done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr[-2000:]
    shutil.rmtree(tmp_path / ".cache", ignore_errors=True)
    assert not list(tmp_path.iterdir())


def speed_record(torch_rate: float, openvino_rate: float, **more: Any) -> dict[str, Any]:
    return {"tokens_per_second": {"torch": torch_rate, "openvino": openvino_rate}} | more


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (speed_record(10, 20, other_programs=0.1, measurements=1), None),
        (speed_record(10, 20), None),  # stored by an older version
        (speed_record(10, 20, other_programs=0.6, measurements=1), "the machine was busy before"),
        (speed_record(10, 20, other_programs=0.6, measurements=6), None),
        (speed_record(10, 11, other_programs=0.0, measurements=2), "they were close before"),
        (speed_record(11, 10, other_programs=0.0, measurements=3), None),
    ],
)
def test_engines_are_measured_again_if_they_were_close_or_the_machine_was_busy(
    record: dict[str, Any], reason: str | None
) -> None:
    assert speeds.doubt(record) == reason


def test_of_two_measurements_the_calmer_one_counts() -> None:
    calm, busy = speed_record(10, 20, other_programs=0.0), speed_record(20, 10, other_programs=0.9)
    assert speeds.combined(busy, calm)["tokens_per_second"] == {"torch": 10, "openvino": 20}
    assert speeds.combined(calm, busy)["tokens_per_second"] == {"torch": 10, "openvino": 20}
    assert speeds.combined(calm | {"measurements": 2}, busy)["measurements"] == 3
    assert speeds.doubt(speeds.combined(speeds.combined(busy, calm), busy)) is None


def test_a_doubtful_choice_is_measured_again_and_stored(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [
        speed_record(10.0, 30.0, other_programs=0.9, measurements=1),
        speed_record(30.0, 10.0, other_programs=0.0, measurements=1),
    ]
    monkeypatch.setattr(speeds, "measure", lambda *words: results.pop(0))
    engine, _ = chosen(loaded)
    assert engine.name == "openvino"
    engine, events = chosen(loaded, "auto")
    assert "Measuring again which engine is faster here, because the machine was busy before" in [
        event.message for event in events
    ]
    assert engine.name == "torch"
    assert record_of(tmp_path / "cache")["tokens_per_second"] == {"torch": 30.0, "openvino": 10.0}
    engine, events = chosen(loaded, "auto")
    assert (engine.name, events) == ("torch", [])
    assert engine.rates == {"torch": 30.0, "openvino": 10.0}
    assert not results


def test_the_use_of_the_processor_by_other_programs_is_measured() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        before = speeds._used()
        time.sleep(0.5)
        others = speeds._used() - before
        busy.kill()
    assert others > 0.2


@pytest.mark.parametrize("others", range(6))
@pytest.mark.parametrize("leaves", [False, True])
@torch.inference_mode()
def test_a_row_that_has_read_nothing_moves_and_leaves_whatever_slots_there_are(others: int, leaves: bool) -> None:
    """Its cache may have no slot for it yet, if its first piece is too long for that cache or if it gives up."""
    model = tiny_model(5, positions=600)
    rows, alone = TorchRows(model, context=600, slots=8), TorchRows(model, context=600, slots=8)
    for number in range(others):
        rows.join()
        rows.read([number], [[number + 1] * 3])
    rows.join()
    rows.join()
    long = [1 + number % 50 for number in range(200)]
    if leaves:
        rows.leave(others)
    alone.join()
    expected = alone.read([0], [long])
    torch.testing.assert_close(rows.read([others], [long]), expected, rtol=1e-4, atol=1e-4)
    for _ in range(others + 1 + (not leaves)):
        rows.leave(0)
