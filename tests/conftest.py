"""Set before torch is loaded by any test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from finetale.environment import calm_threads

calm_threads()
# Who runs the tests in the background has them ignore signals, and their child processes with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is taken from the cache of who runs the tests, and nothing put there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETALE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
