"""Test that a signal can interrupt a long call that runs no Python code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from finetale.signals import Stopped, StopRequest, leave_open


def test_results_and_errors_are_passed_on() -> None:
    assert leave_open(lambda: 7, threading.Event()) == 7
    with pytest.raises(ZeroDivisionError):
        leave_open(lambda: 1 // 0, threading.Event())


def test_the_function_is_called_directly_outside_of_the_main_thread() -> None:
    seen: list[threading.Thread] = []
    thread = threading.Thread(
        target=lambda: leave_open(lambda: seen.append(threading.current_thread()), threading.Event())
    )
    thread.start()
    thread.join()
    assert seen == [thread]


def test_a_signal_abandons_the_call_and_notifies_it() -> None:
    abandon = threading.Event()
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    started = time.monotonic()
    with pytest.raises(Stopped), StopRequest(at_once=True):
        leave_open(lambda: abandon.wait(30), abandon)
    assert time.monotonic() - started < 2
    assert abandon.is_set()


def test_a_process_ends_despite_an_abandoned_call() -> None:
    code = """
import os, signal, threading, time
from finetale.signals import Stopped, StopRequest, leave, leave_open
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    with StopRequest(at_once=True):
        leave_open(lambda: [time.sleep(0.001) for _ in range(20_000)], threading.Event())
except Stopped:
    print("left", flush=False)
    leave(75)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (75, "left\n", "")
    assert time.monotonic() - started < 15, "the process does not wait for the call"
