"""Test that a signal at any stage stops a run within 5 s, that the run resumes, and that a second signal ends it."""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

import finetale
from children import CONTEXT, call, finish, printed, start
from finetale.rundir import RunDirectory
from scene import Place

STAGES = {
    "loading": ("finetale.pipeline.prepare", "models.load_located"),
    "probing": ("finetale.pipeline.tuning", "find_route"),
    "step": ("finetale.forward", "PackedForward.loss"),
    "evaluation": ("finetale.forward", "PackedForward.token_losses"),
    "sampling": ("finetale.generate.generator", "_Batch.step"),
    "saving": ("finetale.training.checkpoints", "save_file"),
    "merging": ("finetale.models.adapters", "merge_into"),
}
"""Stages at which the signal arrives, and a function that is called in each. Only an adapter is merged."""
FULL_STAGES = tuple(stage for stage in STAGES if stage != "merging")
FAST_STAGES = ("loading", "step")
"""Stages of the second-signal tests that are not marked slow."""


def send_signal_in(stage: str, number: int, nth: int, then: str = "") -> None:
    """Send this process a signal in the nth call of the function of a stage; then call `THEN[then]`."""
    module, path = STAGES[stage]
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original, leave, calls = getattr(owner, name), os._exit, itertools.count(1)

    def exit_at(code: int) -> NoReturn:
        write_clocks("ended")
        leave(code)

    os._exit = exit_at  # type: ignore[assignment]

    @functools.wraps(original)
    def signalling(*args: Any, **options: Any) -> Any:
        if next(calls) == nth:
            write_clocks("signalled")
            os.kill(os.getpid(), number)
            if then:
                THEN[then](number)
        return original(*args, **options)

    setattr(owner, name, signalling)


def write_clocks(name: str) -> None:
    """Write both clocks to a file. The rename is atomic, because two threads may end the process at the same time."""
    new = Path(f"{name}-{threading.get_ident()}")
    new.write_text(f"{time.monotonic()} {time.process_time()}", encoding="ascii")
    new.replace(name)


def again_in_python(number: int) -> None:
    """Send a second signal half a second later, during a minute of work that Python can interrupt."""
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    time.sleep(60)


def again_in_a_long_call(number: int) -> None:
    """Send a second signal during a call of about a minute that runs no Python code in this thread."""
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    hashlib.pbkdf2_hmac("sha512", b"x", b"y", 100_000_000)


THEN: dict[str, Callable[[int], None]] = {"python": again_in_python, "call": again_in_a_long_call}


@dataclass(frozen=True)
class Taken:
    """Seconds from the first signal to the end of the process."""

    seconds: float
    processor_seconds: float


def since_the_signal(place: Place) -> Taken:
    """Return the time that the last process needed after its first signal."""
    began, ended = (
        [float(word) for word in (place.folder / name).read_text(encoding="ascii").split()]
        for name in ("signalled", "ended")
    )
    return Taken(ended[0] - began[0], ended[1] - began[1])


def name_of(*words: object) -> str:
    return "-".join(str(word) for word in words)


@pytest.mark.parametrize("nth", [2, *[pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4, 5)]])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    ("place", "stage"),
    [
        *[("full", stage) for stage in FULL_STAGES],
        *[("lora", stage) for stage in ("step", "saving", "merging")],
        *[pytest.param("lora", stage, marks=pytest.mark.slow) for stage in ("loading", "evaluation", "sampling")],
    ],
    indirect=["place"],
)
def test_a_signal_leaves_a_run_that_resumes(place: Place, stage: str, number: signal.Signals, nth: int) -> None:
    """The slow variants also bound the wall time, which needs an idle machine."""
    idle = nth != 2
    if stage in ("loading", "probing"):
        nth = 1
    name = name_of(stage, number.name, nth)
    code, output = call(
        place.folder, *place.train, "--out", name, hook=functools.partial(send_signal_in, stage, number.value, nth)
    )
    taken = since_the_signal(place)
    print(f"{stage} {number.name}: {taken.seconds:.2f} s, {taken.processor_seconds:.2f} s of processor time")
    assert taken.processor_seconds < 5
    assert not idle or taken.seconds < 5
    assert code == 75, output
    assert f"Stopped by {number.name}" in output
    assert f"finetale resume {name}" in output
    assert RunDirectory(place.folder / name).read_manifest().status == "interrupted"
    code, output = call(place.folder, "resume", name)
    assert code == 0, output
    assert place.weights_of(name) == place.digest
    shutil.rmtree(place.folder / name)


