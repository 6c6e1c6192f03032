"""Test devices: Finetale's settings apply, no float64 is used on the device, and wrong results are detected."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetale import devices, memorisation
from finetale.blocks import Blocks, pack
from finetale.config import EvaluationSettings, SamplingSettings, TrainSettings
from finetale.forward import PackedForward
from finetale.generate import Generator
from finetale.metrics import measure
from finetale.pipeline.device_check import check_device
from finetale.rundir import RunDirectory
from finetale.schema import Event, TrainEvent
from finetale.training import StepBudget, Training
from tiny import model, store, story, tokenizer

FOREIGN = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "8",
}


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    return pack(store(tmp_path, [story(number, 40) for number in range(8)]), "train", 32, fill=True)


def loop(folder: Path, blocks: Blocks, events: list[Event], **more: Any) -> Training:
    settings = {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 2, "precision": "fp32"}
    return Training(
        model=model(0),
        tokenizer=tokenizer(),
        train_blocks=blocks,
        validation_blocks=None,
        settings=TrainSettings.resolve(settings),
        evaluation=EvaluationSettings.resolve({}),
        directory=RunDirectory(folder),
        budget=StepBudget(len(blocks), 4, None, 2, None, None),
        precision="fp32",
        listeners=[events.append],
        **more,
    )


def norms(folder: Path, blocks: Blocks) -> list[float | None]:
    events: list[Event] = []
    loop(folder, blocks, events).run()
    return [event.grad_norm for event in events if isinstance(event, TrainEvent)]


def test_settings_of_accelerate_in_the_environment_change_nothing(
    tmp_path: Path, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = norms(tmp_path / "a", blocks)
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    assert norms(tmp_path / "b", blocks) == before
    assert len(before) == 2
    assert devices.device().type == "cpu"
    names = [line.split("=")[0] for line in devices.ignored_settings()]
    assert names == sorted(name for name in FOREIGN if name.startswith("ACCELERATE_"))


def test_each_process_has_an_accelerator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    assert devices.device() == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert devices.device() == torch.device("cuda", 3)


def test_unused_variables_of_a_launcher_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_USE_CPU": "False",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_LOG_LEVEL": "info",
    }.items():
        monkeypatch.setenv(name, value)
    assert devices.ignored_settings() == []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "1")
    assert devices.ignored_settings() == ["ACCELERATE_USE_FSDP=1"]


class NoFloat64(TorchDispatchMode):
    """Raise if a tensor on the simulated device is combined with float64, which Apple's GPUs do not support.

    The device holds the tensors of the model and everything computed from them. `cpu()` copies off the device.
    """

    def __init__(self, parameters: Iterator[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.computed = 0
        for parameter in parameters:
            parameter.on_device = True  # type: ignore[attr-defined]
        plain = torch.Tensor.cpu

        def off_the_device(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            with torch.utils._python_dispatch._disable_current_modes():
                return plain(tensor, *args, **options).clone()

        monkeypatch.setattr(torch.Tensor, "cpu", off_the_device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(
            getattr(leaf, "on_device", False) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        ):
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    assert leaf.dtype not in (torch.float64, torch.complex128), (
                        f"{func} makes {leaf.dtype} on the device"
                    )
                    leaf.on_device = True  # type: ignore[attr-defined]
                    self.computed += 1
        return result


def test_the_guard_detects_float64_only_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = model(0)
    with NoFloat64(tiny.parameters(), monkeypatch):
        logits = tiny(torch.tensor([[1, 2]])).logits
        logits.cpu().double()
        with pytest.raises(AssertionError, match="float64 on the device"):
            logits.float().double()


def test_nothing_needs_float64_on_a_device(tmp_path: Path, blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    held_out = pack(store(tmp_path / "held", [story(number, 40) for number in (20, 21)]), "train", 32, fill=True)
    training = loop(tmp_path / "run", blocks, events)
    training.validation_blocks = held_out
    # As on an accelerator, all noise is generated on the CPU.
    sampler = importlib.import_module("finetale.generate.sampler")
    monkeypatch.setattr(
        sampler.Sampler,
        "_drawn",
        lambda self, scores, best, likeliest, streams: (scores + self._noise(streams).to(scores.device)).max(dim=-1)[1],
    )
    with NoFloat64(training.model.parameters(), monkeypatch) as guard:
        training.run()
        tiny = training.model.eval()
        forward = PackedForward(tiny)
        assert math.isfinite(measure(forward, held_out).loss)
        generator = Generator(tiny, tokenizer())
        for settings in ({"temperature": 0}, {"top_p": 0.9, "top_k": 5}, {"repetition_penalty": 1.2}, {"num_beams": 2}):
            generator.generate(["Once", "The lamp"], SamplingSettings.resolve(settings | {"max_new_tokens": 4}), n=2)
        memorisation.audit(
            forward, None, blocks.store, ("train",), window=32, budget=500, seed=0, risk_first=False, batch_size=2
        )
    assert guard.computed > 1000
    assert any(isinstance(event, TrainEvent) for event in events)


def test_a_device_that_computes_correctly_passes() -> None:
    checks = check_device(torch.device("cpu"))
    assert [check.name for check in checks if not check.passed] == []
    assert len(checks) == 4
    assert all(check.difference == 0 for check in checks)


class WrongLinear(TorchFunctionMode):
    """A device whose linear layer loses outputs from index 32,768 on, as in a former bug of PyTorch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and result.shape[-1] > 32_768:
            result[..., 32_768:] = 0
        return result


class NoPacking(TorchFunctionMode):
    """A device that gives NaN for sums of losses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.softmax, torch.Tensor.softmax):
            return result * np.nan
        return result


def test_wrong_results_of_a_device_are_detected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = check_device(torch.device("cpu"), WrongLinear)
    assert [check.passed for check in checks] == [False, True, True, True]
    assert checks[0].difference is not None
    assert checks[0].difference > 0.1
    nan = check_device(torch.device("cpu"), NoPacking)[1]
    assert (nan.passed, nan.error) == (False, None)
    doctor = __import__("finetale.cli.doctor", fromlist=["command"])
    monkeypatch.setattr("finetale.pipeline.device_check.check_device", lambda device: checks)
    gpu = {"name": "Apple GPU (MPS)", "count": 1, "memory_bytes": None}
    real = __import__("finetale.environment", fromlist=["hardware"]).hardware()
    monkeypatch.setattr("finetale.environment.hardware", lambda: real | {"gpu": gpu})
    assert doctor.command() == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "linear layer of 50,257 outputs: WRONG" in shown
    assert "softmax over 50,257 logits: same as the CPU" in shown
    wrong = "With this version of PyTorch, the accelerator computes wrong results (linear layer of 50,257 outputs)."
    assert wrong in shown


def test_a_device_that_fails_is_reported_not_raised() -> None:
    [first, *_] = check_device(torch.device("meta"))
    assert not first.passed
    assert first.difference is None
    assert first.error
