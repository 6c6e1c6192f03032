"""Several adapters on one copy of the base's weights: each text is that of the merged model, alone and in a batch."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from finetale import models
from finetale.config import Config, SamplingSettings
from finetale.errors import ModelError
from finetale.models import LoadedModel, Provenance, adapter_files, adapter_hooks, adapters
from finetale.models.adapter_hooks import LoadedAdapter, load_adapter
from finetale.server.engines import Job, Rows, selection
from finetale.server.engines.batching import BatchingEngine
from finetale.server.engines.pytorch_rows import SeparateRows, TorchRows, WholeRows
from tiny import llama_model, model, tokenizer

VOCABULARY = 400
FACTS = selection.Facts(VOCABULARY, (), 64)
KINDS = {"one": {"lora_rank": 3}, "two": {"method": "dora", "lora_rank": 2, "lora_targets": "all-linear"}}
Build = Callable[[], PreTrainedModel]


def opt_model() -> PreTrainedModel:
    """Return a model whose feed-forward layers get the tokens of all texts in one dimension."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.2,
    )
    return OPTForCausalLM(config).eval()


def biased_model() -> PreTrainedModel:
    """Return a GPT-2 whose biases are not 0, as after training. DoRA must not scale them."""
    biased = model(3)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in biased.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return biased


BASES: dict[str, Build] = {"gpt2": biased_model, "llama": lambda: llama_model(3), "opt": opt_model}


def write_adapter(base: PreTrainedModel, folder: Path, seed: int, base_sha256: str = "0" * 64, **settings: Any) -> Path:
    """Write an adapter with random matrices, as after training. The base becomes unusable."""
    adapters.attach(base, Config.resolve({"method": "lora"} | settings), seed=0)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir(parents=True)
    adapters.write(base, folder, base="base", revision=None, base_sha256=base_sha256)
    return folder


def run(engine: BatchingEngine, jobs: list[Job], *, tokens: int = 24) -> list[list[float]]:
    """Generate for all jobs together; return their log-probabilities."""
    logprobs: dict[int, list[float]] = {id(job): [] for job in jobs}
    engine.start([[job] for job in jobs])
    for _ in range(tokens):
        for job, token in engine.step():
            assert token.logprob is not None
            logprobs[id(job)].append(token.logprob)
    for job in jobs:
        engine.drop(job)
    return [logprobs[id(job)] for job in jobs]


def job(start: int, length: int, adapter: LoadedAdapter | None = None, **settings: Any) -> Job:
    sampling = SamplingSettings.resolve({"temperature": 0, "top_p": 1.0} | settings)
    return Job([(start + step) % VOCABULARY for step in range(length)], sampling, top=0, adapter=adapter)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        *((kind, TorchRows) for kind in BASES),
        *((kind, rows) for kind in ("gpt2", "llama") for rows in (SeparateRows, WholeRows)),
    ],
)
def test_a_text_is_that_of_the_merged_model_alone_and_with_others(kind: str, rows: Any, tmp_path: Path) -> None:
    build = BASES[kind]
    base = build()
    adapter_hooks.add_hooks(base)
    options: Any = {"context": 64} if rows is TorchRows else {}
    engine = FACTS.engine(rows(base, slots=9, **options))
    names: list[str | None] = ["one", None, "two"]
    loaded: dict[str | None, LoadedAdapter | None] = {None: None}
    expected: dict[tuple[str | None, int], tuple[list[int], list[float]]] = {}
    for name in names:
        merged = build()
        if name is not None:
            folder = write_adapter(build(), tmp_path / name, seed=len(loaded), **KINDS[name])
            loaded[name] = load_adapter(base, folder, name)
            merged = adapters.merge_into(merged, folder, name)
        reference = FACTS.engine(TorchRows(merged, context=64, slots=2))
        for length in (3, 5, 17):
            alone = job(length, length)
            (numbers,) = run(reference, [alone])
            expected[name, length] = alone.tokens, numbers
    assert len({round(sum(numbers), 2) for _, numbers in expected.values()}) == 9, "the adapters differ"

    together = {key: job(key[1], key[1], loaded[key[0]]) for key in expected}
    found = dict(zip(together, run(engine, list(together.values())), strict=True))
    for key, (tokens, numbers) in expected.items():
        assert together[key].tokens == tokens
        assert found[key] == pytest.approx(numbers, abs=1e-4)
        alone = job(key[1], key[1], loaded[key[0]])
        (logprobs,) = run(engine, [alone])
        assert alone.tokens == tokens
        assert logprobs == pytest.approx(numbers, abs=1e-4)


def test_rows_that_join_and_leave_keep_their_adapters(tmp_path: Path) -> None:
    base = model(3)
    adapter_hooks.add_hooks(base)
    folders = [write_adapter(model(3), tmp_path / name, seed=at, **KINDS[name]) for at, name in enumerate(KINDS)]
    chosen = [None, *(load_adapter(base, folder, folder.name) for folder in folders)]
    settings = {"temperature": 1.0, "seed": 7}
    engine = FACTS.engine(TorchRows(base, context=64, slots=4, memory=1))
    alone = [job(start, 4 + start, chosen[start % 3], **settings) for start in range(9)]
    for each in alone:
        run(engine, [each], tokens=12 + len(each.ids))
    # The memory is too small for all rows, so jobs give their rows back and are read again.
    jobs = [job(start, 4 + start, chosen[start % 3], **settings) for start in range(9)]
    waiting, running, seen = list(jobs), [], set()
    while waiting or running:
        while waiting and engine.free:
            running.append(waiting.pop(0))
            engine.admit([[running[-1]]])
        engine.read(5)
        engine.step()
        seen.add(tuple(jobs.index(each) % 3 for each in running))
        for each in [each for each in running if len(each.tokens) >= 12 + len(each.ids)]:
            engine.drop(each)
            running.remove(each)
    assert max(len(set(kinds)) for kinds in seen) == 3
    assert [each.tokens for each in jobs] == [each.tokens for each in alone]


