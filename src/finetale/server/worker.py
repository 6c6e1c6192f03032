"""A thread that keeps an engine busy: requests wait in a bounded queue, clients take turns, and who left is forgotten."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

import torch

from finetale.errors import GenerationError, RequestError
from finetale.generate.sampler import NOT_A_NUMBER
from finetale.server.access import QUEUE_FULL
from finetale.server.completion import Completion, Piece, Writer
from finetale.server.engines import NOT_NUMBERS, Engine
from finetale.server.turns import Turns

_log = logging.getLogger("finetale.server")

_PROMPT_TOKENS = 512
"""Read between two steps, besides the prompt that they end in."""
Tell = Callable[["Piece | Exception | None"], None]


class Ticket:
    """A request in the worker: `tell` gets each Piece, then None at the end, or an exception. Called from the worker's thread."""

    def __init__(self, completion: Completion, tell: Tell) -> None:
        self.completion = completion
        self.tell = tell
        self.cancelled = False
        self.waiting: deque[list[Writer]] = deque()
        self.running: list[Writer] = []


class Worker:
    """Runs the engine.

    Args:
        engine: used by this thread alone.
        most_waiting: requests that may wait for their turn, besides those that are being worked on; see Turns.
    """

    def __init__(self, engine: Engine, *, most_waiting: int = 32) -> None:
        self.engine = engine
        self._queue: Turns[Ticket] = Turns(most_waiting)
        self._active: dict[int, tuple[Ticket, Writer]] = {}  # by id of the job
        self._admitted: list[tuple[Ticket, list[Writer]]] = []  # their prompts are being read
        self._change = threading.Condition()
        self._closing = False
        self.works = True
        self._thread = threading.Thread(target=self._run, name="finetale-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Samples that are being worked on."""
        return len(self._active)

    def submit(self, completion: Completion, client: str, tell: Tell) -> Ticket:
        """Put a request into the queue.

        Raises:
            RequestError: 429, there is no room; 503, the service is about to end.
        """
        ticket = Ticket(completion, tell)
        ticket.waiting = deque(_portions(completion, self.engine.slots))
        with self._change:
            self.check(client)
            self._queue.put(ticket, client, completion.request.user or "")
            self._change.notify()
        return ticket

    def check(self, client: str) -> None:
        """Whether a client may submit something now.

        Raises:
            RequestError: as `submit` does.
        """
        if not self.works:
            raise RequestError("The engine has failed.", status=503, kind="server_error", code="failed")
        if self._closing:
            raise RequestError("The service is about to end.", status=503, kind="server_error", code="draining")
        if self.is_full(client):
            raise RequestError(QUEUE_FULL[0], status=429, kind="rate_limit_error", code=QUEUE_FULL[1])

    def is_full(self, client: str) -> bool:
        """Whether a client has to come again later."""
        return not self._queue.has_room(client, max(0, self.engine.slots - self.engine.active))

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request; its slots are free after the step that is being computed."""
        with self._change:
            ticket.cancelled = True
            self._queue.remove(ticket)
            self._change.notify()

    def expire(self) -> None:
        """There is no more time: tell all that are not done so."""
        with self._change:
            waiting = [ticket for ticket in self._tickets() if not ticket.cancelled]
            self._queue.clear()
            self._closing = True
            for ticket in waiting:
                ticket.cancelled = True
            self._change.notify()
        for ticket in waiting:
            ticket.tell(RequestError("The service ends.", status=503, kind="server_error", code="draining"))

    def close(self, seconds: float | None) -> bool:
        """Take no more requests, finish those that are here, and end. Whether that was done in time; None: however long it takes."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        torch.set_num_threads(self.engine.threads)  # of this thread
        try:
            self._work()
        except Exception as error:  # not even the cleaning up works: a lost device
            _log.exception("the engine is lost")
            with self._change:
                self.works = False
                tickets = self._tickets()
                self._active.clear()
                self._queue.clear()
            for ticket in tickets:
                ticket.tell(error)

    def _tickets(self) -> list[Ticket]:
        """All that are not done, each once."""
        begun = [ticket for ticket, _ in [*self._active.values(), *self._admitted]]
        return list({id(ticket): ticket for ticket in [*begun, *self._queue]}.values())

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._active and not self.waiting and not self._closing:
                    self._change.wait()
                if self._closing and not self._active and not self.waiting:
                    return
            try:
                self._forget()
                self._admit()
                self._step()
            except Exception as error:
                _log.exception("a step failed")
                self._fail(error)

    def _forget(self) -> None:
        for ticket, writer in list(self._active.values()):
            if ticket.cancelled:
                self._finish(ticket, writer)

    def _admit(self) -> None:
        """Let prompts in while there are slots, a client after the other, and not so many that those at work wait long."""
        admitted = self._admitted = []
        tokens, free = 0, self.engine.slots - self.engine.active
        with self._change:
            while tokens < _PROMPT_TOKENS:
                ticket = self._queue.first()
                if ticket is None or len(ticket.waiting[0]) > free:
                    break
                writers = ticket.waiting.popleft()
                self._queue.pass_on(done=not ticket.waiting)
                ticket.running += writers
                admitted.append((ticket, writers))
                tokens += len(writers[0].job.ids)
                free -= len(writers)
        if not admitted:
            return
        try:
            self.engine.admit([[writer.job for writer in writers] for _, writers in admitted])
        except Exception as error:
            if len(admitted) > 1:
                _log.warning("prompts failed together; each is read alone: %s", error)
            for ticket, writers in admitted:
                self._admit_alone(ticket, writers)
        else:
            for ticket, writers in admitted:
                self._start(ticket, writers)
        admitted.clear()

    def _admit_alone(self, ticket: Ticket, writers: list[Writer]) -> None:
        """After prompts failed together: whoever's it was fails alone."""
        if ticket.cancelled:  # another prompt of the same request has failed
            return
        try:
            self.engine.admit([[writer.job for writer in writers]])
        except Exception as error:
            _log.exception("a prompt failed")
            self._end(ticket, error)
        else:
            self._start(ticket, writers)

    def _start(self, ticket: Ticket, writers: list[Writer]) -> None:
        for writer in writers:
            self._active[id(writer.job)] = (ticket, writer)
        for writer in writers:
            if writer.finished is not None:  # only the prompt was wanted
                self._finish(ticket, writer)
                self._tell(ticket, writer)

    def _step(self) -> None:
        if not self._active:
            return
        for job, token in self.engine.step():
            if id(job) not in self._active:  # its request has just failed
                continue
            ticket, writer = self._active[id(job)]
            if token.id == NOT_A_NUMBER:
                self._end(ticket, GenerationError(NOT_NUMBERS, ""))
                continue
            writer.accept(token)
            if writer.finished is not None:
                self._finish(ticket, writer)
            self._tell(ticket, writer)

    def _tell(self, ticket: Ticket, writer: Writer) -> None:
        if ticket.cancelled:
            return
        if piece := writer.take():
            ticket.tell(piece)
        if not ticket.waiting and not ticket.running:
            ticket.tell(None)

    def _finish(self, ticket: Ticket, writer: Writer) -> None:
        self.engine.drop(writer.job)
        self._active.pop(id(writer.job), None)
        if writer in ticket.running:
            ticket.running.remove(writer)

    def _end(self, ticket: Ticket, error: Exception) -> None:
        """Tell a request that it failed; nothing more is done for it."""
        told = ticket.cancelled
        ticket.cancelled = True
        for writer in list(ticket.running):
            self._finish(ticket, writer)
        with self._change:
            self._queue.remove(ticket)
            ticket.waiting.clear()
        if not told:
            ticket.tell(error)

    def _fail(self, error: Exception) -> None:
        """A step failed: nobody knows for whom, so all that were in it are told."""
        for ticket in {id(ticket): ticket for ticket, _ in self._active.values()}.values():
            self._end(ticket, error)


def _portions(completion: Completion, slots: int) -> list[list[Writer]]:
    """The samples of each prompt, as many together as there are slots."""
    return [group[at : at + slots] for group in completion.groups for at in range(0, len(group), slots)]
