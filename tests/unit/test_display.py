"""Test the display: plain lines in a log, a live panel in a terminal, and only warnings with `quiet`."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from finetale.display import Display, state, terminal
from finetale.formatting import duration, size
from finetale.schema import (
    BeginEvent,
    CheckpointEvent,
    Choice,
    EvaluatingEvent,
    EvaluationEvent,
    Event,
    ProbeEvent,
    SampleEvent,
    StageEvent,
    TrainEvent,
    Trial,
    WarningEvent,
)

BEGIN = BeginEvent(step=0, total=200, targets=12_345, run="runs/x")


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (state, terminal):
        monkeypatch.setattr(module, "time", made)
    return made


def train(step: int, loss: float = 3.25, speed: float = 1000.0) -> TrainEvent:
    return TrainEvent(
        step=step,
        tokens=10 * step,
        loss=loss,
        learning_rate=5e-4,
        tokens_per_second=speed,
        memory_bytes=3 * 2**29,
    )


def evaluation(step: int, perplexity: float, *, best: bool) -> EvaluationEvent:
    return EvaluationEvent(step=step, tokens=10 * step, loss=2.5, perplexity=perplexity, best=best)


SAMPLE = SampleEvent(step=4, tokens=40, prompt="Once upon", text=" a\n\ttime [bold]")
WARNING = WarningEvent(step=4, tokens=40, message="Memory ran out [at once]")


def show(events: list[Event], *, quiet: bool = False) -> list[str]:
    """Return the lines that a display prints without a terminal."""
    file = StringIO()
    with Display(Console(file=file, width=60), quiet=quiet) as shown:
        for event in events:
            shown(event)
    return file.getvalue().splitlines()


# Without a terminal


def test_plain_lines(clock: Clock) -> None:
    assert show(
        [
            StageEvent(message="Reading stories/"),
            BEGIN,
            evaluation(0, 60.0, best=True),
            train(1),
            evaluation(4, 70.5, best=False),
            SAMPLE,
            WARNING,
            CheckpointEvent(step=4, tokens=40, path="checkpoints/step-00000004"),
        ]
    ) == [
        "Reading stories/ …",
        "Training for 200 steps; 12,345 tokens per epoch; run directory runs/x",
        "step 0/200  validation loss 2.5000  perplexity 60.00  best so far",
        "step 1/200  loss 3.2500  learning rate 5.00e-04  1,000 tokens/s  1.50 GiB  0 s left",
        "step 4/200  validation loss 2.5000  perplexity 70.50",
        "step 4/200  sample: Once upon a time [bold]",
        "warning: Memory ran out [at once]",
    ]


def test_a_resumed_run_prints_its_first_step() -> None:
    assert show([BEGIN.model_copy(update={"step": 60})]) == [
        "Training from step 60 of 200 steps; 12,345 tokens per epoch; run directory runs/x"
    ]


def test_plain_lines_are_few(clock: Clock) -> None:
    file = StringIO()
    shown = Display(Console(file=file))
    shown(BEGIN)
    for step in range(1, 101):
        clock.now += 1.0
        shown(train(step))
    steps = [int(step) for step in re.findall(r"^step (\d+)/", file.getvalue(), re.MULTILINE)]
    assert steps == [1, 12, 23, 34, 45, 56, 67, 78, 89, 100]
    assert "1 min 40 s left" in file.getvalue().splitlines()[-1]  # 100 steps took 100 s, and 100 steps remain


def test_stages_are_printed_once_and_long_ones_at_intervals(clock: Clock) -> None:
    file = StringIO()
    shown = Display(Console(file=file))
    for done in range(1, 31):
        shown(StageEvent(message="Measuring", done=done, total=30))
        clock.now += 1.0
    shown(StageEvent(message="Comparing"))
    assert file.getvalue().splitlines() == [
        "Measuring …",
        "Measuring: 12 of 30",
        "Measuring: 23 of 30",
        "Comparing …",
    ]


def test_a_long_evaluation_prints_its_progress(clock: Clock) -> None:
    out = StringIO()
    shown = Display(Console(file=out, width=200))
    shown(BEGIN)
    for done in (10, 20, 150):
        clock.now += 6
        shown(EvaluatingEvent(step=0, done=done, total=300))
    text = out.getvalue().splitlines()
    assert text[1:] == [f"step 0/200  {share}% of the validation text measured" for share in (3, 50)]
    assert "50% of the validation text measured" in panel([BEGIN, EvaluatingEvent(step=0, done=150, total=300)])


def test_speed_is_the_mean_of_the_last_20_steps(clock: Clock) -> None:
    file = StringIO()
    shown = Display(Console(file=file))
    shown(BEGIN)
    for step in range(1, 31):
        clock.now += 11.0
        shown(train(step, speed=100.0 if step <= 10 else 500.0 + step))
    assert f"  {sum(500.0 + step for step in range(11, 31)) / 20:,.0f} tokens/s" in file.getvalue().splitlines()[-1]


def test_time_left_counts_only_the_steps_of_this_session(clock: Clock) -> None:
    file = StringIO()
    shown = Display(Console(file=file))
    shown(BEGIN.model_copy(update={"step": 100}))
    clock.now += 20.0
    shown(train(110))
    assert file.getvalue().splitlines()[-1].endswith("3 min 0 s left")  # 90 steps of 2 s


def test_quiet_shows_only_warnings() -> None:
    events = [StageEvent(message="Reading"), BEGIN, train(1), evaluation(1, 9.0, best=True), SAMPLE, WARNING]
    assert show(events, quiet=True) == ["warning: Memory ran out [at once]"]


# With a terminal


def panel(events: list[Event], *, width: int = 160, quiet: bool = False) -> str:
    """Return the output of a display on a terminal, without control codes."""
    file = StringIO()
    console = Console(force_terminal=True, file=file, width=width, color_system=None, legacy_windows=False)
    with Display(console, quiet=quiet) as shown:
        for event in events:
            shown(event)
    drawn = file.getvalue()
    assert quiet or "\x1b[" in drawn
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)


def test_the_live_panel_shows_loss_perplexity_speed_memory_and_time_left(clock: Clock) -> None:
    file = StringIO()
    console = Console(force_terminal=True, file=file, width=160, color_system=None, legacy_windows=False)
    with Display(console) as shown:
        shown(BEGIN)
        shown(evaluation(0, 60.0, best=True))
        clock.now += 30.0
        shown(train(100))
        shown(evaluation(100, 70.5, best=False))
        shown(SAMPLE.model_copy(update={"step": 100}))
    frame = file.getvalue()[file.getvalue().rindex("100/200") :]
    for text in (
        "30 s left",
        "loss 3.2500",
        "learning rate 5.00e-04",
        "validation perplexity 70.50",
        "best 60.00 at step 0",
        "1,000 tokens/s",
        "1.50 GiB",
        "Once upon a time [bold]",
    ):
        assert text in frame


def test_the_panel_is_complete_before_the_first_step_and_after_the_last() -> None:
    assert "starting …" in panel([BEGIN])
    done = panel([BEGIN, train(200)])
    assert "200/200" in done
    assert "left" not in done[done.rindex("200/200") :]
    assert "best" not in panel([BEGIN, train(1), evaluation(1, 9.0, best=True)])


@pytest.mark.parametrize("width", [40, 60, 80])
def test_figures_are_not_cut_on_a_narrow_terminal(width: int) -> None:
    drawn = panel([BEGIN, evaluation(0, 60.0, best=True), train(5), evaluation(5, 70.5, best=False)], width=width)
    frame = drawn[drawn.rindex("5/200") :]
    for figure in ("loss 3.2500", "validation perplexity 70.50", "best 60.00 at step 0", "1,000 tokens/s", "1.50 GiB"):
        assert figure in frame
    assert max(len(line) for line in frame.splitlines()) <= width


def test_warnings_do_not_break_the_panel_and_results_close_it() -> None:
    drawn = panel([BEGIN, train(1), WARNING, train(2), StageEvent(message="Comparing")])
    assert drawn.count("warning: Memory ran out [at once]") == 1
    *_, last = (line for line in drawn.rstrip().splitlines() if "0:00:0" not in line)  # progress lines are erased
    assert last == "Comparing …"
    assert drawn.rindex("2/200") < drawn.rindex("Comparing")


def test_the_cursor_comes_back_when_a_run_fails() -> None:
    file = StringIO()
    console = Console(force_terminal=True, file=file, width=80, legacy_windows=False)
    shown = Display(console)

    def fail() -> None:
        with shown:
            shown(BEGIN)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1
    shown.close()


def test_quiet_draws_no_panel() -> None:
    assert panel([BEGIN, train(1), WARNING], quiet=True).splitlines() == ["warning: Memory ran out [at once]"]


# Numbers for people


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (600, "10 min 0 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (512 * 2**20, "512.0 MiB"),
        (1.44 * 2**30, "1.4 GiB"),
        (256 * 2**30, "256.0 GiB"),
        (2.5 * 2**40, "2.5 TiB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_long_samples_are_cut_to_one_line() -> None:
    line = show([BEGIN, SAMPLE.model_copy(update={"text": " word" * 100})])[-1]
    assert line.startswith("step 4/200  sample: Once upon word word")
    assert line.endswith("…")
    assert len(line) == len("step 4/200  sample: ") + 160


class Gone(StringIO):
    """A closed terminal."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_closed_terminal_does_not_end_the_run(terminal: bool) -> None:
    with Display(Console(file=Gone(), width=60, force_terminal=terminal)) as shown:
        for event in (BEGIN, train(1), evaluation(1, 12.0, best=True), WARNING, SAMPLE, train(2)):
            shown(event)
        assert shown.quiet


