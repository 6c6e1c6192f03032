"""Test the worker: turns of clients, cancelled requests, isolated failures, and finishing started jobs on close."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from finetale.errors import RequestError
from finetale.server import wire
from finetale.server.completion import Completion, Piece, Vocabulary
from finetale.server.engines import Job, Token
from finetale.server.worker import Ticket, Worker
from tiny import tokenizer

FAILING = "The lamp"


class FakeEngine:
    """An engine that always generates the same token. Clear the event `may` to pause it."""

    name = "fake"
    threads = 1
    rates: ClassVar[dict[str, float]] = {}
    num_bytes = 0
    block = 1
    mixes = False
    rounds = False

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.jobs: list[Job] = []
        self.unread: list[Job] = []
        self.admitted: list[list[int]] = []
        self.rests = 0
        self.may = threading.Event()
        self.may.set()
        self.fails_next = False

    @property
    def active(self) -> int:
        return len(self.jobs) + len(self.unread)

    @property
    def free(self) -> int:
        return self.slots - self.active

    @property
    def reading(self) -> int:
        return len(self.unread)

    def admit(self, groups: Sequence[Sequence[Job]]) -> None:
        assert self.active + sum(map(len, groups)) <= self.slots
        self.admitted += [list(group[0].ids) for group in groups]
        self.unread += [job for group in groups for job in group]

    def read(self, tokens: int) -> list[tuple[Job, Exception | None]]:
        found: list[tuple[Job, Exception | None]] = []
        for job in self.unread:
            bad = tokenizer().decode(job.ids, skip_special_tokens=True) == FAILING
            found.append((job, ValueError("this prompt fails") if bad else None))
        self.jobs += [job for job, error in found if error is None]
        self.unread.clear()
        return found

    def rest(self) -> None:
        self.rests += 1

    def step(self) -> list[tuple[Job, Token]]:
        self.may.wait()
        time.sleep(0.001)
        if self.fails_next:
            self.fails_next = False
            raise ValueError("this step fails")
        for job in self.jobs:
            job.tokens.append(70)
        return [(job, Token(70)) for job in self.jobs]

    def drop(self, job: Job) -> None:
        for jobs in (self.jobs, self.unread):
            if job in jobs:
                jobs.remove(job)


class Sent:
    """A request to a worker, and the pieces and errors that it received."""

    def __init__(self, worker: Worker, client: str, **values: Any) -> None:
        request = wire.CompletionRequest.model_validate({"model": "x", "prompt": "A", "max_tokens": 3} | values)
        self.received: queue.Queue[Piece | Exception | None] = queue.Queue()
        vocabulary = Vocabulary(tokenizer(), len(tokenizer()), 64)
        self.ticket: Ticket = worker.submit(Completion(request, vocabulary), client, self.received.put)

    def all(self) -> list[Piece | Exception]:
        found: list[Piece | Exception] = []
        while (piece := self.received.get(timeout=10)) is not None:
            found.append(piece)
            if isinstance(piece, Exception):
                break
        return found


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def worker(engine: FakeEngine) -> Worker:
    return Worker(engine, max_waiting=5)


def test_a_request_can_have_more_samples_than_slots(worker: Worker) -> None:
    asked = Sent(worker, "a", prompt=["A", "B", "C"], n=3)
    pieces = asked.all()
    assert {piece.index for piece in pieces if isinstance(piece, Piece)} == set(range(9))
    assert sum(piece.finish_reason == "length" for piece in pieces if isinstance(piece, Piece)) == 9
    assert worker.busy == worker.waiting == 0


def test_clients_take_turns(worker: Worker, engine: FakeEngine) -> None:
    engine.may.clear()
    first = [Sent(worker, "busy", prompt="first", n=2)]
    while not engine.active:
        time.sleep(0.001)
    first += [Sent(worker, "busy", prompt=f"more {n}", n=2) for n in range(3)]
    late = Sent(worker, "late", prompt="late", n=2)
    engine.may.set()
    for asked in [*first, late]:
        asked.all()
    order = [tokenizer().decode(ids, skip_special_tokens=True) for ids in engine.admitted]
    assert order == ["first", "more 0", "late", "more 1", "more 2"]


def test_all_requests_get_an_error_if_the_engine_fails_while_it_reads_prompts(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*words: Any) -> None:
        raise RuntimeError("the device is gone")

    engine.slots = 4
    engine.may.clear()
    worker = Worker(engine, max_waiting=9)
    asked = [Sent(worker, "a")]
    while not engine.active:
        time.sleep(0.001)
    asked += [Sent(worker, "a", prompt=str(number)) for number in range(6)]
    monkeypatch.setattr(engine, "admit", lost)
    monkeypatch.setattr(engine, "drop", lost)
    engine.may.set()
    for each in asked:
        assert isinstance(each.all()[-1], Exception)
    assert not worker.works


def test_a_full_queue_and_a_closing_service_are_refused(worker: Worker, engine: FakeEngine) -> None:
    engine.may.clear()
    asked = [Sent(worker, "a", n=2)]
    while not engine.active:
        time.sleep(0.001)
    asked += [Sent(worker, "a", n=2) for _ in range(5)]
    with pytest.raises(RequestError) as full:
        Sent(worker, "a")
    assert full.value.status == 429
    asked.append(Sent(worker, "b", n=2))  # a full queue has room for new clients
    asked.append(Sent(worker, "c", n=2))
    with pytest.raises(RequestError) as full:
        Sent(worker, "d")
    assert full.value.status == 429
    closing = threading.Thread(target=worker.close, args=(10,))
    closing.start()
    while not worker._closing:
        time.sleep(0.001)
    with pytest.raises(RequestError) as closed:
        Sent(worker, "b")
    assert closed.value.status == 503
    engine.may.set()
    assert all(len(each.all()) >= 2 for each in asked), "accepted requests are finished"
    closing.join(10)
    assert not closing.is_alive()


def test_cancelled_requests_leave_the_queue_and_the_engine(worker: Worker, engine: FakeEngine) -> None:
    engine.may.clear()
    gone = Sent(worker, "a", n=2, max_tokens=50)
    while not engine.active:
        time.sleep(0.001)
    waiting, stays = Sent(worker, "a", prompt="waiting"), Sent(worker, "b", prompt="stays")
    worker.cancel(gone.ticket)
    worker.cancel(waiting.ticket)
    engine.may.set()
    stays.all()
    assert engine.active == worker.busy == worker.waiting == 0
    assert len(gone.ticket.completion.groups[0][0].job.tokens) <= 2, "a cancelled request gets at most one more step"
    assert "waiting" not in [tokenizer().decode(ids, skip_special_tokens=True) for ids in engine.admitted]


def test_a_failing_prompt_does_not_affect_other_requests(worker: Worker, engine: FakeEngine) -> None:
    engine.may.clear()
    fine = Sent(worker, "b", max_tokens=5)
    bad = Sent(worker, "a", prompt=[FAILING, "A", "B"])
    engine.may.set()
    assert isinstance(bad.all()[-1], ValueError)
    assert all(isinstance(piece, Piece) for piece in fine.all())
    assert all(isinstance(piece, Piece) for piece in Sent(worker, "a").all()), "the next request works"
    assert worker.busy == worker.waiting == 0


def test_a_failing_step_ends_only_the_requests_in_it(worker: Worker, engine: FakeEngine) -> None:
    engine.may.clear()
    hit = Sent(worker, "a", n=2)
    while not engine.active:
        time.sleep(0.001)
    after = Sent(worker, "b")
    engine.fails_next = True
    engine.may.set()
    assert isinstance(hit.all()[-1], ValueError)
    assert all(isinstance(piece, Piece) for piece in after.all())


def test_echo_without_new_tokens_returns_only_the_prompt(worker: Worker, engine: FakeEngine) -> None:
    (piece,) = Sent(worker, "a", echo=True, max_tokens=0, logprobs=1).all()
    assert isinstance(piece, Piece)
    assert (piece.text, piece.finish_reason) == ("", "length")
    assert engine.active == 0


@pytest.mark.parametrize("values", [{"echo": True, "logprobs": 1}, {"prompt_logprobs": 0}])
def test_rounded_weights_give_no_log_probabilities_of_a_prompt(
    worker: Worker, engine: FakeEngine, values: dict[str, Any]
) -> None:
    Sent(worker, "a", **values)
    engine.rounds = True
    with pytest.raises(RequestError, match="--precision fp32") as refused:
        Sent(worker, "a", **values)
    assert (refused.value.status, refused.value.code) == (400, "inexact")
    assert Sent(worker, "a", logprobs=1).all(), "those of new tokens are given"


def test_an_idle_engine_returns_its_memory(worker: Worker, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetale.server.worker._IDLE_SECONDS", 0.05)
    for rests in (1, 2):
        assert Sent(worker, "a").all()
        deadline = time.monotonic() + 10
        while engine.rests < rests:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    time.sleep(0.2)
    assert engine.rests == 2, "once per rest"
