"""Test an overloaded service: it refuses excess requests at once, does not hang or grow, and shuts down on signals."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import overload
from overload import DRAIN_SECONDS, endless, within
from serving import Client, Serving
from tiny import save_model


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Serve a small model with slots for all clients that the tests disconnect."""
    folder = tmp_path_factory.mktemp("load")
    overload.save_long_model(folder)
    with Serving(folder, *overload.COMMAND) as started:
        yield started
        assert started.end()[0] == 0


def test_200_simultaneous_clients(serving: Serving) -> None:
    """Refusals come before the last completion, and /health answers in the meantime."""
    found = within(120, overload.burst(serving))
    slowest, p99 = found.refused[-1] * 1e3, found.health_p99 * 1e3
    print(f"{len(found.served)} served, {len(found.refused)} refused within {slowest:.0f} ms; /health {p99:.0f} ms")
    assert found.refused[-1] < found.served[-1]
    assert found.health_p99 < found.served[len(found.served) // 2]


def test_a_large_body_takes_little_time_and_memory(serving: Serving) -> None:
    found = within(60, overload.large_body(serving))
    print(f"{found.status} after {found.processor_seconds * 1e3:.0f} ms of processor time, {found.memory / 1e6:.1f} MB")
    assert found.status == 413
    assert found.processor_seconds < 1
    assert found.memory < 60e6


def test_disconnected_clients_free_their_slots(serving: Serving) -> None:
    found = within(60, overload.abandoned(serving))
    print(f"the slots are free after {found.seconds * 1e3:.0f} ms; a step takes {found.step * 1e3:.0f} ms")
    assert found.seconds < (overload.LONG - 100) * found.step / 10, (
        "the slots are free long before the texts would have ended"
    )


def test_small_responses_are_not_delayed(serving: Serving) -> None:
    """Headers and body are sent in one write. The second of two writes can wait 40 ms (Nagle's algorithm)."""
    waits = within(60, overload.small_answers(serving))
    print(f"{waits[100] * 1e3:.2f} ms per request")
    assert waits[20] < 0.035, "with the delay, even the fastest tenth would take 40 ms"


@pytest.mark.parametrize("engine", ["stuck", "torch", "openvino"])
def test_unfinished_work_is_abandoned_at_the_deadline(tmp_path: Path, engine: str) -> None:
    """The work is a step that never returns, or texts that would take minutes."""
    overload.save_long_model(tmp_path)
    words = ["-c", overload.STUCK] if engine == "stuck" else None
    with Serving(tmp_path, "tiny", "--engine", engine, "--drain", str(DRAIN_SECONDS), python=words) as serving:
        found = within(60, overload.terminated(serving))
        print(f"{engine}: ended {found.seconds:.2f} s after SIGTERM, with a deadline of {DRAIN_SECONDS} s")
        if engine != "stuck":
            assert found.seconds > 0.9, "the service waits until the deadline"
        assert b'"code":"draining"' in found.data, "the waiting client gets an error"
        assert found.data.rstrip().endswith(b"0"), "the stream ends with the last chunk"


def test_waiting_clients_get_an_answer_at_an_immediate_shutdown(tmp_path: Path) -> None:
    """A second Ctrl-C stops the service before the deadline."""
    overload.save_long_model(tmp_path)
    with Serving(tmp_path, "tiny", "--engine", "torch", "--drain", "60") as serving:

        async def go() -> tuple[tuple[int, dict[str, str], bytes, float], bytes]:
            whole, stream = await Client.to(serving), await Client.to(serving)
            stream.send("POST", "/v1/completions", endless(stream=True))
            assert (await stream.head())[0] == 200
            asked = asyncio.ensure_future(whole.ask("POST", "/v1/completions", endless()))
            await asyncio.sleep(0.3)
            serving.process.send_signal(signal.SIGINT)
            while "press Ctrl-C again to stop immediately" not in serving.log():
                await asyncio.sleep(0.02)
            assert not asked.done()
            serving.process.send_signal(signal.SIGINT)
            found = await asked, await stream.reader.read()
            await whole.close()
            await stream.close()
            return found

        (status, _, body, _), data = asyncio.run(asyncio.wait_for(go(), 60))
        assert serving.process.wait(10) == 0
        assert (status, json.loads(body)["error"]["code"]) == (503, "draining")
        assert b'"code":"draining"' in data
        assert "Traceback" not in serving.log()


def test_an_unread_log_does_not_block_requests(tmp_path: Path) -> None:
    save_model(tmp_path / "tiny")
    command = [sys.executable, "-m", "finetale", "serve", "tiny", "--engine", "torch", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().partition("127.0.0.1:")[2].partition("/")[0])

        async def go() -> None:
            client = Client(*await asyncio.open_connection("127.0.0.1", port))
            for _ in range(1500):  # lines of 150 bytes, into a pipe that holds 64 kB
                assert (await client.ask("GET", "/health"))[0] == 200
            await client.close()

        asyncio.run(asyncio.wait_for(go(), 60))
        process.kill()
        process.communicate()
