"""`finetale serve`."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from finetale.cli.output import Model, Quiet, progress, stdout
from finetale.errors import ConfigError
from finetale.extras import install_hint
from finetale.signals import hangups

if TYPE_CHECKING:
    from finetale.models import LoadedModel
    from finetale.notify import Notify

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def command(
    model: Model,
    /,
    *,
    host: Annotated[
        str, Parameter(help="Address to listen at. Any but this machine's own needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, Parameter(validator=Number(gte=0, lte=65_535), help="Port to listen at. 0: any that is free.")
    ] = 8000,
    name: Annotated[str | None, Parameter(help="Name of the model in requests. auto: the last part of MODEL.")] = None,
    also: Annotated[
        tuple[str, ...],
        Parameter(
            name="--also",
            negative=(),
            help="Another model to serve beside it, as NAME=MODEL; may be given several times.",
        ),
    ] = (),
    with_base: Annotated[
        bool, Parameter(negative=(), help="Serve the base of a run beside it, as `base`; the page then shows both.")
    ] = False,
    api_key_file: Annotated[
        Path | None, Parameter(help="File that holds the API key; else the environment's FINETALE_API_KEY.")
    ] = None,
    allow_host: Annotated[
        tuple[str, ...], Parameter(negative=(), help="Further names under which it may be reached, as behind a proxy.")
    ] = (),
    allow_origin: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(), help="Other sites whose pages may ask, as https://example.org; may be given several times."
        ),
    ] = (),
    engine: Annotated[
        Literal["auto", "openvino", "torch", "vllm"],
        Parameter(
            help="What computes: OpenVINO with int8 weights, PyTorch, or an installed vLLM. auto: the faster here of the first two, if its numbers are right."
        ),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Parameter(help="Of PyTorch's weights. auto: bf16 on a GPU, fp32 elsewhere."),
    ] = "auto",
    slots: Annotated[
        int, Parameter(validator=Number(gte=1, lte=1024), help="Completions that are computed at the same time.")
    ] = 16,
    queue: Annotated[
        int,
        Parameter(validator=Number(gte=0, lte=100_000), help="Requests that may wait; further ones get status 429."),
    ] = 32,
    timeout: Annotated[
        float, Parameter(validator=Number(gt=0), help="Seconds in which a request must be done, its waiting included.")
    ] = 600.0,
    drain: Annotated[
        float,
        Parameter(
            validator=Number(gte=0, lte=86_400), help="Seconds to finish what was begun, after SIGTERM or Ctrl-C."
        ),
    ] = 30.0,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit on the Hub.")] = None,
    offline: Annotated[bool, Parameter(negative=(), help="Use only what is on this machine already.")] = False,
    quiet: Quiet = False,
) -> int:
    """Put a model behind an OpenAI-compatible API: /v1/completions, /v1/models, /health, /ready."""
    key = _key(api_key_file)
    if not host.strip():
        raise ConfigError("--host is empty.", "Give an address to listen at, or leave it out.")
    if host not in _LOOPBACK and key is None:
        raise ConfigError(
            f"Listening at {host} would let others on the network in, and there is no API key.",
            "Give one with --api-key-file or FINETALE_API_KEY, or leave out --host.",
        )
    with hangups() as reloads:  # from here on: a service that comes up is asked to open its models again, not ended
        try:
            from finetale.server import service
            from finetale.server.access import Limits
            from finetale.server.connections import most_connections
            from finetale.server.model_spec import ModelSpec
        except ImportError as error:
            raise ConfigError(
                f"A package for serving is missing: {error.name}.",
                install_hint("serve"),
            ) from None
        from finetale import models, pipeline

        called = name or Path(model).name or model
        others = [_named(word) for word in also]
        names = Counter([called, *(other for other, _ in others), *(["base"] if with_base else [])])
        if twice := [name for name, number in names.items() if number > 1]:
            raise ConfigError(
                f"Two models have the name {twice[0]}.", "Name them apart with --name and --also NAME=MODEL."
            )
        everywhere = host in ("0.0.0.0", "::")
        own = socket.gethostname() if everywhere else host
        hosts = frozenset({*_LOOPBACK, *map(_host, allow_host), _host(own)})
        console = stdout()

        stack = ExitStack()

        def ready(address: str, served: list[str]) -> None:
            stack.close()
            console.print(
                f"Serving {' and '.join(served)} at {address}/v1 (Ctrl-C ends it)",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )

        with stack:
            display = stack.enter_context(progress(quiet=quiet, as_json=False))

            def open_first(notify: Notify) -> LoadedModel:
                loaded = models.open_model(model, notify, revision=revision, offline=offline)
                models.warn_if_unfinished(loaded, notify)
                return loaded

            def open_base(notify: Notify) -> LoadedModel:
                loaded = open_first(lambda event: None)
                if loaded.provenance.kind != "run":
                    raise ConfigError(
                        f"{model} is no run, so it has no base to stand beside it.",
                        "Leave out --with-base; --also NAME=MODEL serves another model.",
                    )
                return pipeline.open_base(model, loaded, notify)

            loads: dict[str, Callable[[Notify], LoadedModel]] = {called: open_first}
            if with_base:
                loads = {"base": open_base} | loads
            loads |= {other: partial(_open, path, offline) for other, path in others}
            specs = [ModelSpec(each, load, engine, precision, slots, queue) for each, load in loads.items()]
            service.run(
                specs,
                Limits(
                    key=key,
                    hosts=hosts,
                    any_address=everywhere,
                    origins=frozenset(map(_origin, allow_origin)),
                    most_connections=most_connections(),
                    request_seconds=timeout,
                ),
                host=host,
                port=port,
                drain_seconds=drain,
                notify=display,
                ready=ready,
                reloads=reloads,
            )
        return 0


def _open(path: str, offline: bool, notify: Notify) -> LoadedModel:
    from finetale import models

    return models.open_model(path, notify, offline=offline)


def _key(file: Path | None) -> str | None:
    """The API key; without one None.

    Raises:
        ConfigError: the file can't be read or is empty.
    """
    if file is None:
        given = os.environ.get("FINETALE_API_KEY", "").strip()
        return _sound(given, "FINETALE_API_KEY") if given else None
    try:
        key = file.expanduser().read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The API key in {file} can't be read: {getattr(error, 'strerror', None) or error}.",
            "Check who may read it." if isinstance(error, PermissionError) else "Check the path of --api-key-file.",
        ) from None
    if not key:
        raise ConfigError(f"{file} holds no API key.", "Write one into it, in one line.")
    return _sound(key, str(file))


def _sound(key: str, where: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"The API key in {where} can't be sent in a request: it may have ASCII letters, digits and signs, in one line.",
            "Make another one, as with: openssl rand -hex 32",
        )
    return key


def _host(word: str) -> str:
    """A name under which a service is reached, as the Host header has it without its port.

    Raises:
        ConfigError: it is none.
    """
    if "/" in word or not word.strip():
        raise ConfigError(f"--allow-host {word} is no name of a host.", "Write it as in --allow-host writers.example.")
    from finetale.server.access import name_of

    return word.lower() if word.count(":") > 1 and not word.startswith("[") else name_of(word)


def _origin(word: str) -> str:
    """A site, as browsers name it.

    Raises:
        ConfigError: it is none.
    """
    scheme, _, place = word.lower().partition("://")
    if scheme not in ("http", "https") or not place.strip("/") or "/" in place.rstrip("/") or "*" in place:
        raise ConfigError(f"--allow-origin {word} is no site.", "Write it as in --allow-origin https://example.org.")
    default = ":443" if scheme == "https" else ":80"
    return f"{scheme}://{place.rstrip('/').removesuffix(default)}"


def _named(word: str) -> tuple[str, str]:
    name, _, model = word.partition("=")
    if not name or not model:
        raise ConfigError(f"--also {word} is not NAME=MODEL.", "Write it as in --also base=gpt2.")
    return name, model
