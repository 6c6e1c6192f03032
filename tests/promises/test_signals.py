"""A signal at any stage stops a run within five seconds. The run can be resumed. A second signal ends it at once."""

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
from pathlib import Path
from typing import Any

import pytest

import finetale
from children import CONTEXT, call, finish, printed, start
from finetale.rundir import RunDirectory
from scene import TRAIN, Place

STAGES = {
    "loading": ("finetale.pipeline.prepare", "models.load_located"),
    "probing": ("finetale.pipeline.tuning", "find_route"),
    "step": ("finetale.forward", "PackedForward.loss"),
    "evaluation": ("finetale.forward", "PackedForward.token_losses"),
    "sampling": ("finetale.generate.generator", "_Batch.step"),
    "saving": ("finetale.training.checkpoints", "save_file"),
}
"""What is being done when the signal comes: a function that is called then."""


def disturb(stage: str, number: int, nth: int, then: str = "") -> None:
    """Send this process a signal within the nth call of a stage's function; then do `then` of `THEN`."""
    module, path = STAGES[stage]
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(original)
    def disturbed(*args: Any, **options: Any) -> Any:
        if next(calls) == nth:
            Path("signalled").write_text(str(time.monotonic()), encoding="ascii")
            os.kill(os.getpid(), number)
            if then:
                THEN[then](number)
        return original(*args, **options)

    setattr(owner, name, disturbed)


def again_in_python(number: int) -> None:
    """A second signal half a second later, in work that Python sees through."""
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    time.sleep(60)


def again_in_a_long_call(number: int) -> None:
    """The same in a call that lets no Python run in this thread for a minute."""
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    hashlib.pbkdf2_hmac("sha512", b"x", b"y", 100_000_000)


THEN: dict[str, Callable[[int], None]] = {"python": again_in_python, "call": again_in_a_long_call}


def since_the_signal(place: Place) -> float:
    """Seconds since the (first) signal was sent."""
    return time.monotonic() - float((place.folder / "signalled").read_text(encoding="ascii"))


def name_of(*words: object) -> str:
    return "-".join(str(word) for word in words)


@pytest.mark.parametrize("nth", [2, *[pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4, 5)]])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("stage", list(STAGES))
def test_a_signal_leaves_a_run_to_go_on_with(place: Place, stage: str, number: signal.Signals, nth: int) -> None:
    if stage in ("loading", "probing"):
        nth = 1
    name = name_of(stage, number.name, nth)
    code, output = call(place.folder, *TRAIN, "--out", name, hook=functools.partial(disturb, stage, number.value, nth))
    taken = since_the_signal(place)
    print(f"{stage} {number.name}: {taken:.2f} s")
    assert taken < 5
    assert code == 75, output
    assert f"Stopped by {number.name}" in output
    assert f"finetale resume {name}" in output
    assert RunDirectory(place.folder / name).read_manifest().status == "interrupted"
    code, output = call(place.folder, "resume", name)
    assert code == 0, output
    assert place.weights_of(name) == place.digest
    shutil.rmtree(place.folder / name)


@pytest.mark.parametrize("then", list(THEN))
@pytest.mark.parametrize(
    "stage", ["loading", "step", *[pytest.param(s, marks=pytest.mark.slow) for s in list(STAGES)[3:]]]
)
def test_a_second_signal_leaves_within_a_second(place: Place, stage: str, then: str) -> None:
    name = name_of("twice", stage, then)
    hook = functools.partial(disturb, stage, signal.SIGTERM.value, 2 if stage == "step" else 1, then)
    code = finish(start(place.folder, (*TRAIN, "--out", name), hook), seconds=30)
    taken = since_the_signal(place)
    print(f"{stage} {then}: {taken:.2f} s")
    assert taken < 0.5 + 1  # the second comes half a second later
    assert code in ((75, 130) if stage == "loading" else (75,)), printed(place.folder)
    if stage == "loading":
        assert code == 130 or "finetale resume" in printed(place.folder)
    else:
        code, output = call(place.folder, "resume", name)
        assert code == 0, output
        assert place.weights_of(name) == place.digest
    shutil.rmtree(place.folder / name, ignore_errors=True)


def in_a_notebook(folder: str) -> None:
    """Train through the library and press Ctrl-C twice; then go on, as a notebook's kernel must be able to."""
    os.chdir(folder)
    os.environ["FINETALE_CACHE"] = "cache"
    disturb("step", signal.SIGINT.value, 2, "python")
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


def test_a_second_signal_leaves_a_program_that_uses_the_library_alone(place: Place) -> None:
    process = CONTEXT.Process(target=in_a_notebook, args=(str(place.folder),))
    process.start()
    assert finish(process, 60) == 0
    assert (place.folder / "alive").read_text(encoding="ascii") == "KeyboardInterrupt"
    assert RunDirectory(place.folder / "notebook").read_manifest().status == "interrupted"


def test_a_signal_while_a_finished_run_would_be_replaced_leaves_it_alone(place: Place) -> None:
    before = place.weights_of("whole")
    hook = functools.partial(disturb, "loading", signal.SIGTERM.value, 1)
    code, output = call(place.folder, *TRAIN, "--out", "whole", "--overwrite", hook=hook)
    assert code == 130, output
    assert place.weights_of("whole") == before
    assert RunDirectory(place.folder / "whole").read_manifest().status == "finished"


def interrupt_the_tokenizer() -> None:
    """Send SIGINT while a tokenizer is trained, in a call that gives Python its texts one by one for a while."""
    import os
    import signal
    import threading
    import time

    from finetale import tokens

    texts = tokens.training_texts

    def slowly(parts: Any) -> Any:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        for text in texts(parts):
            time.sleep(0.15)
            yield text

    tokens.training_texts = slowly


def test_training_a_tokenizer_is_left_at_once(place: Place) -> None:
    words = ("train", "stories", "--model", "new:64x1", "--vocab-size", "300", "--out", "unbegun", "--max-steps", "2")
    started = time.monotonic()
    code, output = call(place.folder, *words, hook=interrupt_the_tokenizer)
    assert code == 75, output
    assert time.monotonic() - started < 20
    assert "finetale resume unbegun" in output