@pytest.mark.parametrize("then", list(THEN))
@pytest.mark.parametrize("stage", [*FAST_STAGES, *[pytest.param(s, marks=pytest.mark.slow) for s in FULL_STAGES[3:]]])
def test_a_second_signal_ends_the_process_at_once(place: Place, stage: str, then: str) -> None:
    """The process ends long before its work of a minute, and in the slow variants within a second."""
    name = name_of("twice", stage, then)
    hook = functools.partial(send_signal_in, stage, signal.SIGTERM.value, 2 if stage == "step" else 1, then)
    code = finish(start(place.folder, (*place.train, "--out", name), hook))
    taken = since_the_signal(place)
    print(f"{stage} {then}: {taken.seconds:.2f} s, {taken.processor_seconds:.2f} s of processor time")
    assert taken.processor_seconds < 0.5 + 1  # the second signal comes half a second later
    assert taken.seconds < (45 if stage in FAST_STAGES else 0.5 + 1)
    assert code in ((75, 130) if stage == "loading" else (75,)), printed(place.folder)
    if stage == "loading":
        assert code == 130 or "finetale resume" in printed(place.folder)
    else:
        code, output = call(place.folder, "resume", name)
        assert code == 0, output
        assert place.weights_of(name) == place.digest
    shutil.rmtree(place.folder / name, ignore_errors=True)


def in_a_notebook(folder: str) -> None:
    """Train through the library, press Ctrl-C twice, and keep running, as a notebook kernel must."""
    os.chdir(folder)
    os.environ["FINETALE_CACHE"] = "cache"
    send_signal_in("step", signal.SIGINT.value, 2, "python")
    settings = {
        "precision": "fp32",
        "threads": 1,
        "batch_size": 4,
        "micro_batch_size": 2,
        "max_steps": 6,
        "probe": False,
    }
    try:
        finetale.train("stories", model="base", out="notebook", quiet=True, **settings)
    except KeyboardInterrupt as error:
        Path("alive").write_text(type(error).__name__, encoding="ascii")


def test_a_second_signal_does_not_end_a_program_that_uses_the_library(place: Place) -> None:
    process = CONTEXT.Process(target=in_a_notebook, args=(str(place.folder),))
    process.start()
    assert finish(process, 60) == 0
    assert (place.folder / "alive").read_text(encoding="ascii") == "KeyboardInterrupt"
    assert RunDirectory(place.folder / "notebook").read_manifest().status == "interrupted"


def test_a_signal_before_a_finished_run_is_replaced_keeps_that_run(place: Place) -> None:
    before = place.weights_of("whole")
    hook = functools.partial(send_signal_in, "loading", signal.SIGTERM.value, 1)
    code, output = call(place.folder, *place.train, "--out", "whole", "--overwrite", hook=hook)
    assert code == 130, output
    assert place.weights_of("whole") == before
    assert RunDirectory(place.folder / "whole").read_manifest().status == "finished"


def interrupt_the_tokenizer() -> None:
    """Send SIGINT during the training of a tokenizer, and count the texts that it reads."""
    import os
    import signal
    import threading
    import time

    from finetale import tokens

    texts = tokens.training_texts

    def slowly(parts: Any) -> Any:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        for number, text in enumerate(texts(parts), start=1):
            time.sleep(0.15)
            Path("read").write_text(str(number), encoding="ascii")
            yield text

    tokens.training_texts = slowly


def test_a_signal_stops_the_training_of_a_tokenizer(place: Place) -> None:
    words = ("train", "stories", "--model", "new:64x1", "--vocab-size", "300", "--out", "unbegun", "--max-steps", "2")
    code, output = call(place.folder, *words, hook=interrupt_the_tokenizer)
    assert code == 75, output
    read = int((place.folder / "read").read_text(encoding="ascii"))
    print(f"{read} texts were read")
    assert read < len(list((place.folder / "stories").iterdir())) / 2
    assert "finetale resume unbegun" in output
