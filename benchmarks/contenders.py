"""Run and time transformers.Trainer. Shared by the benchmarks that compare Finetale with it."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock


class Clock:
    """Measures CPU and wall seconds from the end of the skipped steps to the last step, and the peak memory."""

    def __init__(self, skipped: int = 1) -> None:
        self.skipped = skipped
        self.done = 0
        self.started = (0.0, 0.0)
        self.figures: dict[str, float] = {}

    def step_done(self) -> None:
        """Record the end of a step."""
        import torch

        from finetale.environment import peak_memory

        self.done += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = (time.process_time(), time.perf_counter())
        if self.done == self.skipped:
            self.started = now
        elif self.done > self.skipped:
            self.figures = {
                "cpu_seconds": now[0] - self.started[0],
                "wall_seconds": now[1] - self.started[1],
                "peak_bytes": peak_memory(),
            }


def library_bytes() -> int:
    """Return the memory of this process with torch and transformers loaded, in bytes. All contenders need both."""
    import accelerate
    import psutil
    import torch
    import transformers

    _ = accelerate.Accelerator, torch.nn.Module, transformers.GPT2LMHeadModel
    return int(psutil.Process().memory_info().rss)


def run_trainer(
    network: Any, rows: Any, collate: Any, *, batch_size: int, steps: int, skipped: int = 1, **settings: Any
) -> dict[str, Any]:
    """Time the steps of `transformers.Trainer` after the skipped ones; return seconds, text targets and memory."""
    clock, tokens = Clock(skipped), []
    passes = settings.get("gradient_accumulation_steps", 1)

    def counted(batch: Any) -> None:
        tokens.append((batch["labels"][:, 1:] != -100).sum())

    train_with_trainer(
        network,
        rows,
        collate,
        clock.step_done,
        counted,
        batch_size=batch_size,
        steps=steps + skipped,
        **settings,
    )
    return clock.figures | {"tokens": int(sum(tokens[skipped * passes :]))}


def train_with_trainer(
    network: Any,
    rows: Any,
    collate: Any,
    step_done: Callable[[], None],
    batch_seen: Callable[[Any], None] = lambda batch: None,
    *,
    batch_size: int,
    steps: int,
    **settings: Any,
) -> None:
    """Run steps of `transformers.Trainer`.

    Args:
        step_done: called after each step.
        batch_seen: called with each batch.
    """
    import transformers

    class Counted(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            batch_seen(inputs)
            return super().training_step(model, inputs, *rest)

    class Timed(transformers.TrainerCallback):
        def on_step_end(self, *rest: Any, **more: Any) -> None:
            step_done()

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            max_steps=steps,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **{"learning_rate": 5e-5} | settings,
        )
        Counted(model=network, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Timed()]).train()


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Wait until no other process is inside this context with the file named in GPU_LOCK; without it, do nothing."""
    if "GPU_LOCK" not in os.environ:
        yield
        return
    with filelock.FileLock(os.environ["GPU_LOCK"]):
        yield


def in_process(script: str, *words: str) -> dict[str, Any]:
    """Run a benchmark script in a new process and return the figures, which are its last line of output."""
    done = subprocess.run([sys.executable, script, *words], check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def median(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of one contender: medians of the rates over its turns, and the highest peak memory."""
    return turns[-1] | {
        "tokens_per_cpu_second": statistics.median(turn["tokens"] / turn["cpu_seconds"] for turn in turns),
        "tokens_per_second": statistics.median(turn["tokens"] / turn["wall_seconds"] for turn in turns),
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
    }


def blocks_of(lines: list[str], tokenizer: Any, size: int) -> list[dict[str, Any]]:
    """Return rows as run_clm builds them: the joined text in blocks of equal length, without the remainder."""
    joined = [token for ids in tokenizer(lines, verbose=False)["input_ids"] for token in ids]
    starts = range(0, len(joined) - size + 1, size)
    return [{"input_ids": joined[at : at + size], "labels": joined[at : at + size]} for at in starts]


def padded_lines(lines: list[str], tokenizer: Any, cut: int) -> tuple[list[dict[str, Any]], Any]:
    """Return rows and collator as tutorials build them: one example per line, truncated and padded to one length."""
    import transformers

    tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(lines, truncation=True, max_length=cut, padding="max_length")
    pairs = zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    rows = [{"input_ids": ids, "attention_mask": mask} for ids, mask in pairs]
    return rows, transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)


def lines_of(source: str) -> list[str]:
    """Return the non-empty lines of a text file, or of the bundled tales."""
    if source == "bundled:tales":
        from finetale.config import TextSettings
        from finetale.text import read_parts

        parts, _ = read_parts((source,), TextSettings())
        text = "\n".join(part.text for part in parts)
    else:
        text = Path(source).read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line.strip()]


def quiet_transformers() -> None:
    """Switch off the progress bars and warnings of transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
