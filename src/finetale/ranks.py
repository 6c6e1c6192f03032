"""The processes that train one run together: which one this is, sums over all of them, and failures that all share.

torchrun starts the processes and describes them in environment variables; so does `accelerate launch`. The process of
rank 0 is the main one: it alone reads the text, writes files and prints. The others load from the run directory what
they need, and only train. This module alone imports `torch.distributed`.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetale.errors import FinetaleError, InterruptedRun, RankError, TrainingError
from finetale.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    import torch

_TIME_LIMIT = datetime.timedelta(minutes=30)
"""Maximum wait for the other processes in one operation. Saving and sampling on the main process count too."""
_FAREWELL = 60.0
"""Seconds that a process waits after a failure, so that the main one can save its files first."""
_LEAVING = 5.0
"""Seconds that the main process waits at its end for the others."""
_POLL = 0.2
"""Seconds between two looks at what the main process has published."""
_BUCKET_BYTES = 25 << 20
"""Bytes of gradients that are summed together, as in PyTorch's DDP."""
_OTHER_LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCHER = "FINETALE_LAUNCHER"
"""Variable with the process id of the `finetale` command that has started this process and watches over it."""

_runs = itertools.count()
"""Numbers of the runs of a program; each has keys of its own in the store."""

Kind = Literal["stopped", "memory", "failed"]


def world_size() -> int:
    """Return the number of processes that train together."""
    return _number("WORLD_SIZE", 1)


def is_main() -> bool:
    """Return whether this is the only process, or the one of rank 0."""
    return world_size() == 1 or _number("RANK", 0) == 0


def local_rank() -> int:
    """Return the number of this process among those of this machine, counted from 0."""
    return _number("LOCAL_RANK", 0) if world_size() > 1 else 0


