"""Set up every test: one torch thread per process, default signal handlers, and a separate cache.

`make test` runs one pytest worker per core (pytest-xdist). Use `pytest -n 0` to debug in one process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from finetale.environment import available_memory, calm_threads, num_cores

# The expected values are those of a CPU. tests/invariant also runs on a GPU (benchmarks/gpu/README.md).
if os.environ.get("FINETALE_TEST_DEVICE", "cpu") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Set before torch is loaded, here and in the processes that tests start, because the workers use all cores.
os.environ["OMP_NUM_THREADS"] = "1"
calm_threads()
# A shell that runs the tests in the background lets them and their child processes ignore signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine must not decide whether a property holds.
settings.register_profile("finetale", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("finetale")

BYTES_PER_WORKER = 3 * 2**30
"""Memory of one worker and the processes that its tests start."""


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for `-n auto`: one per available core, fewer if memory is short."""
    return max(1, min(num_cores(), available_memory() // BYTES_PER_WORKER))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETALE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
