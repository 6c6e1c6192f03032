"""Test that the packed loss of examples equals transformers' loss of single examples with labels of -100."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from finetale import speed
from finetale.blocks import IGNORE, pack, windows
from finetale.chat import chat_renderer
from finetale.config import TextSettings
from finetale.forward import PackedForward
from finetale.metrics import measure
from finetale.text import read_parts
from finetale.tokens import TokenStore, build_store
from tiny import DEVICE, bound, llama_model, model, tokenizer

CONVERSATIONS = [
    [("user", "Who sat by the river?"), ("assistant", "The old man sat by the river.")],
    [("system", "Speak briefly."), ("user", "What waited?"), ("assistant", "A heron."), ("user", "How?"),
     ("assistant", "Grey and patient, as a fence post.")],
    [("user", "x"), ("assistant", "y")],
]  # fmt: skip


def llama() -> PreTrainedModel:
    return llama_model(3, max_position_embeddings=256)


def gpt2() -> PreTrainedModel:
    return model(positions=256)


def build_conversations(folder: Path, loss: str = "answers", copies: int = 4) -> TokenStore:
    """Return a store of training conversations. Each occurs `copies` times, with a number added to its messages."""
    rows = [
        {"messages": [{"role": role, "content": f"{content} {number}"} for role, content in conversation]}
        for number in range(copies)
        for conversation in CONVERSATIONS
    ]
    path = folder / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, "loss": loss})
    parts, report = read_parts([str(path)], settings, renderer=chat_renderer(tokenizer(), loss))
    return build_store(parts, tokenizer(), folder / f"store-{loss}", report=report.to_dict)


def reference(tuned: PreTrainedModel, store: TokenStore) -> tuple[float, int]:
    """Return the sum of transformers' losses of single examples, and the number of labels."""
    total, count = 0.0, 0
    for row in store.parts:
        ids = np.asarray(store.tokens[row["start"] : row["start"] + row["targets"] + 1], np.int64)
        labels = ids.copy()
        labels[0] = IGNORE
        for begin, end in store.context - int(row["start"]):
            if end > 0 and begin < len(ids):
                labels[max(begin, 0) : end] = IGNORE
        number = int((labels != IGNORE).sum())
        with torch.no_grad():
            loss = tuned(
                input_ids=torch.tensor(ids[None]).to(DEVICE), labels=torch.tensor(labels[None]).to(DEVICE)
            ).loss
        total += loss.item() * number
        count += number
    return total, count


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("loss", ["answers", "last", "all"])
@pytest.mark.parametrize("fast", [True, False])
def test_packed_masked_loss_equals_that_of_transformers(make, loss: str, fast: bool, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store = build_conversations(tmp_path, loss)
    total, count = reference(make(), store)
    assert count == store.num_targets("train")
    assert (count < int(store.parts["targets"].sum())) == (loss != "all")
    tuned = make()
    speed.set_up(tuned, enabled=fast, attention="auto", precision="fp32", training=True)
    forward = PackedForward(tuned)
    for block_size in (128, 256):
        blocks = pack(store, "train", block_size, fill=True)
        assert blocks.num_targets == count
        summed = sum(forward.loss(blocks.batch(np.array([i]))).item() for i in range(len(blocks)))
        assert summed / count == pytest.approx(total / count, abs=bound(1e-5, 1e-4))
        measured = measure(forward, blocks)
        assert measured.loss == pytest.approx(total / count, abs=bound(1e-5, 1e-4))
        assert measured.tokens.sum() == count


def test_packed_masked_gradients_equal_those_of_single_examples(tmp_path: Path) -> None:
    """The gradient of the packed loss is the sum of the gradients of each example's masked loss."""
    store = build_conversations(tmp_path)
    ours, theirs = gpt2(), gpt2()
    blocks = pack(store, "train", 256, fill=True)
    forward = PackedForward(ours)
    for i in range(len(blocks)):
        forward.loss(blocks.batch(np.array([i]))).backward()
    for row in store.parts:
        ids = torch.tensor(
            np.asarray(store.tokens[row["start"] : row["start"] + row["targets"] + 1], np.int64)[None]
        ).to(DEVICE)
        labels = ids.clone()
        for begin, end in store.context - int(row["start"]):
            if end > 0 and begin < ids.shape[1]:
                labels[0, max(begin, 0) : end] = IGNORE
        (theirs(input_ids=ids, labels=labels).loss * int((labels[:, 1:] != IGNORE).sum())).backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=bound(1e-4, 1e-3), atol=bound(1e-4, 1e-3), msg=name)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_without_a_learned_target_have_zero_loss_and_gradient(
    fast: bool, precision: str, tmp_path: Path
) -> None:
    """Sliding windows over a long prompt contain only context."""
    rows = [{"prompt": "Who sat by the river? " * 30, "completion": "The old man."}, {"prompt": "x", "completion": "y"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0})
    parts, report = read_parts([str(path)], settings, renderer=chat_renderer(tokenizer(), "answers"))
    store = build_store(parts, tokenizer(), tmp_path / "store", report=report.to_dict)
    tuned = gpt2()
    speed.set_up(tuned, enabled=fast, attention="auto", precision=precision, training=True)
    forward = PackedForward(tuned, precision=precision)
    for stride in (4, 16, 32):
        blocks = windows(store, "train", 32, stride)
        for batch_size in (1, 3):
            measured = measure(forward, blocks, batch_size=batch_size)
            assert measured.tokens.sum() == store.num_targets("train")
            assert np.isfinite(measured.loss)
    empty = np.flatnonzero(blocks.learned == 0)
    assert len(empty) > 3
    assert not forward.token_losses(blocks.batch(empty)).any()
    assert not forward.hits(blocks.batch(empty)).any()
    with forward.autocast():
        loss = forward.loss(blocks.batch(empty))
        with forward.no_autocast():
            loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in tuned.parameters())