def processes_here() -> int:
    """Return how many processes of the run share this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", world_size())) if world_size() > 1 else 1


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run. For a process alone every sum is its own, and nothing is waited for."""

    rank: int = 0
    world: int = 1
    store: Any = None
    """Key-value store of the launcher, which all processes reach."""

    @property
    def is_main(self) -> bool:
        """Return whether this process writes and prints."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, in place; return it."""
        if self.world > 1:
            import torch.distributed

            with _reached():
                torch.distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients of parameters over all processes.

        A parameter without a gradient in all processes stays without one. A process that had no block in this step
        adds zeros.
        """
        if self.world == 1:
            return
        import torch

        here = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        anywhere = self.sum(here).tolist()
        gradients = []
        for parameter, number in zip(parameters, anywhere, strict=True):
            if number:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self.sum(flat)
            for gradient, piece in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    def mesh(self, device: str) -> Any:
        """Return PyTorch's description of all processes as one row, for a type of device."""
        from torch.distributed.device_mesh import init_device_mesh

        with _reached():
            return init_device_mesh(device, (self.world,))

    def copy_from_main(self, model: torch.nn.Module) -> None:
        """Give a model in every process the weights and buffers of the main one."""
        if self.world == 1:
            return
        import torch
        import torch.distributed

        with torch.no_grad(), _reached():
            for tensor in [*model.parameters(), *model.buffers()]:
                whole = tensor.detach().contiguous()
                torch.distributed.broadcast(whole.view(-1).view(torch.uint8), src=0)
                if whole.data_ptr() != tensor.data_ptr():
                    tensor.copy_(whole)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Let all processes fail if one fails in this part, so that none waits for another forever.

        Raises:
            InterruptedRun: another process was stopped by a signal.
            MemoryError: memory ran out in another process.
            RankError: another process failed in another way.
        """
        if self.world == 1:
            yield
            return
        try:
            yield
        except RankError:  # the other processes can't be reached
            raise
        except BaseException as error:
            self._exchange(error)
            raise
        found = self._exchange(None)
        if found is not None:
            number, kind, message, hint, code = found
            if kind == "stopped":
                raise InterruptedRun(message)
            if kind == "memory":
                raise MemoryError(f"in process {number + 1} of {self.world}")
            raise RankError(f"Process {number + 1} of {self.world} failed: {message}", hint, exit_code=code)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let this process end if it fails in this part, in which it can't tell the others.

        They wait for its weights, and end when it has.

        Raises:
            RankError: this process failed, or another one has ended.
        """
        try:
            yield
        except Exception as error:
            if _is_of_network(error):
                with _reached():
                    raise
            kind, message, _, code = _described(error)
            where, hint = f"process {self.rank + 1} of {self.world}", ""
            if kind == "memory":
                message = "memory ran out, and where the weights are divided, passes can't be made smaller in between."
                hint = "Begin with a smaller --micro-batch-size, or use more processes."
            raise RankError(f"A step failed in {where}: {message}", hint, exit_code=code, lost=True) from error

    def _exchange(self, error: BaseException | None) -> tuple[int, Kind, str, str, int] | None:
        """Tell the others of a failure; return the first failure of all processes, None if there is none."""
        import torch
        import torch.distributed

        count = self.sum(torch.tensor(int(error is not None)))
        if not int(count):
            return None
        mine = None if error is None else (self.rank, *_described(error))
        told: list[Any] = [None] * self.world
        with _reached():
            torch.distributed.all_gather_object(told, mine)
        # A signal goes before the failures that it causes, and lack of memory last, because it is tried again.
        order = ("stopped", "failed", "memory")
        first: tuple[int, Kind, str, str, int] = min(filter(None, told), key=lambda found: order.index(found[1]))
        return first

    # -- before and after the training loop

    def publish(self, plan: dict[str, Any]) -> None:
        """Tell the other processes what to do: which run to train, from which checkpoint."""
        if self.world > 1:
            self.store.set("plan", json.dumps(plan))

    def plan(self, check: Callable[[], None]) -> dict[str, Any]:
        """Wait until the main process has published what to do. This takes as long as the text takes.

        Args:
            check: called between two looks; may raise to stop.

        Raises:
            RankError: the main process failed. It says why itself.
        """
        plan: dict[str, Any] = self._wait_for("plan", check)
        return plan

    def wait_for_main(self, check: Callable[[], None], *, seconds: float | None = None) -> None:
        """Wait until the main process has finished its files.

        Raises:
            RankError: the main process failed, and it says why itself.
        """
        with contextlib.suppress(TimeoutError):
            self._wait_for("end", check, seconds=seconds)

    def wait_after_failure(self) -> None:
        """Wait a while for the main process, which saves its files before it leaves: launchers end all at the first."""
        with contextlib.suppress(FinetaleError):
            self.wait_for_main(lambda: None, seconds=_FAREWELL)

    def _wait_for(self, key: str, check: Callable[[], None], *, seconds: float | None = None) -> Any:
        until = None if seconds is None else time.monotonic() + seconds
        with _reached():
            while not self.store.check([key]):
                check()
                if until is not None and time.monotonic() > until:
                    raise TimeoutError
                time.sleep(_POLL)
            found = json.loads(self.store.get(key))
        if found.get("exit"):
            raise RankError("The main process failed.", exit_code=found["exit"])
        return found

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Tell the other processes how the work of the main one ended."""
        code = 0
        try:
            yield
        except BaseException as error:
            code = _described(error)[3]
            raise
        finally:
            if self.world > 1:
                with contextlib.suppress(Exception):  # the launcher may be gone
                    if not self.store.check(["plan"]):
                        self.publish({"exit": code})
                    self.store.set("end", json.dumps({"exit": code}))
                    self._wait_for_the_others()

    def leave(self) -> None:
        """Tell the main process that this one needs nothing more from it."""
        with contextlib.suppress(Exception):
            self.store.add("left", 1)

    def _wait_for_the_others(self) -> None:
        """Wait shortly until the others have read how the work ended: this process may hold the store."""
        until = time.monotonic() + _LEAVING
        while self.store.add("left", 0) < self.world - 1 and time.monotonic() < until:
            time.sleep(_POLL)


ALONE = Ranks()
"""The only process of a run."""


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that a launcher started; leave them at the end.

    Raises:
        TrainingError: the launcher does not say how to reach the others, or they can't be reached.
    """
    _check_launcher()
    if world_size() == 1:
        _leave_with_the_launcher()
        yield Ranks()
        return
    import torch
    import torch.distributed as distributed
    from torch._C._distributed_c10d import PrefixStore

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank())
    try:
        store, rank, world = _rendezvous()
        number = next(_runs)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=PrefixStore(f"group-{number}", store),
            rank=rank,
            world_size=world,
            timeout=_TIME_LIMIT,
        )
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise TrainingError(
            f"The other processes can't be reached at {address}: {_first_line(error)}.",
            "Check that all of them were started, and that no firewall is between them.",
        ) from error
    _leave_with_the_launcher()
    try:
        yield Ranks(rank, world, PrefixStore(f"run-{number}", store))
    finally:
        with contextlib.suppress(Exception):
            distributed.destroy_process_group()