def test_a_running_text_keeps_the_adapter_that_it_began_with(tmp_path: Path) -> None:
    base = model(3)
    adapter_hooks.add_hooks(base)
    engine = FACTS.engine(TorchRows(base, context=64, slots=4))
    old = load_adapter(base, write_adapter(model(3), tmp_path / "one", 0), "one")
    (tmp_path / "one").rename(tmp_path / "gone")
    new = load_adapter(base, write_adapter(model(3), tmp_path / "one", 5), "one")
    alone = [job(4, 9, adapter) for adapter in (old, new)]
    for each in alone:
        run(engine, [each], tokens=20)
    running, later = job(4, 9, old), job(4, 9, new)
    engine.start([[running]])
    for _ in range(8):
        engine.step()
    engine.start([[later]])
    for _ in range(12):
        engine.step()
    assert running.tokens == alone[0].tokens
    assert later.tokens == alone[1].tokens[:12] != running.tokens[:12]


def test_several_samples_of_a_prompt_have_its_adapter(tmp_path: Path) -> None:
    base = model(3)
    adapter_hooks.add_hooks(base)
    adapter = load_adapter(base, write_adapter(model(3), tmp_path / "one", 0), "one")
    engine = FACTS.engine(TorchRows(base, context=64, slots=4))
    jobs = [job(4, 9, adapter) for _ in range(3)]
    engine.start([jobs, [job(4, 9)]])
    for _ in range(10):
        engine.step()
    single = job(4, 9, adapter)
    run(FACTS.engine(TorchRows(base, context=64, slots=4)), [single], tokens=10)
    assert [each.tokens for each in jobs] == [single.tokens] * 3


def test_the_base_is_not_changed(tmp_path: Path) -> None:
    base, ids = model(3), torch.arange(20)[None]
    with torch.inference_mode():
        before = base(ids).logits
        adapter_hooks.add_hooks(base)
        adapter_hooks.add_hooks(base)
        adapter = load_adapter(base, write_adapter(model(3), tmp_path / "one", 0), "one")
        assert torch.equal(base(ids).logits, before)
        with adapter_hooks.using([None]):
            assert torch.equal(base(ids).logits, before)
        with adapter_hooks.using([adapter]):
            changed = base(ids).logits
            found: list[torch.Tensor] = []
            other = threading.Thread(target=lambda: found.append(base(ids).logits.detach()))
            other.start()
            other.join()
        assert torch.equal(found[0], before), "the adapters of a pass are those of its thread"
        assert float((changed - before).abs().max()) > 0.1
        assert torch.equal(base(ids).logits, before)
    assert sum(len(module._forward_hooks) for module in base.modules()) == 8
    assert adapter.num_bytes == sum(
        tensor.numel() * 4 for tensor in adapter_files.read_tensors(tmp_path / "one").values()
    )


class Odd(torch.nn.Module):
    """A feed-forward layer that computes one token more, as code that sorts tokens by experts may."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        flat = states.flatten(0, 1)
        more = torch.cat([flat, flat[:1]])
        computed: torch.Tensor = self.layer(more)
        return computed[:-1].view(states.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_different_adapters_share_a_pass_only_if_the_model_isolates_them(dtype: torch.dtype) -> None:
    def engine_of(base: PreTrainedModel) -> str:
        loaded = LoadedModel(base, tokenizer(), Provenance("tiny", "local", None, "0" * 64, 1))
        return selection.torch_engine(loaded, FACTS, 4, dtype, adapters=True).name

    assert engine_of(llama_model(3)) == "torch"
    odd = llama_model(3)
    for layer in odd.model.layers:
        layer.mlp = Odd(layer.mlp)
    assert engine_of(odd) == "torch, one at a time"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by get_peft_model
def test_an_adapter_of_plain_peft_is_read(tmp_path: Path) -> None:
    tuned: Any = get_peft_model(llama_model(3), LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT saves a copy of the output layer too
        tuned.save_pretrained(str(tmp_path / "plain"))
    found = models.find_adapter(str(tmp_path / "plain"))
    assert found.base_sha256 is None
    found.check_base("plain", "base", "0" * 64)
    base, ids = llama_model(3), torch.arange(30)[None]
    adapter = load_adapter(base, found.folder, "plain")
    assert len(adapter.updates) == 5
    adapter_hooks.add_hooks(base)
    with torch.inference_mode():
        with adapter_hooks.using([adapter]):
            mine = base(ids).logits
        torch.testing.assert_close(mine, tuned(ids).logits, rtol=0, atol=1e-4)


def test_an_adapter_of_other_sizes_or_layers_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(llama_model(3), tmp_path / "one", 0)
    with pytest.raises(ModelError, match=r"shape .* instead of"):
        load_adapter(llama_model(3, intermediate_size=48), folder, "one")
    with pytest.raises(ModelError, match="is for layers called down_proj, which its base does not have"):
        load_adapter(model(3), folder, "one")
    with pytest.raises(ModelError, match="is only in one of them"):
        load_adapter(llama_model(3, num_hidden_layers=3), folder, "one")


def test_rows_know_whether_they_take_adapters() -> None:
    kinds: list[type[Rows]] = [TorchRows, SeparateRows, WholeRows]
    assert all(kind.takes_adapters for kind in kinds)