def test_the_choice_of_the_probe_is_printed_in_one_line() -> None:
    chosen = Choice(precision="bf16", attention="documents", micro_batch_size=2, compile="off", threads=2)
    trial = Trial(**chosen.to_dict(), tokens_per_second=900.0)
    event = ProbeEvent(chosen=chosen, trials=[trial] * 3, seconds=4.4)
    line = " ".join(show([event]))
    assert line == "Computing in bf16, 2 sequences per pass, attention by documents, the fastest of 3 tried in 4 s"
    whole = chosen.model_copy(update={"attention": "model", "micro_batch_size": 1})
    alone = ProbeEvent(chosen=whole, trials=[], seconds=0.0, skipped="the run is very short")
    assert " ".join(show([alone])) == "Computing in bf16, 1 sequence per pass, the model's own attention"


def test_progress_without_a_known_total_is_counted(clock: Clock) -> None:
    file = StringIO()
    shown = Display(Console(file=file, width=60))
    for done in (0, 4_096, 1_234_567):
        clock.now += 11
        shown(StageEvent(message="Reading", done=done, unit="documents"))
    assert file.getvalue().splitlines() == ["Reading …", "Reading: 4,096 documents", "Reading: 1,234,567 documents"]


def test_a_terminal_shows_an_activity_and_erases_it_at_the_end() -> None:
    file = StringIO()
    console = Console(file=file, width=80, force_terminal=True)
    with Display(console) as shown:
        shown(StageEvent(message="Measuring", done=3, total=7, unit="batches"))
        assert shown._busy is not None
        shown(StageEvent(message="Measuring", done=5, total=7, unit="batches"))
        shown._busy.refresh()
        assert "5 of 7 batches" in file.getvalue()
        assert "0:00:00" in file.getvalue(), "the elapsed time is shown"
        shown(StageEvent(message="Loading"))
        assert shown._busy is not None
        shown(BEGIN)
        assert shown._busy is None
    assert file.getvalue().count("Measuring …") == 1
    assert file.getvalue().endswith("\x1b[?25h") or shown._busy is None, "the cursor is visible again"
