"""The thread that runs an engine. Requests wait in a bounded queue in which clients take turns."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from finetale.errors import GenerationError, RequestError
from finetale.generate.sampler import NOT_A_NUMBER
from finetale.server.access import QUEUE_FULL
from finetale.server.completion import ChoiceBuilder, Completion, Piece
from finetale.server.engines import NOT_NUMBERS, Engine
from finetale.server.pace import Pace
from finetale.server.turns import Turns
from finetale.speed import allocator

_log = logging.getLogger("finetale.server")

_IDLE_SECONDS = 60.0
"""Time without requests after which the engine returns its memory of keys and values."""
_INEXACT = (
    "The log-probabilities of a prompt are for evaluation, and this model is served with weights in 8 bits, which "
    "change them. Start the service with --precision fp32.",
    "logprobs",
)
Deliver = Callable[["Piece | Exception | None"], None]


class Ticket:
    """A request in the worker.

    `deliver` receives each Piece and then None, or an exception. It runs in the worker's thread.
    """

    def __init__(self, completion: Completion, deliver: Deliver) -> None:
        self.completion = completion
        self.deliver = deliver
        self.cancelled = False
        self.waiting: deque[list[ChoiceBuilder]] = deque()
        self.running: list[ChoiceBuilder] = []


class Worker:
    """Runs an engine in its own thread.

    Args:
        engine: the engine. Only this worker may use it.
        max_waiting: maximum number of requests in the queue, besides those being generated; see Turns.
    """

    def __init__(self, engine: Engine, *, max_waiting: int = 32) -> None:
        self.engine = engine
        self._queue: Turns[Ticket] = Turns(max_waiting)
        self._active: dict[int, tuple[Ticket, ChoiceBuilder]] = {}  # by id of the job
        self._pace = Pace(block=engine.block, mixes=engine.mixes)
        self._num_preparing = 0
        self._change = threading.Condition()
        self._closing = False
        self.works = True
        self._thread = threading.Thread(target=self._run, name="finetale-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Number of completions being generated."""
        return len(self._active)

    def num_waiting(self, model: str) -> int:
        """Return the number of requests in the queue for a model: the engine's, or one of its adapters."""
        with self._change:
            return sum(ticket.completion.request.model == model for ticket in self._queue)

    def num_busy(self, model: str) -> int:
        """Return the number of completions being generated for a model: the engine's, or one of its adapters."""
        running = list(self._active.values())
        return sum(ticket.completion.request.model == model for ticket, _ in running)

    def submit(self, completion: Completion, client: str, deliver: Deliver) -> Ticket:
        """Put a request into the queue.

        Raises:
            RequestError: 400 if the request wants the log-probabilities of a prompt and the weights are rounded; 429 if
                the queue is full; 503 if the service is shutting down or the engine has failed.
        """
        if self.engine.rounds and any(builder.job.reads_prompt for group in completion.groups for builder in group):
            raise RequestError(*_INEXACT, code="inexact")
        ticket = Ticket(completion, deliver)
        ticket.waiting = deque(_portions(completion, self.engine.slots))
        with self._change:
            self.check(client)
            self._queue.put(ticket, client, completion.request.user or "")
            self._change.notify()
        return ticket

    def check(self, client: str) -> None:
        """Check that a client may submit a request now.

        Raises:
            RequestError: as `submit` does.
        """
        if not self.works:
            raise RequestError("The engine has failed.", status=503, kind="server_error", code="failed")
        if self._closing:
            raise RequestError("The service is shutting down.", status=503, kind="server_error", code="draining")
        if self.is_full(client):
            raise RequestError(QUEUE_FULL[0], status=429, kind="rate_limit_error", code=QUEUE_FULL[1])

    def is_full(self, client: str) -> bool:
        """Return whether the queue is full for a client."""
        return not self._queue.has_room(client, max(0, self.engine.free) - self._num_preparing)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Count a request as waiting while it is tokenized."""
        self._num_preparing += 1  # in the event loop only
        try:
            yield
        finally:
            self._num_preparing -= 1

    def cancel(self, ticket: Ticket) -> None:
        """Cancel a request. Its slots become free after the current step."""
        with self._change:
            ticket.cancelled = True
            self._queue.remove(ticket)
            self._change.notify()

    def expire(self) -> None:
        """End all unfinished requests with an error."""
        with self._change:
            waiting = [ticket for ticket in self._tickets() if not ticket.cancelled]
            self._queue.clear()
            self._closing = True
            for ticket in waiting:
                ticket.cancelled = True
            self._change.notify()
        for ticket in waiting:
            ticket.deliver(
                RequestError("The service is shutting down.", status=503, kind="server_error", code="draining")
            )

    def close(self, seconds: float | None) -> bool:
        """Reject new requests, finish the others, and end.

        Args:
            seconds: how long to wait for the end; None waits without limit.

        Returns:
            Whether the worker has ended.
        """
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        torch.set_num_threads(self.engine.threads)  # applies to this thread
        try:
            self._work()
        except Exception as error:  # even the cleanup failed, as after a lost device
            _log.exception("the engine has failed")
            with self._change:
                self.works = False
                tickets = self._tickets()
                self._active.clear()
                self._queue.clear()
            for ticket in tickets:
                ticket.deliver(error)

    def _tickets(self) -> list[Ticket]:
        """Return all unfinished requests, each once."""
        begun = [ticket for ticket, _ in self._active.values()]
        return list({id(ticket): ticket for ticket in [*begun, *self._queue]}.values())

    def _work(self) -> None:
        while True:
            self._wait()
            if self._closing and not self._active and not self.waiting:
                return
            try:
                self._drop_cancelled()
                self._admit()
                self._read_prompts()
                self._step()
            except Exception as error:
                _log.exception("a step failed")
                self._fail(error)

    def _drop_cancelled(self) -> None:
        for ticket, builder in list(self._active.values()):
            if ticket.cancelled:
                self._finish(ticket, builder)

    def _wait(self) -> None:
        """Wait for requests. After some time without any, return the engine's memory of keys and values."""
        with self._change:
            if self._change.wait_for(self._is_wanted, _IDLE_SECONDS):
                return
        self.engine.rest()  # without the lock, for which the event loop waits
        allocator.release()
        with self._change:
            self._change.wait_for(self._is_wanted)

    def _is_wanted(self) -> bool:
        return bool(self._active or self.waiting or self._closing)

    def _admit(self) -> None:
        """Start waiting requests while slots are free, in turns by client."""
        admitted: list[list[ChoiceBuilder]] = []
        with self._change:
            free = self.engine.free
            while (ticket := self._queue.first()) is not None and len(ticket.waiting[0]) <= free:
                builders = ticket.waiting.popleft()
                self._queue.pass_on(done=not ticket.waiting)
                ticket.running += builders
                for builder in builders:
                    self._active[id(builder.job)] = (ticket, builder)
                admitted.append(builders)
                free -= len(builders)
        if admitted:
            self.engine.admit([[builder.job for builder in builders] for builders in admitted])

    def _read_prompts(self) -> None:
        """Read a part of the waiting prompts, so small that running streams hardly wait."""
        if not self.engine.reading:
            return
        running = self.engine.active > self.engine.reading
        with self._pace.reading(running) as tokens:
            found = self.engine.read(tokens)
        for job, error in found:
            if id(job) not in self._active:  # its request has just failed
                continue
            ticket, builder = self._active[id(job)]
            if error is not None:
                _log.error("a prompt failed", exc_info=error)
                self._end(ticket, error)
            elif builder.finished is not None:  # the request wants the prompt only
                self._finish(ticket, builder)
                self._deliver(ticket, builder)

    def _step(self) -> None:
        if self.engine.active == self.engine.reading:
            return
        with self._pace.stepping():
            made = self.engine.step()
        for job, token in made:
            if id(job) not in self._active:  # its request has just failed
                continue
            ticket, builder = self._active[id(job)]
            if token.id == NOT_A_NUMBER:
                self._end(ticket, GenerationError(NOT_NUMBERS, ""))
                continue
            if builder.constraint is not None and builder.constraint.failure is not None:
                self._end(ticket, builder.constraint.failure)
                continue
            builder.accept(token)
            if builder.finished is not None:
                self._finish(ticket, builder)
            self._deliver(ticket, builder)

    def _deliver(self, ticket: Ticket, builder: ChoiceBuilder) -> None:
        if ticket.cancelled:
            return
        if piece := builder.take():
            ticket.deliver(piece)
        if not ticket.waiting and not ticket.running:
            ticket.deliver(None)

    def _finish(self, ticket: Ticket, builder: ChoiceBuilder) -> None:
        self.engine.drop(builder.job)
        self._active.pop(id(builder.job), None)
        if builder in ticket.running:
            ticket.running.remove(builder)

    def _end(self, ticket: Ticket, error: Exception) -> None:
        """End a request with an error and drop its jobs."""
        already_ended = ticket.cancelled
        ticket.cancelled = True
        for builder in list(ticket.running):
            self._finish(ticket, builder)
        with self._change:
            self._queue.remove(ticket)
            ticket.waiting.clear()
        if not already_ended:
            ticket.deliver(error)

    def _fail(self, error: Exception) -> None:
        """End all requests in a failed step; the error does not show which one caused it."""
        for ticket in {id(ticket): ticket for ticket, _ in self._active.values()}.values():
            self._end(ticket, error)


def _portions(completion: Completion, slots: int) -> list[list[ChoiceBuilder]]:
    """Return the choices of each prompt in groups of at most `slots`."""
    return [group[at : at + slots] for group in completion.groups for at in range(0, len(group), slots)]
