"""Set before torch is loaded by any test."""

from __future__ import annotations

import signal

from finetale.environment import calm_threads

calm_threads()
# Who runs the tests in the background has them ignore signals, and their child processes with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
