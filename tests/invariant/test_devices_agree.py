"""What a GPU must compute as well as a CPU: kernels, compiled passes, memory back-off, NaN guard, generation, serving.

FINETALE_TEST_DEVICE=cuda runs these tests on a GPU (benchmarks/gpu/README.md). Without it they run on the CPU, and the
tests that need the hardware are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from finetale import models, speed
from finetale.blocks import Blocks, pack
from finetale.config import Config, SamplingSettings
from finetale.errors import DivergedError
from finetale.forward import PackedForward, find_route
from finetale.generate import Generator
from finetale.models import LoadedModel, Provenance
from finetale.pipeline.device_check import check_device
from finetale.server.engines import Job, selection
from finetale.speed import attention, flash
from finetale.training import loop as loop_module
from finetale.training import plan_memory
from loops import losses_of, same_weights, sped_up, train, weights
from tiny import DEVICE, bound, llama_model, model, save_model, store, story, tokenizer

ON_GPU = DEVICE.type == "cuda"
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU: FINETALE_TEST_DEVICE=cuda")
HALF = "bf16" if ON_GPU else "fp32"
"""Precision in which the device has a kernel for packed documents."""


def gpt2() -> PreTrainedModel:
    return model(3)


def llama() -> PreTrainedModel:
    return llama_model(3, hidden_size=64, intermediate_size=96)


MODELS = pytest.mark.parametrize("make", [gpt2, llama])
Make = Callable[[], PreTrainedModel]


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    return pack(store(tmp_path, [story(number, words=20 + 11 * number % 170) for number in range(40)]), "train", 64)


def test_the_main_operations_agree_with_the_cpu() -> None:
    checks = check_device(DEVICE)
    assert len(checks) == 4
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_over_packed_documents_is_that_of_a_mask(kv_heads: int) -> None:
    """Outputs and gradients of the kernel for packed documents, against fp32 attention with a mask."""
    noise = torch.Generator().manual_seed(1)
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    shapes = [(1, heads, 300, 64) for heads in (4, kv_heads, kv_heads)]
    exact = [torch.randn(shape, generator=noise).to(DEVICE).requires_grad_() for shape in shapes]
    tested = [x.detach().to(dtype).requires_grad_() for x in exact]
    borders = torch.tensor([0, 7, 8, 140, 300, 300], dtype=torch.int32, device=DEVICE)
    assert attention.has_kernel(DEVICE, 64, 0.0)
    ours, _ = attention.attend(torch.nn.Module(), *tested, None, cu_seq_lens_q=borders, max_length_q=160)
    theirs = flash.masked_attention(*exact, borders, 64**-0.5, 0.0)
    outer = torch.randn(theirs.shape, generator=noise).to(DEVICE)
    found = (ours, *torch.autograd.grad(ours, tested, outer.to(dtype)))
    wanted = (theirs, *torch.autograd.grad(theirs, exact, outer))
    assert len(found) == len(wanted) == 4
    for one, other in zip(found, wanted, strict=True):
        assert flash.distance(one, other) < bound(1e-5, 1e-2)


@needs_gpu
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_packed_documents_have_a_kernel_with_dropout_too(dropout: float) -> None:
    tiny = sped_up(model(1, dropout=dropout), "bf16")
    assert speed.packs_documents(tiny)
    assert find_route(tiny).packs  # type: ignore[arg-type]


@needs_gpu
@MODELS
def test_packed_loss_in_bf16_is_that_of_each_document_alone(make: Make, blocks: Blocks) -> None:
    """With the kernel for packed documents and with the model's own attention, one row per document."""
    batch = blocks.batch(np.arange(8))
    sums = []
    for fast in (True, False):
        tuned = make()
        speed.set_up(tuned, enabled=fast, attention="auto", precision="bf16", training=True)
        forward = PackedForward(tuned, precision="bf16" if fast else "fp32")
        sums.append(forward.token_losses(batch).sum().item())
        assert forward.route.packs is fast
    assert sums[0] == pytest.approx(sums[1], rel=5e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile warns about deprecations in PyTorch itself
@MODELS
def test_a_compiled_run_is_the_same_run(make: Make, tmp_path: Path, blocks: Blocks) -> None:
    options: dict[str, Any] = {"precision": HALF, "max_steps": 6, "epochs": 20.0}
    plain = losses_of(tmp_path / "plain", blocks, tiny=sped_up(make(), HALF), **options)
    compiled = losses_of(tmp_path / "compiled", blocks, tiny=sped_up(make(), HALF), compiled=True, **options)
    assert len(plain) == len(compiled) == 6
    np.testing.assert_allclose(compiled, plain, rtol=bound(1e-4, 5e-3))


@MODELS
def test_bf16_and_fp32_train_alike(make: Make, tmp_path: Path, blocks: Blocks) -> None:
    ends = [
        losses_of(tmp_path / precision, blocks, tiny=sped_up(make(), precision), precision=precision, max_steps=20)
        for precision in ("fp32", "bf16")
    ]
    np.testing.assert_allclose(ends[1][-3:], ends[0][-3:], rtol=5e-3)


@needs_gpu
def test_between_two_log_lines_the_host_never_waits(tmp_path: Path, blocks: Blocks) -> None:
    """PyTorch raises an error for each call that waits for the device."""

    class Watching(loop_module.Training):
        steps = 0

        def _gradients(self) -> Any:
            self.steps += 1
            return self._watched(super()._gradients)

        def _update(self, *, skip: bool) -> float:
            return self._watched(lambda: super(Watching, self)._update(skip=skip))

        def _watched(self, work: Callable[[], Any]) -> Any:
            torch.cuda.set_sync_debug_mode("error" if self.steps > 3 else "default")  # the first steps set things up
            try:
                return work()
            finally:
                torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loops.Training", Watching)
        training = train(tmp_path, blocks, tiny=sped_up(model(3), "bf16"), precision="bf16", micro_batch_size=4)
    assert training.state.step > 6


@needs_gpu
def test_a_run_out_of_device_memory_continues_with_smaller_passes(tmp_path: Path) -> None:
    """A limit on the device's memory that one pass of 16 sequences exceeds; the losses stay those without it."""
    long = pack(store(tmp_path, [story(number, words=2000) for number in range(24)]), "train", 512)

    def wide() -> torch.nn.Module:
        torch.manual_seed(0)
        sizes = {"n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": 512, "vocab_size": len(tokenizer())}
        rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **sizes, **rates))

    options: dict[str, Any] = {"batch_size": 16, "max_steps": 3, "epochs": 20.0, "precision": "fp32"}
    peaks, losses = [], []
    for size in (16, 4):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        losses.append(losses_of(tmp_path / str(size), long, tiny=wide(), micro_batch_size=size, **options))
        peaks.append(torch.cuda.max_memory_reserved())
    rows: list[Any] = []
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((peaks[0] + peaks[1]) / 2 / total)
    try:
        training = train(tmp_path / "less", long, tiny=wide(), micro_batch_size=16, listeners=(rows.append,), **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [row.message for row in rows if row.event == "warning"]
    assert training.state.micro_batch_size < 16
    np.testing.assert_allclose([row.loss for row in rows if row.event == "train"], losses[0], rtol=1e-3)


@needs_gpu
def test_the_memory_plan_holds(blocks: Blocks) -> None:
    forward = PackedForward(sped_up(model(3), "bf16"), precision="bf16")
    plan = plan_memory(forward, blocks, 64)
    assert plan.micro_batch_size == 64  # a tiny model: everything fits
    assert 0 < plan.sequence_bytes < plan.available_bytes


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nans_never_reach_the_weights(
    bad: float, tmp_path: Path, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fourth step on the gradients are not finite. The device skips the updates."""
    monkeypatch.setattr(loop_module, "_ASYNCHRONOUS", (DEVICE.type,))
    options: dict[str, Any] = {"epochs": 50.0, "schedule": "constant", "precision": HALF}
    good = train(tmp_path / "good", blocks, tiny=sped_up(model(3), HALF), max_steps=3, **options)
    tiny = sped_up(model(3), HALF)
    passes = []

    def spoil(module: Any, inputs: Any, outputs: Any) -> None:
        if tiny.training:
            passes.append(1)
            if len(passes) > 3:
                outputs.register_hook(lambda gradient: gradient * bad)

    tiny.transformer.h[0].mlp.c_fc.register_forward_hook(spoil)  # type: ignore[union-attr,operator,index]
    with pytest.raises(DivergedError, match="no later update was made"):
        train(tmp_path / "bad", blocks, tiny=tiny, max_steps=30, **options)
    assert len(passes) > 3
    assert all(bool(value.isfinite().all()) for value in tiny.state_dict().values())
    assert same_weights(weights(tiny), weights(good.model))


@MODELS
def test_frozen_weights_stay_as_they_are(make: Make, tmp_path: Path, blocks: Blocks) -> None:
    tiny = make()
    models.freeze(tiny, "1")
    before = weights(tiny)
    trained = {name for name, parameter in tiny.named_parameters() if parameter.requires_grad}
    train(tmp_path, blocks, tiny=sped_up(tiny, HALF), precision=HALF, max_steps=4)
    after = weights(tiny)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert trained
    assert trained <= changed
    frozen = {name for name, parameter in tiny.named_parameters() if not parameter.requires_grad}
    assert len(frozen) > 5
    assert not frozen & changed


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_leaves_the_weights_of_its_base(method: str, tmp_path: Path, blocks: Blocks) -> None:
    loaded = models.load(str(save_model(tmp_path / "base", 3)))
    assert loaded.located is not None
    tiny = loaded.model.to(DEVICE)
    models.adapters.attach(tiny, Config.resolve({"method": method, "lora_rank": 2}), seed=0)
    before = weights(tiny)
    base = models.AdaptedBase(loaded.located, loaded.provenance)
    train(tmp_path / "run", blocks, tiny=sped_up(tiny, HALF), precision=HALF, max_steps=4, adapted=base)
    after = weights(tiny)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) >= 8
    assert all("lora" in name for name in changed)


@torch.no_grad()
def plain_tokens(tuned: PreTrainedModel, ids: list[int], number: int) -> list[int]:
    """Return the likeliest next tokens, each from a pass over the whole text without a cache."""
    found = list(ids)
    for _ in range(number):
        found.append(int(tuned(input_ids=torch.tensor([found], device=DEVICE)).logits[0, -1].argmax()))
    return found[len(ids) :]


@pytest.fixture
def prompts() -> list[str]:
    return ["The lamp stood on the sill", "A heron", "She counted the eggs twice, then"]


@MODELS
def test_greedy_text_is_that_of_transformers(make: Make, prompts: list[str]) -> None:
    tuned = make()
    generator = Generator(tuned, tokenizer())
    settings = SamplingSettings.resolve({"temperature": 0, "max_new_tokens": 20})
    ours = generator.generate(prompts, settings)
    assert len(ours) == 3
    for prompt, (sample,) in zip(prompts, ours, strict=True):
        ids = [*generator.lead, *tokenizer().encode(prompt, add_special_tokens=False)]
        theirs = plain_tokens(tuned, ids, 20)
        assert sample.text == tokenizer().decode(theirs[: sample.num_tokens])
        assert sample.num_tokens == 20 or theirs[sample.num_tokens] in generator.ends


@MODELS
def test_served_tokens_are_those_of_transformers(make: Make, prompts: list[str]) -> None:
    """Three requests in one batch, of which one joins late."""
    tuned = make()
    generator = Generator(tuned, tokenizer())
    holes = tuple(token for token in generator.forbidden if token < generator.vocab_size)
    facts = selection.Facts(generator.vocab_size, holes, generator.context)
    loaded = LoadedModel(tuned, tokenizer(), Provenance("tiny", "local", None, "0" * 64, tuned.num_parameters()))
    engine = selection.torch_engine(loaded, facts, 4)
    assert engine.name == "torch"
    settings = SamplingSettings.resolve({"temperature": 0})
    jobs = [
        Job([*generator.lead, *tokenizer().encode(text, add_special_tokens=False)], settings, top=2) for text in prompts
    ]
    engine.start([[jobs[0]], [jobs[1]]])
    for step in range(12):
        if step == 4:
            engine.start([[jobs[2]]])
        engine.step()
    assert [len(job.tokens) for job in jobs] == [12, 12, 8]
    for job in jobs:
        assert job.tokens == plain_tokens(tuned, list(job.ids), len(job.tokens))