def has_launcher() -> bool:
    """Return whether a `finetale` command has started this process and watches over it."""
    return os.environ.get(LAUNCHER) == str(os.getppid())


def _leave_with_the_launcher() -> None:
    """Stop as at SIGTERM if the command that has started this process is gone."""

    def watch() -> None:
        while has_launcher():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if has_launcher():
        threading.Thread(target=watch, name="finetale-launcher", daemon=True).start()


def _check_launcher() -> None:
    for name in ("WORLD_SIZE", *_OTHER_LAUNCHERS):
        missing = [each for each in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(each)]
        if _number(name, 1) > 1 and missing:
            raise TrainingError(
                f"Several processes were started ({name}={os.environ[name]}), but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set, so they can't reach each other.",
                "Start them with `finetale train --processes N` or with torchrun.",
            )


@functools.cache
def _rendezvous() -> tuple[Any, int, int]:
    """Return the store of the launcher, rank and world size. Once per program: the main process may hold the store."""
    from torch.distributed import rendezvous  # type: ignore[attr-defined]

    store, rank, world = next(rendezvous("env://", timeout=_TIME_LIMIT))
    return store, rank, world


def _described(error: BaseException) -> tuple[Kind, str, str, int]:
    """Return kind, message, hint and exit code of a failure."""
    if isinstance(error, InterruptedRun):
        return "stopped", error.message, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "Stopped by a signal.", "", 130
    if isinstance(error, Exception) and is_out_of_memory(error):
        return "memory", _first_line(error), "", 1
    if isinstance(error, FinetaleError):
        return "failed", error.message, error.hint, error.exit_code
    return "failed", f"{type(error).__name__}: {_first_line(error)}.", "", 70


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Turn a failure of the network into one sentence.

    Raises:
        RankError: another process has ended, or did not answer within the time limit.
    """
    try:
        yield
    except RuntimeError as error:  # among them DistError and its kinds
        if is_out_of_memory(error):
            raise
        lost = RankError(
            "Another process of this run has ended or does not answer.",
            "Its own message is above, or in the log of its machine. Continue with `finetale resume`.",
            lost=True,
        )
        lost.told = LAUNCHER in os.environ
        raise lost from error


def _is_of_network(error: Exception) -> bool:
    """Return whether an error of torch comes from the connection to the other processes."""
    from torch.distributed import DistError

    of_torch = isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "onnection"))
    return isinstance(error, DistError) or of_torch


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Divide tensors into lists of one type and of about `_BUCKET_BYTES`."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        full = sum(other.nbytes for other in bucket) + tensor.nbytes > _BUCKET_BYTES
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _first_line(error: BaseException) -> str:
    return (next(iter(str(error).splitlines()), "") or type(error).__name__).rstrip(".")
