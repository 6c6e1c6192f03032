"""A bell wakes who waits for it, whenever it is rung."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from finetale.signals import Bell


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_signal_wakes_whatever_thread_it_comes_to() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: told.append(number))
    bell = Bell()
    try:
        os.kill(os.getpid(), signal.SIGHUP)  # before anybody waits
        assert signal.SIGHUP in bell.wait()
        # Where the system brings it to a thread that is not Python's main one, which then sleeps on in a lock.
        other = threading.Thread(target=lambda: (time.sleep(0.1), signal.pthread_kill(threading.get_ident(), 1)))
        other.start()
        assert signal.SIGHUP in bell.wait()
        other.join()
        assert told == [signal.SIGHUP] * 2
    finally:
        bell.close()
        assert bell.wait() == b""
        signal.signal(signal.SIGHUP, before)


def test_rings_are_not_lost_and_closing_lets_go() -> None:
    bell = Bell()
    for _ in range(100_000):
        bell.ring()  # more than fit
    while set(bell.wait()) == {0}:
        bell.close()
    bell.ring()
    assert bell.wait() == b""
