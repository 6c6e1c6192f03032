"""Measure how long a service takes to refuse, to answer /health, to free slots and to end, under more than it can take.

    python benchmarks/serve_limits.py [--quick]

The model is tiny, so the figures are those of the service, not of a model. The service runs in a separate process
on the same cores as its clients, so that the figures include the time of the clients. Each load is repeated, by default
eleven times (`--quick`: three; shutdowns three times and once). A bound holds if the median is within it. The loads are
those of `tests/promises/test_service.py`.

Prints a table, and one JSON object as its last line. Exits with 1 if a bound is missed. Run it on an idle machine: the
bounds are for one, and the line before the table warns if the machine is busy. It takes about a minute; `--quick` takes
half of that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import contenders

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import overload
from overload import within
from serving import Serving


class Bound(NamedTuple):
    """A bound on the median of some seconds."""

    name: str
    seconds: float


REFUSED = Bound(f"{overload.NUM_CLIENTS} clients at once: the last status 429", 0.1)
HEALTH = Bound("meanwhile /health, 99th percentile", 0.2)
LARGE = Bound("a body of 50 MB: status 413", 0.5)
ABANDONED = Bound(f"{overload.SLOTS} clients leave: all slots are free, after the current token", 0.1)
SMALL = Bound("/health on an idle service", 0.02)
STUCK = Bound(f"SIGTERM during a step that never ends, deadline {overload.DRAIN_SECONDS} s: process ended", 4.0)
ENDLESS = Bound(f"SIGTERM during long texts, deadline {overload.DRAIN_SECONDS} s: process ended", 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="repeat each load three times, and shutdowns once")
    arguments = parser.parse_args()
    contenders.quiet_transformers()
    from finetale.environment import hardware, versions

    busy = os.getloadavg()[0]
    found: dict[Bound, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["FINETALE_CACHE"] = str(folder / "cache")
        overload.save_long_model(folder)
        for bound, seconds in measured(folder, repeats=3 if arguments.quick else 11, ends=1 if arguments.quick else 3):
            found.setdefault(bound, []).append(seconds)
    if busy > 0.5:
        print(f"The machine is busy (load average {busy:.1f}): the bounds are for an idle one.")
    print_table(found)
    medians = {bound: statistics.median(seconds) for bound, seconds in found.items()}
    rows = {
        bound.name: {"bound": bound.seconds, "median": medians[bound], "all": seconds}
        for bound, seconds in found.items()
    }
    print(json.dumps({"seconds": rows, "load_average": busy, "hardware": hardware(), "versions": versions("openvino")}))
    sys.exit(any(median > bound.seconds for bound, median in medians.items()))


def measured(folder: Path, *, repeats: int, ends: int) -> Iterator[tuple[Bound, float]]:
    """Yield the seconds of each load, for its bound."""
    with started(folder, *overload.COMMAND) as serving:
        within(120, overload.burst(serving))  # to warm up
        for _ in range(repeats):
            burst = within(120, overload.burst(serving))
            yield REFUSED, burst.refused[-1]
            yield HEALTH, burst.health_p99
            yield LARGE, within(60, overload.large_body(serving)).seconds
            abandoned = within(60, overload.abandoned(serving))
            yield ABANDONED, max(0, abandoned.seconds - abandoned.step)
            yield SMALL, statistics.mean(within(60, overload.small_answers(serving)))
        assert serving.end()[0] == 0
    for _ in range(ends):
        with Serving(folder, python=["-c", overload.STUCK]) as serving:
            yield STUCK, within(60, overload.terminated(serving)).seconds
        with started(folder, "tiny", "--drain", str(overload.DRAIN_SECONDS)) as serving:
            yield ENDLESS, within(60, overload.terminated(serving)).seconds


def started(folder: Path, *words: str) -> Serving:
    """Start `finetale serve WORDS` as a separate program."""
    return Serving(folder, python=["-m", "finetale", "serve", *words, "--port", "0"])


def print_table(found: dict[Bound, list[float]]) -> None:
    """Median and range of each load, in milliseconds, and whether its bound holds."""
    print(f"{'milliseconds':<80}{'median':>8}{'range':>16}{'bound':>8}")
    for bound, seconds in found.items():
        middle = statistics.median(seconds)
        limits = f"{min(seconds) * 1e3:,.1f}-{max(seconds) * 1e3:,.1f}"
        missed = "" if middle <= bound.seconds else "  missed"
        print(f"{bound.name:<80}{middle * 1e3:>8,.1f}{limits:>16}{bound.seconds * 1e3:>8,.0f}{missed}")


if __name__ == "__main__":
    main()
