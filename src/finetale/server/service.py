"""The life of a service: it listens while it loads its models, and finishes running requests before it ends."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
import uvicorn

from finetale.errors import FinetaleError
from finetale.notify import Notify
from finetale.schema import Event, WarningEvent
from finetale.server.access import MAX_HEADER_BYTES, Limits
from finetale.server.adapter_spec import AdapterSpec
from finetale.server.answer import Served
from finetale.server.app import Service
from finetale.server.connections import bounded
from finetale.server.engines.pytorch_rows import ALL_THREADS
from finetale.server.listening import listening
from finetale.server.logs import logged_as_json
from finetale.server.model_spec import BYTES_PER_WEIGHT, ModelSpec
from finetale.server.tls import Tls
from finetale.server.vllm import Upstream, close_all
from finetale.signals import Bell, StopRequest, handling, hangups, in_terminal
from finetale.speed import allocator

_log = logging.getLogger("finetale.server")
_reloading = threading.Lock()
_LAST_ERRORS_SECONDS = 0.3
"""Time to send the last errors to waiting clients."""


Spec = ModelSpec | AdapterSpec


def run(
    specs: Sequence[Spec],
    limits: Limits,
    *,
    host: str,
    port: int,
    drain_seconds: float,
    notify: Notify,
    ready: Callable[[str, list[str]], None],
    reloads: list[int],
    check: Callable[[], None] = lambda: None,
    tls: Tls | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; then reject new requests and finish the running ones.

    The service listens immediately, and reports that it is loading until all models are ready. SIGHUP reloads the
    models: a model that has changed replaces the old one, which finishes its requests.

    Args:
        specs: the models; a base before its adapters.
        limits: limits on requests and connections.
        host: address to listen on, or `unix:PATH`.
        port: port to listen on; 0 for any free one.
        drain_seconds: time limit for finishing running requests.
        notify: receives the events of loading.
        ready: callback; receives the URL (or `unix:PATH`) and, for each model, its name and engine, once requests are
            served.
        reloads: list that `hangups` fills.
        check: callback that raises an error if the models can't be served; called before any is loaded.
        tls: certificate and key; None for HTTP. A reload reads them again.

    Raises:
        ConfigError: the service cannot listen on the address.
        FinetaleError: a model cannot be served.
    """
    with listening(host, port) as (listener, url):
        url = url.replace("http://", "https://") if tls is not None else url
        _run(listener, specs, limits, drain_seconds, notify, lambda served: ready(url, served), reloads, check, tls)


def _run(
    listener: socket.socket,
    specs: Sequence[Spec],
    limits: Limits,
    drain_seconds: float,
    notify: Notify,
    ready: Callable[[list[str]], None],
    reloads: list[int],
    check: Callable[[], None],
    tls: Tls | None,
) -> None:
    service = Service(limits)
    service.parents = {spec.name: spec.parent for spec in specs if spec.parent is not None}
    config = uvicorn.Config(
        service.app(),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        http=bounded(limits),
        timeout_graceful_shutdown=round(drain_seconds) + 1,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
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
            # Ctrl-C ends loading and all processes that it has started.
            with StopRequest(at_once=True, resumable=False), hangups(reloads):
                check()
                for spec in specs:
                    opened = spec.open(notify, service.models)
                    assert opened is not None
                    service.add(opened)
                _log_copies(specs, service)
            with _draining(service, server, drain_seconds):
                _settle()
                service.loading = False
                ready([model.described for model in service.models.values()])
                announced = False
                while not ended.is_set():
                    if reloads:  # also signals that came while loading
                        reloads.clear()
                        if tls is not None and config.ssl is not None:
                            tls.reload(config.ssl)
                        # In another thread: this one must handle shutdown meanwhile.
                        threading.Thread(target=reload, args=(service, specs), daemon=True).start()
                    bell.wait()
                    if service.draining and not announced:
                        announced = True
                        _log.info("shutting down: finishing running requests (press Ctrl-C again to stop immediately)")
    finally:
        server.should_exit = True
        thread.join(drain_seconds + 2)
        for model in service.models.values():
            model.close(0.5)
        close_all()
        bell.close()
        while bell.wait():
            pass


def _log_copies(specs: Sequence[Spec], service: Service) -> None:
    """Log how many copies of the weights of a base there are in memory."""
    for base in (spec for spec in specs if isinstance(spec, ModelSpec) and spec.adapters):
        names = ", ".join(base.adapters)
        backends = {id(service.models[name].backend) for name in (base.name, *base.adapters)}
        if len(backends) == 1:
            _log.info("one copy of the weights of %s in memory serves it and its adapters (%s)", base.name, names)
        else:
            found = service.models[base.name].provenance
            _log.info(
                "%d copies of the weights of %s in memory serve it and its adapters (%s), because OpenVINO runs merged "
                "copies of about %d MB each in int8; --engine torch needs one copy",
                len(backends),
                base.name,
                names,
                round((found.parameters if found else 0) * BYTES_PER_WEIGHT / 1e6),
            )


def reload(service: Service, specs: Sequence[Spec]) -> None:
    """Reload the models. If loading a model fails, log the error and keep serving the old one."""
    torch.set_num_threads(ALL_THREADS)  # a new thread inherits the number that another thread set last
    with _reloading:
        _reload(service, specs)


def _reload(service: Service, specs: Sequence[Spec]) -> None:
    for spec in specs:
        try:
            opened = spec.open(_tell, service.models)
        except (FinetaleError, OSError) as error:
            _log.error("%s could not be reloaded and stays as it was: %s", spec.name, error)
            continue
        except Exception:  # out of memory, for example; other models may still load
            _log.exception("%s could not be reloaded and stays as it was", spec.name)
            continue
        if opened is None:
            _log.info("%s has not changed", spec.name)
            continue
        old = service.models[spec.name]
        service.add(opened)
        _log.info("%s has been reloaded", opened.described)
        # The old model finishes its requests, then its thread ends and its memory is freed. An old adapter that shares
        # the thread of a model that stays is freed with its last request.
        if not any(model.backend is old.backend for model in service.models.values()):
            threading.Thread(target=_retire, args=(old,), daemon=True).start()
        del old, opened


def _retire(model: Served | Upstream) -> None:
    model.close(None)
    del model
    _settle()


def _settle() -> None:
    """Collect garbage, then exempt all current objects from later collections; scanning them takes 0.25 seconds."""
    gc.unfreeze()
    gc.collect()
    allocator.release()  # what loading and converting models left
    gc.freeze()


def _tell(event: Event) -> None:
    if isinstance(event, WarningEvent):
        _log.warning(event.message)


@contextmanager
def _draining(service: Service, server: uvicorn.Server, seconds: float) -> Iterator[None]:
    """Shut down on SIGTERM, SIGINT or a closed terminal; on a second SIGINT immediately."""
    expiry = threading.Timer(seconds, service.expire)
    expiry.daemon = True

    def end(number: int, frame: FrameType | None) -> None:
        service.draining = True
        server.should_exit, again = True, server.should_exit
        if not again:
            expiry.start()
        elif number == signal.SIGINT:
            threading.Thread(target=stop_at_once, daemon=True).start()

    def stop_at_once() -> None:
        service.expire()
        time.sleep(_LAST_ERRORS_SECONDS)
        server.force_exit = True

    with handling({"SIGINT": end, "SIGTERM": end} | ({"SIGHUP": end} if in_terminal() else {})):
        yield
    expiry.cancel()
