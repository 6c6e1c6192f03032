"""Arrays that are used again and again inside `kept_memory`."""

from __future__ import annotations

import threading

import torch

from finetale import speed
from finetale.speed import allocator


def test_a_temporary_array_is_the_same_memory_again_inside_kept_memory() -> None:
    with speed.kept_memory():
        first = allocator.temporary("one", (3, 4), torch.float32)
        again = allocator.temporary("one", (2, 5), torch.float32)
        assert again.data_ptr() == first.data_ptr()
        assert again.shape == (2, 5)
        larger = allocator.temporary("one", (100,), torch.float32)
        assert larger.shape == (100,)
        assert allocator.temporary("two", (3,), torch.float32).data_ptr() != larger.data_ptr()
        assert allocator.temporary("one", (3,), torch.bfloat16).data_ptr() != larger.data_ptr()


def test_outside_of_kept_memory_and_for_large_arrays_each_array_has_its_own_memory() -> None:
    first, second = (allocator.temporary("one", (3,), torch.float32) for _ in range(2))
    assert first.data_ptr() != second.data_ptr()
    with speed.kept_memory():
        size = allocator._TEMPORARY_BYTES // 4 + 1
        first, second = (allocator.temporary("one", (size,), torch.float32) for _ in range(2))
        assert first.data_ptr() != second.data_ptr()


def test_threads_have_temporary_arrays_of_their_own() -> None:
    addresses = []

    def work() -> None:
        addresses.append(allocator.temporary("one", (3,), torch.float32).data_ptr())
        ready.wait()  # so that no thread ends, and frees its memory, before the other has asked

    with speed.kept_memory():
        ready = threading.Barrier(2)
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(addresses)) == 2


def test_a_cast_keeps_values_and_order() -> None:
    weight = torch.arange(12.0).view(3, 4)
    with speed.kept_memory():
        assert torch.equal(allocator.cast(weight, torch.bfloat16, "weight"), weight.bfloat16())
        assert torch.equal(allocator.cast(weight.t(), torch.bfloat16, "weight"), weight.t().bfloat16())
        assert allocator.cast(weight, torch.float32, "weight") is weight


def test_training_gives_the_same_bits_with_and_without_kept_memory() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = speed.apply(LlamaForCausalLM(config))
    tokens = torch.randint(64, (2, 40))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    with speed.kept_memory():
        kept = [gradients() for _ in range(2)]
    assert len(plain) == len(list(model.parameters()))
    for each in kept:
        assert all(torch.equal(a, b) for a, b in zip(plain, each, strict=True))
