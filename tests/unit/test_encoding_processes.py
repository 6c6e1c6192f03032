"""Tokenising with other processes: the same store, and nothing is left behind when one of them or this one stops."""

from __future__ import annotations

import errno
import io
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from finetale import tokenizing
from finetale.text import Part
from finetale.tokenizing import batches, processes
from finetale.tokens import build_store
from tiny import part, story, tokenizer


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "ALONE_CHARACTERS", 2_000)
    monkeypatch.setattr(batches, "BATCH_CHARACTERS", 1_000)
    monkeypatch.setattr(batches, "LONGEST_SENT", 8_000)
    monkeypatch.setattr(tokenizing, "_COMPARED_CHARACTERS", 500)


def parts() -> list[Part]:
    made = [
        part(story(number) + " 你好，世界。", split="validation" if number % 7 == 0 else "train")
        for number in range(60)
    ]
    for number, each in enumerate(made):
        if number % 5 == 1:
            each.personal = ((3, 9),)
        if number % 5 == 2:
            each.context, each.is_example = ((0, 10), (20, 30)), True
    made[40] = part("👩\u200d👩 an emoji 你")
    made[41] = part("")
    made[42] = part("long " * 3_000)
    made[43] = part("dropped", dropped="duplicate")
    return made


def files(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert len(found) == 7, sorted(found)
    return found


def build(folder: Path, number: int, warnings: list[str], progress: Callable[[int], None] | None = None) -> None:
    build_store(
        iter(parts()),
        tokenizer(),
        folder,
        report=dict,
        processes=number,
        warn=warnings.append,
        progress=progress,
    )
    assert psutil.Process().children() == []


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone") / "store"
    build(folder, 0, [])
    return files(folder)


@pytest.mark.parametrize("number", [1, 2])
def test_the_store_does_not_depend_on_the_number_of_processes(
    tmp_path: Path, number: int, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    encode = processes.EncodingProcesses.encode

    def watched(self: processes.EncodingProcesses, texts: list[str]) -> object:
        sent.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(processes.EncodingProcesses, "encode", watched)
    warnings: list[str] = []
    build(tmp_path / "store", number, warnings)
    assert files(tmp_path / "store") == alone
    assert warnings == []
    assert len(sent) > 50, "other processes encoded most of the text"
    assert max(map(len, sent)) < 8_000


@pytest.mark.parametrize("fault", ["killed", "no program", "no tokenizer"])
def test_if_a_process_ends_early_the_rest_is_tokenised_without_it(
    tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    calls = 0
    encode = processes.EncodingProcesses.encode

    def watched(self: processes.EncodingProcesses, texts: list[str]) -> object:
        nonlocal calls
        calls += 1
        started[:] = self._processes
        if fault == "killed" and calls == 4:
            os.kill(started[0].pid, signal.SIGKILL)
        return encode(self, texts)

    monkeypatch.setattr(processes.EncodingProcesses, "encode", watched)
    if fault == "no program":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    if fault == "no tokenizer":
        monkeypatch.setattr(tokenizing.Encoder, "rules", "{}")
    warnings: list[str] = []
    build(tmp_path / "store", 2, warnings)
    assert files(tmp_path / "store") == alone
    reason = {
        "killed": "was killed (SIGKILL)",
        "no program": "can't be started (No such file or directory)",
        "no tokenizer": "ended early (exit code 1)",
    }[fault]
    assert warnings == [f"A process that tokenises the text {reason}. The rest is tokenised without it."]
    assert all(process.returncode is not None for process in started)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_ctrl_c_and_a_full_disk_leave_no_process_and_no_file(tmp_path: Path, error: BaseException) -> None:
    running: list[int] = []

    def progress(number: int) -> None:
        running.append(len(psutil.Process().children()))
        if number > 30:
            raise error

    with pytest.raises(type(error)):
        build(tmp_path / "store", 2, [], progress)
    assert running[-1] == 2
    assert psutil.Process().children() == []
    assert list(tmp_path.iterdir()) == []


def test_a_process_ends_when_the_one_that_started_it_is_gone() -> None:
    command = [sys.executable, "-P", "-m", "finetale.tokenizing"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        processes.send_texts(process.stdin, [tokenizer().backend_tokenizer.to_str()])
        processes.send_texts(process.stdin, ["Once upon a time", "", "once"])
        ids = processes.receive_ids(process.stdout)
        process.stdin.write(struct.pack("<QQ", 5, 100) + b"half of a request")
        process.stdin.close()
        assert process.wait(30) == 0
        assert process.stdout.read() == b""
    assert ids is not None
    expected = tokenizer()(["Once upon a time", "", "once"], add_special_tokens=False)["input_ids"]
    assert [each.tolist() for each in ids] == expected


def test_half_an_answer_is_no_answer() -> None:
    whole = io.BytesIO()
    processes.send_ids(whole, [np.arange(5), np.arange(0), np.arange(3)])
    data = whole.getvalue()
    assert [ids.tolist() for ids in processes.receive_ids(io.BytesIO(data)) or []] == [[0, 1, 2, 3, 4], [], [0, 1, 2]]
    assert [processes.receive_ids(io.BytesIO(data[:size])) for size in (0, 7, 16, 30, len(data) - 1)] == [None] * 5
