"""Run the tasks of benchmarks/gpu/order.sh one by one, within a number of minutes, and resume where they stopped.

A task is a process. Its exit code, its seconds and its result (the JSON object in the last line of its output, or the
figures of its JUnit file) are written to state.json after each task. A later call with this file skips finished tasks.
A task is not started if the time left is below what it needs. It is stopped at its own limit or at the end of the time.
A task that failed is tried once more by a later call. Tasks that measure start together, four at a time, because most
of their time goes into imports and compilation. A lock (GPU_LOCK) lets one of them at a time use the GPU to measure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRIES = 2
TOGETHER = 4
"""Tasks of the stages `fast` and `serve` that run at the same time."""


@dataclass(frozen=True)
class Task:
    """One process of a stage.

    Attributes:
        needs: seconds that must be left to start it.
        limit: seconds after which it is stopped.
        tests: whether it is a run of pytest.
    """

    stage: str
    name: str
    words: tuple[str, ...]
    needs: int
    limit: int
    tests: bool = False
    variables: dict[str, str] = field(default_factory=dict)


def tasks(rehearsal: bool) -> list[Task]:
    """Return all tasks, the most valuable first within each stage."""
    found = [Task("correct", "doctor", ("-m", "finetale", "doctor", "--json"), 30, 90)]
    on_device = {} if rehearsal else {"FINETALE_TEST_DEVICE": "cuda"}
    files = [f"tests/invariant/test_{name}.py" for name in ("devices_agree", "masked_loss", "training_agrees")]
    words: tuple[str, ...] = ("-m", "pytest", *files, "-v", "-W", "default", "-p", "no:cacheprovider")
    words += ("-m", "slow or not slow", "-n", "2" if rehearsal else "8", "--dist", "worksteal")
    found.append(Task("correct", "invariants", words, 90, 900 if rehearsal else 230, True, on_device))
    found += fast(rehearsal)
    sizes = ("--tiny",) if rehearsal else ()
    for contender in ("finetale", "transformers"):
        words = ("benchmarks/gpu/serve.py", contender, *sizes)
        found.append(Task("serve", f"serve, {contender}", words, 60, 200))
    words = ("benchmarks/gpu/base.py", *sizes)
    found.append(Task("base", "base", words, 60, 560))
    return found


def fast(rehearsal: bool) -> list[Task]:
    """Return the tasks that measure training."""
    compiled, plain = "finetale compiled", "finetale"
    theirs, theirs_plain = "trainer compiled", "trainer"
    runs = [  # (shape, contender, largest micro-batch, more words)
        ("gpt2", theirs, 32, ()),
        ("gpt2", compiled, 32, ("--profile",)),
        ("gpt2-large", theirs, 8, ("--steps", "8")),
        ("gpt2-large", compiled, 8, ("--steps", "8")),
        ("llama-135m", theirs, 16, ()),
        ("llama-135m", compiled, 16, ("--profile",)),
        ("gpt2", theirs_plain, 32, ()),
        ("gpt2", plain, 32, ()),
        ("gpt2-dropout", compiled, 32, ()),
        ("gpt2-large", theirs_plain, 8, ("--steps", "8")),
        ("llama-135m", theirs_plain, 16, ()),
        ("gpt2-medium", theirs, 16, ()),
        ("gpt2-medium", compiled, 16, ()),
        ("gpt2-medium", theirs_plain, 16, ()),
        ("gpt2", "finetale max-autotune", 32, ()),
    ]
    if rehearsal:
        runs = [("tiny", plain, 16, ("--profile",)), ("tiny", theirs_plain, 16, ()), ("tiny-llama", compiled, 16, ())]
    return [
        Task(
            "fast",
            f"{shape}, {name}",
            ("benchmarks/train_gpu.py", "--shapes", shape, "--contenders", name, "--micro-batch", str(size), *more),
            75,
            400,
        )
        for shape, name, size, more in runs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help="correct, fast, serve, base; all if none is named")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these tasks, by their full names")
    parser.add_argument("--minutes", type=float, default=4.0, help="no task runs longer than to the end of this time")
    parser.add_argument("--state", type=Path, help="state.json of an earlier call")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--list", action="store_true", help="print the tasks and their state only")
    arguments = parser.parse_args()
    out = Path(os.environ["OUT"])
    state: dict[str, Any] = {}
    for file in (arguments.state, out / "state.json"):
        if file is not None and file.exists():
            state = json.loads(file.read_text(encoding="utf-8"))
            break
    todo = [task for task in tasks(arguments.rehearse) if not arguments.stages or task.stage in arguments.stages]
    todo = [task for task in todo if not arguments.only or task.name in arguments.only]
    end = time.monotonic() + 60 * arguments.minutes
    together = [] if arguments.list else [task for task in todo if task.stage in ("fast", "serve")]
    alone = [] if arguments.list else [task for task in todo if task not in together]
    writing = threading.Lock()

    def attempt(task: Task) -> None:
        earlier = state.get(task.name, {"tries": 0, "rc": None})
        left = end - time.monotonic()
        if earlier["rc"] == 0 or earlier["tries"] >= TRIES or left < min(task.needs, 60 * arguments.minutes):
            return
        found = run(task, min(task.limit, left), out, writing) | {"tries": earlier["tries"] + 1}
        with writing:
            state[task.name] = found
            (out / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    for task in alone:
        attempt(task)
    with ThreadPoolExecutor(1 if arguments.rehearse else TOGETHER) as pool:
        for done in [pool.submit(attempt, task) for task in together]:
            done.result()
    summarise(todo, state)


def run(task: Task, seconds: float, out: Path, writing: threading.Lock) -> dict[str, Any]:
    """Run a task; return its exit code (None if it was stopped), seconds and result.

    Args:
        writing: held while the task's output is appended to log.txt.
    """
    report = out / "tests.xml"
    words = [sys.executable, *task.words, *((f"--junitxml={report}",) if task.tests else ())]
    variables = os.environ | task.variables | {"GPU_LOCK": str(Path(tempfile.gettempdir()) / "gpu.lock")}
    print(f"{task.stage}: {task.name} (at most {seconds:.0f} s)", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True)
        stopped = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            stopped = True
        finally:  # the workers of a task belong to its session
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        log.seek(0)
        output = log.read()
    with writing, (out / "log.txt").open("ab") as whole:
        whole.write(f"\n===== {task.name}\n".encode() + output)
    lines = output.decode(errors="replace").splitlines()
    found: dict[str, Any] = {"rc": None if stopped else code, "seconds": time.monotonic() - began}
    found["result"] = outcomes(report) if task.tests else last_json(lines)
    if found["rc"] != 0:
        found["end"] = lines[-15:]
    return found


def last_json(lines: list[str]) -> Any:
    """Return the last object of JSON in the output: the last line, or all lines; None if there is none."""
    for text in (*reversed(lines[-5:]), "\n".join(lines)):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


def outcomes(report: Path) -> dict[str, str] | None:
    """Return the outcome of each test in a JUnit file: passed, skipped, or the first line of its error."""
    if not report.exists():
        return None
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        bad = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        outcome = "skipped" if case.find("skipped") is not None else "passed"
        found[case.get("name", "?")] = (
            outcome if bad is None else (bad.get("message") or "failed").splitlines()[0][:200]
        )
    report.unlink()
    return found


def summarise(todo: list[Task], state: dict[str, Any]) -> None:
    """Print a line per task, the tests that failed, and ratios to the best other contender of each shape."""
    print(f"\n{'stage':<9}{'task':<36}{'state':<10}{'seconds':>8}")
    speeds: dict[str, dict[str, float]] = {}
    for task in todo:
        found = state.get(task.name)
        if found is None:
            print(f"{task.stage:<9}{task.name:<36}{'to do':<10}")
            continue
        word = {0: "done", None: "stopped"}.get(found["rc"], f"failed {found['rc']}")
        print(f"{task.stage:<9}{task.name:<36}{word:<10}{found['seconds']:>8.0f}")
        result = found["result"] or {}
        if task.tests:
            counts = {kind: sum(value == kind for value in result.values()) for kind in ("passed", "skipped")}
            print(f"{'':<9}{counts['passed']} passed, {counts['skipped']} skipped, {len(result)} in all")
            for name, value in result.items():
                if value not in counts:
                    print(f"{'':<9}FAILED {name}: {value}")
        for shape, rows in result.get("shapes", {}).items():
            for name, row in rows.items():
                if "error" in row:
                    print(f"{'':<9}{row['error']}")
                    continue
                speeds.setdefault(shape, {})[name] = row["tokens_per_second"]
                mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
                print(
                    f"{'':<9}{row['tokens_per_second']:,.0f} tokens/s, MFU {mfu}, {row['peak_bytes'] / 2**20:,.0f} MiB,"
                    f" micro-batch {row['micro_batch_size']}"
                )
        for clients, rate in result.get("served_tokens_per_second", {}).items():
            print(f"{'':<9}{clients} clients: {rate:,.0f} tokens/s")
        if found["rc"] not in (0, None):
            print("".join(f"{'':<11}{line[:150]}\n" for line in found.get("end", [])[-4:]), end="")
    for shape, rates in speeds.items():
        ours = [rate for name, rate in rates.items() if name.startswith("finetale")]
        theirs = [rate for name, rate in rates.items() if name.startswith("trainer")]
        if ours and theirs:
            print(f"{shape}: {max(ours) / max(theirs):.2f} times the Trainer")


if __name__ == "__main__":
    main()
