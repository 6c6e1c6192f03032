"""Test that a bell wakes its waiter, even if it rings before the wait."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from finetale.signals import Bell


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_signal_wakes_the_waiter_in_any_thread() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: received.append(number))
    bell = Bell()
    try:
        os.kill(os.getpid(), signal.SIGHUP)  # before the wait starts
        assert signal.SIGHUP in bell.wait()
        # The system delivers the signal to another thread, so the main thread keeps waiting for a lock.
        other = threading.Thread(target=lambda: (time.sleep(0.1), signal.pthread_kill(threading.get_ident(), 1)))
        other.start()
        assert signal.SIGHUP in bell.wait()
        other.join()
        assert received == [signal.SIGHUP] * 2
    finally:
        bell.close()
        assert bell.wait() == b""
        signal.signal(signal.SIGHUP, before)


def test_rings_are_not_lost_and_closing_ends_the_wait() -> None:
    bell = Bell()
    for _ in range(100_000):
        bell.ring()  # more than the buffer holds
    while set(bell.wait()) == {0}:
        bell.close()
    bell.ring()
    assert bell.wait() == b""
