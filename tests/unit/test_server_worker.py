"""The worker serves clients in turn, drops those that left, isolates failures, and finishes started jobs on close."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from finetale.errors import RequestError
from finetale.server import wire
from finetale.server.completion import Completion, Piece, Vocabulary
from finetale.server.engines import Job, Token
from finetale.server.worker import Ticket, Worker
from tiny import tokenizer

BAD = "The lamp"


class Counting:
    """An engine that writes one and the same token, when it may."""

    name = "counting"
    threads = 1

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.jobs: list[Job] = []
        self.admitted: list[list[int]] = []
        self.may = threading.Event()
        self.may.set()
        self.breaks = False

    @property
    def active(self) -> int:
        return len(self.jobs)

    def admit(self, groups: Sequence[Sequence[Job]]) -> None:
        assert self.active + sum(map(len, groups)) <= self.slots
        if any(tokenizer().decode(group[0].ids, skip_special_tokens=True) == BAD for group in groups):
            raise ValueError("this prompt breaks it")
        self.admitted += [list(group[0].ids) for group in groups]
        self.jobs += [job for group in groups for job in group]

    def step(self) -> list[tuple[Job, Token]]:
        self.may.wait()
        time.sleep(0.001)
        if self.breaks:
            self.breaks = False
            raise ValueError("this step breaks it")
        for job in self.jobs:
            job.tokens.append(70)
        return [(job, Token(70)) for job in self.jobs]

    def drop(self, job: Job) -> None:
        if job in self.jobs:
            self.jobs.remove(job)


class Asked:
    """A request in a worker, and what it was told."""

    def __init__(self, worker: Worker, client: str, **values: Any) -> None:
        request = wire.CompletionRequest.model_validate({"model": "x", "prompt": "A", "max_tokens": 3} | values)
        self.told: queue.Queue[Piece | Exception | None] = queue.Queue()
        vocabulary = Vocabulary(tokenizer(), len(tokenizer()), 64)
        self.ticket: Ticket = worker.submit(Completion(request, vocabulary), client, self.told.put)

    def all(self) -> list[Piece | Exception]:
        found: list[Piece | Exception] = []
        while (piece := self.told.get(timeout=10)) is not None:
            found.append(piece)
            if isinstance(piece, Exception):
                break
        return found


@pytest.fixture
def engine() -> Counting:
    return Counting()


@pytest.fixture
def worker(engine: Counting) -> Worker:
    return Worker(engine, max_waiting=5)


def test_more_prompts_and_samples_than_slots(worker: Worker) -> None:
    asked = Asked(worker, "a", prompt=["A", "B", "C"], n=3)
    pieces = asked.all()
    assert {piece.index for piece in pieces if isinstance(piece, Piece)} == set(range(9))
    assert sum(piece.finish_reason == "length" for piece in pieces if isinstance(piece, Piece)) == 9
    assert worker.busy == worker.waiting == 0


def test_clients_take_turns(worker: Worker, engine: Counting) -> None:
    engine.may.clear()
    first = [Asked(worker, "busy", prompt="first", n=2)]
    while not engine.active:
        time.sleep(0.001)
    first += [Asked(worker, "busy", prompt=f"more {n}", n=2) for n in range(3)]
    late = Asked(worker, "late", prompt="late", n=2)
    engine.may.set()
    for asked in [*first, late]:
        asked.all()
    order = [tokenizer().decode(ids, skip_special_tokens=True) for ids in engine.admitted]
    assert order == ["first", "more 0", "late", "more 1", "more 2"]


def test_all_are_told_when_the_engine_is_lost_while_prompts_are_read(
    engine: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*words: Any) -> None:
        raise RuntimeError("the device is gone")

    engine.slots = 4
    engine.may.clear()
    worker = Worker(engine, max_waiting=9)
    asked = [Asked(worker, "a")]
    while not engine.active:
        time.sleep(0.001)
    asked += [Asked(worker, "a", prompt=str(number)) for number in range(6)]
    monkeypatch.setattr(engine, "admit", lost)
    monkeypatch.setattr(engine, "drop", lost)
    engine.may.set()
    for each in asked:
        assert isinstance(each.all()[-1], Exception)
    assert not worker.works


def test_a_full_queue_and_a_closing_service_are_refused(worker: Worker, engine: Counting) -> None:
    engine.may.clear()
    asked = [Asked(worker, "a", n=2)]
    while not engine.active:
        time.sleep(0.001)
    asked += [Asked(worker, "a", n=2) for _ in range(5)]
    with pytest.raises(RequestError) as full:
        Asked(worker, "a")
    assert full.value.status == 429
    asked.append(Asked(worker, "b", n=2))  # whom nobody keeps out by filling the queue
    asked.append(Asked(worker, "c", n=2))
    with pytest.raises(RequestError) as full:
        Asked(worker, "d")
    assert full.value.status == 429
    closing = threading.Thread(target=worker.close, args=(10,))
    closing.start()
    while not worker._closing:
        time.sleep(0.001)
    with pytest.raises(RequestError) as closed:
        Asked(worker, "b")
    assert closed.value.status == 503
    engine.may.set()
    assert all(len(each.all()) >= 2 for each in asked), "what was taken is finished"
    closing.join(10)
    assert not closing.is_alive()


def test_who_left_is_forgotten_in_the_queue_and_at_work(worker: Worker, engine: Counting) -> None:
    engine.may.clear()
    gone = Asked(worker, "a", n=2, max_tokens=50)
    while not engine.active:
        time.sleep(0.001)
    waiting, stays = Asked(worker, "a", prompt="waiting"), Asked(worker, "b", prompt="stays")
    worker.cancel(gone.ticket)
    worker.cancel(waiting.ticket)
    engine.may.set()
    stays.all()
    assert engine.active == worker.busy == worker.waiting == 0
    assert len(gone.ticket.completion.groups[0][0].job.tokens) <= 2, "one step at most"
    assert "waiting" not in [tokenizer().decode(ids, skip_special_tokens=True) for ids in engine.admitted]


def test_a_prompt_that_fails_fails_alone(worker: Worker, engine: Counting) -> None:
    engine.may.clear()
    fine = Asked(worker, "b", max_tokens=5)
    bad = Asked(worker, "a", prompt=[BAD, "A", "B"])
    engine.may.set()
    assert isinstance(bad.all()[-1], ValueError)
    assert all(isinstance(piece, Piece) for piece in fine.all())
    assert all(isinstance(piece, Piece) for piece in Asked(worker, "a").all()), "and the next one works"
    assert worker.busy == worker.waiting == 0


def test_a_step_that_fails_is_told_to_all_that_were_in_it_and_no_other(worker: Worker, engine: Counting) -> None:
    engine.may.clear()
    hit = Asked(worker, "a", n=2)
    while not engine.active:
        time.sleep(0.001)
    after = Asked(worker, "b")
    engine.breaks = True
    engine.may.set()
    assert isinstance(hit.all()[-1], ValueError)
    assert all(isinstance(piece, Piece) for piece in after.all())


def test_a_prompt_alone_can_be_asked_for(worker: Worker, engine: Counting) -> None:
    (piece,) = Asked(worker, "a", echo=True, max_tokens=0, logprobs=1).all()
    assert isinstance(piece, Piece)
    assert (piece.text, piece.finish_reason) == ("", "length")
    assert engine.active == 0
