"""A service from its start to its end: it listens while its models are loaded, and finishes what it has begun."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import uvicorn

from finetale.errors import ConfigError, FinetaleError
from finetale.notify import Notify
from finetale.schema import Event, WarningEvent
from finetale.server.access import MOST_HEADER_BYTES, Limits
from finetale.server.answer import Served
from finetale.server.app import Service
from finetale.server.connections import bounded
from finetale.server.engines.pytorch_rows import ALL_THREADS
from finetale.server.logs import logged_as_json
from finetale.server.model_spec import ModelSpec
from finetale.server.vllm import Upstream, close_all
from finetale.signals import Bell, StopRequest, handling, hangups, in_terminal

_log = logging.getLogger("finetale.server")
_reloading = threading.Lock()
_LAST_WORDS_SECONDS = 0.3
"""For telling those who wait that it ends."""


def run(
    specs: list[ModelSpec],
    limits: Limits,
    *,
    host: str,
    port: int,
    drain_seconds: float,
    notify: Notify,
    ready: Callable[[str, list[str]], None],
    reloads: list[int],
) -> None:
    """Serve until SIGINT or SIGTERM; then take nothing new, finish what was begun, at most for `drain_seconds`.

    It listens at once, and says that it is loading until the models are there. SIGHUP opens them again: those that have
    changed take the place of the old ones, which finish what they have begun.

    Args:
        ready: told the address, and of each model its name and engine, once they can be asked.
        reloads: of `hangups`.

    Raises:
        ConfigError: the address can't be listened at.
        FinetaleError: a model can't be served.
    """
    listener = _listen(host, port)
    service = Service(limits)
    config = uvicorn.Config(
        service.app(),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        http=bounded(limits),
        timeout_graceful_shutdown=round(drain_seconds) + 1,
    )
    server = uvicorn.Server(config)
    bell, ended = Bell(), threading.Event()

    def serve() -> None:
        try:
            server.run([listener])
        finally:
            ended.set()
            bell.ring()

    thread = threading.Thread(target=serve, name="finetale-http", daemon=True)
    thread.start()
    try:
        with logged_as_json():
            # Ctrl-C ends the loading at once, and whatever it has started.
            with StopRequest(at_once=True, resumable=False), hangups(reloads):
                for source in specs:
                    opened = source.open(notify)
                    assert opened is not None
                    service.add(opened)
            with _draining(service, server, drain_seconds):
                _settle()
                service.loading = False
                address, number = listener.getsockname()[:2]
                ready(
                    f"http://{f'[{address}]' if ':' in address else address}:{number}",
                    [model.described for model in service.models.values()],
                )
                told = False
                while not ended.is_set():
                    if reloads:  # that came while it was loading, too
                        reloads.clear()
                        # Beside this thread, which has to see to the end meanwhile.
                        threading.Thread(target=reload, args=(service, specs), daemon=True).start()
                    bell.wait()
                    if service.draining and not told:
                        told = True
                        _log.info("ending: what was begun is finished first (Ctrl-C once more ends it at once)")
    finally:
        server.should_exit = True
        thread.join(drain_seconds + 2)
        for model in service.models.values():
            model.close(0.5)
        close_all()
        bell.close()
        while bell.wait():
            pass


def reload(service: Service, specs: list[ModelSpec]) -> None:
    """Open the models again; what can't be opened is told and served on as it was."""
    torch.set_num_threads(ALL_THREADS)  # a thread begins with those of whatever thread has set them last
    with _reloading:
        _reload(service, specs)


def _reload(service: Service, specs: list[ModelSpec]) -> None:
    for source in specs:
        try:
            opened = source.open(_tell, service.models[source.name])
        except (FinetaleError, OSError) as error:
            _log.error("%s can't be opened again: %s", source.name, error)
            continue
        except Exception:  # as where memory runs out; the others may be opened yet
            _log.exception("%s can't be opened again", source.name)
            continue
        if opened is None:
            _log.info("%s has not changed", source.name)
            continue
        old = service.models[source.name]
        service.add(opened)
        _log.info("%s has been opened again", opened.described)
        # What it has begun it ends by itself; its thread and memory go then.
        threading.Thread(target=_retire, args=(old,), daemon=True).start()
        del old, opened


def _retire(model: Served | Upstream) -> None:
    model.close(None)
    del model
    _settle()


def _settle() -> None:
    """Collect garbage, and let later collections pass over what is here: it is looked through in a quarter of a second."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _tell(event: Event) -> None:
    if isinstance(event, WarningEvent):
        _log.warning(event.message)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: it can't, for the address is no one's here or taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"{host}:{port} can't be listened at: {why}.", "Choose another place with --host and --port."
        ) from None


@contextmanager
def _draining(service: Service, server: uvicorn.Server, seconds: float) -> Iterator[None]:
    """SIGTERM and SIGINT drain, as does a terminal that is closed; a second SIGINT ends at once."""
    expiry = threading.Timer(seconds, service.expire)
    expiry.daemon = True

    def end(number: int, frame: FrameType | None) -> None:
        service.draining = True
        server.should_exit, again = True, server.should_exit
        if not again:
            expiry.start()
        elif number == signal.SIGINT:
            threading.Thread(target=leave_at_once, daemon=True).start()

    def leave_at_once() -> None:
        service.expire()
        time.sleep(_LAST_WORDS_SECONDS)
        server.force_exit = True

    with handling({"SIGINT": end, "SIGTERM": end} | ({"SIGHUP": end} if in_terminal() else {})):
        yield
    expiry.cancel()
