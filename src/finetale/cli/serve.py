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
from finetale.formatting import parsed_size
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
        str,
        Parameter(
            help="Address to listen on, or unix:PATH for a Unix socket. Others than this machine's need an API key."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, Parameter(validator=Number(gte=0, lte=65_535), help="Port to listen on. 0: any free port.")
    ] = 8000,
    name: Annotated[str | None, Parameter(help="Name of the model in requests. auto: the last part of MODEL.")] = None,
    also: Annotated[
        tuple[str, ...],
        Parameter(
            name="--also",
            negative=(),
            help="Another model to serve, as NAME=MODEL. Repeat it for several.",
        ),
    ] = (),
    adapter: Annotated[
        tuple[str, ...],
        Parameter(
            name="--adapter",
            negative=(),
            help="An adapter to serve beside MODEL, its base, as NAME=RUN, NAME=FOLDER or NAME=OWNER/ADAPTER on "
            "the Hub. Repeat it for several. With PyTorch and vLLM, all share one copy of the base's weights.",
        ),
    ] = (),
    with_base: Annotated[
        bool, Parameter(negative=(), help="Also serve the base model of a run, as `base`. The page then shows both.")
    ] = False,
    api_key_file: Annotated[
        Path | None, Parameter(help="File with the API key. auto: the environment variable FINETALE_API_KEY.")
    ] = None,
    allow_host: Annotated[
        tuple[str, ...],
        Parameter(negative=(), help="Another host name to accept, such as a proxy's. Repeat it for several."),
    ] = (),
    allow_origin: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            help="Another site whose pages may send requests, as https://example.org. Repeat it for several.",
        ),
    ] = (),
    tls_cert: Annotated[
        Path | None,
        Parameter(help="PEM file with a certificate, to serve https. Needs --tls-key. auto: http."),
    ] = None,
    tls_key: Annotated[Path | None, Parameter(help="PEM file with the private key of --tls-cert.")] = None,
    engine: Annotated[
        Literal["auto", "openvino", "torch", "vllm"],
        Parameter(
            help="Engine: OpenVINO with int8 weights, PyTorch, or an installed vLLM. "
            "auto: the faster of the first two on this machine, if its numbers are right."
        ),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Parameter(
            help="fp32: compute with the model's own weights in fp32 on either engine, so that texts without "
            "randomness are the model's own. bf16: PyTorch's weights in bf16. auto: the fastest of OpenVINO; PyTorch "
            "in bf16 on a GPU, fp32 elsewhere."
        ),
    ] = "auto",
    slots: Annotated[
        int, Parameter(validator=Number(gte=1, lte=1024), help="Maximum number of completions at the same time.")
    ] = 16,
    kv_memory: Annotated[
        str | None,
        Parameter(
            help="Maximum memory for the keys and values of attention, per model, as 2GB. A model that needs more for "
            "its requests computes some of them later. auto: a quarter of the free memory."
        ),
    ] = None,
    queue: Annotated[
        int,
        Parameter(
            validator=Number(gte=0, lte=100_000),
            help="Maximum number of waiting requests. Further ones get status 429.",
        ),
    ] = 32,
    timeout: Annotated[
        float, Parameter(validator=Number(gt=0), help="Time limit for a request in seconds, waiting included.")
    ] = 600.0,
    drain: Annotated[
        float,
        Parameter(
            validator=Number(gte=0, lte=86_400), help="Seconds to finish running requests after SIGTERM or Ctrl-C."
        ),
    ] = 30.0,
    chat_template: Annotated[
        Path | None, Parameter(help="File with a chat template in Jinja for MODEL. auto: the model's own.")
    ] = None,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit on the Hub.")] = None,
    offline: Annotated[bool, Parameter(negative=(), help="Use only what is on this machine already.")] = False,
    quiet: Quiet = False,
) -> int:
    """Serve a model through an OpenAI-compatible API: /v1/completions, /v1/models, /health, /ready."""
    key = _key(api_key_file)
    if not host.strip():
        raise ConfigError("--host is empty.", "Set it to an address to listen on, or leave it out.")
    is_unix = host.startswith("unix:")
    if host not in _LOOPBACK and not is_unix and key is None:
        raise ConfigError(
            f"--host {host} would give others on the network access, and there is no API key.",
            "Set one with --api-key-file or FINETALE_API_KEY, or leave out --host.",
        )
    memory = None
    if kv_memory is not None:
        memory = parsed_size(kv_memory)
        if memory is None:
            raise ConfigError(f"--kv-memory {kv_memory} is not a size.", "Write it as in --kv-memory 2GB.")
    with hangups() as reloads:  # as early as possible, so that SIGHUP during start-up means a reload, not the end
        try:
            from finetale.server import service
            from finetale.server.access import Limits
            from finetale.server.adapter_spec import AdapterSpec
            from finetale.server.connections import max_connections
            from finetale.server.model_spec import ModelSpec, read_template
            from finetale.server.tls import Tls
        except ImportError as error:
            raise ConfigError(
                f"A package for serving is missing: {error.name}.",
                install_hint("serve"),
            ) from None
        from finetale import environment, models, pipeline
        from finetale.notify import warn

        if memory is None:
            memory = environment.available_memory() // 4
        if chat_template is not None:
            read_template(chat_template)  # an invalid one is reported before the model is loaded
        tls = Tls.of(tls_cert, tls_key)
        called = name or Path(model).name or model
        others = [_named(word) for word in also]
        beside = [_adapter(word) for word in adapter]
        names = Counter([called, *(name for name, _ in [*others, *beside]), *(["base"] if with_base else [])])
        if twice := [name for name, number in names.items() if number > 1]:
            raise ConfigError(
                f"Two models have the name {twice[0]}.",
                "Give them different names with --name, --also NAME=MODEL and --adapter NAME=RUN.",
            )
        everywhere = host in ("0.0.0.0", "::")
        own = socket.gethostname() if everywhere else "localhost" if is_unix else host
        hosts = frozenset({*_LOOPBACK, *map(_host, allow_host), _host(own)})
        console = stdout()

        stack = ExitStack()

        def ready(address: str, served: list[str]) -> None:
            stack.close()
            console.print(
                f"Serving {' and '.join(served)} at {address if is_unix else f'{address}/v1'} (press Ctrl-C to stop)",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )

        with stack:
            display = stack.enter_context(progress(quiet=quiet, as_json=False))
            if tls is not None and tls.is_key_public:
                warn(display, f"All users of this machine may read the key {tls.key}: chmod 600 {tls.key}.")

            def open_first(notify: Notify) -> LoadedModel:
                loaded = models.open_model(model, notify, revision=revision, offline=offline)
                models.warn_if_unfinished(loaded.provenance, notify)
                return loaded

            def open_base(notify: Notify) -> LoadedModel:
                loaded = open_first(lambda event: None)
                if loaded.provenance.kind != "run":
                    raise ConfigError(
                        f"{model} is not a run, so it has no base model to serve.",
                        "Leave out --with-base. To serve another model, use --also NAME=MODEL.",
                    )
                return pipeline.open_base(model, loaded, notify)

            loads: dict[str, Callable[[Notify], LoadedModel]] = {called: open_first}
            if with_base:
                loads = {"base": open_base} | loads
            specs: list[service.Spec] = []
            for each, load in (loads | {other: partial(_open, path, offline) for other, path in others}).items():
                mine, template = (dict(beside), chat_template) if each == called else ({}, None)
                parent = "base" if with_base and each == called else None
                base = ModelSpec(each, load, engine, precision, slots, queue, memory, template, mine, parent, offline)
                specs += [base, *(AdapterSpec(other, path, base, offline) for other, path in mine.items())]

            def check() -> None:
                if beside:
                    found = models.find_adapters(dict(beside), offline=offline)
                    models.check_adapters(models.locate(model, revision=revision, offline=offline), found)

            service.run(
                specs,
                Limits(
                    key=key,
                    hosts=hosts,
                    any_address=everywhere,
                    origins=frozenset(map(_origin, allow_origin)),
                    max_connections=max_connections(),
                    request_seconds=timeout,
                ),
                host=host,
                port=port,
                drain_seconds=drain,
                notify=display,
                ready=ready,
                reloads=reloads,
                check=check,
                tls=tls,
            )
        return 0


def _open(path: str, offline: bool, notify: Notify) -> LoadedModel:
    from finetale import models

    return models.open_model(path, notify, offline=offline)


def _key(file: Path | None) -> str | None:
    """Return the API key, or None if none is set.

    Raises:
        ConfigError: the key's file cannot be read or is empty, or the key is not printable ASCII.
    """
    if file is None:
        given = os.environ.get("FINETALE_API_KEY", "").strip()
        return _checked(given, "FINETALE_API_KEY") if given else None
    try:
        key = file.expanduser().read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The API key in {file} can't be read: {getattr(error, 'strerror', None) or error}.",
            "Check the permissions of the file."
            if isinstance(error, PermissionError)
            else "Check the path of --api-key-file.",
        ) from None
    if not key:
        raise ConfigError(f"The API key file {file} is empty.", "Write the key into it, on one line.")
    return _checked(key, str(file))


def _checked(key: str, where: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"The API key in {where} can't be sent in a request: it must be printable ASCII on one line.",
            "Create another one, for example with: openssl rand -hex 32",
        )
    return key


def _host(word: str) -> str:
    """Return a host name as the Host header has it, without its port.

    Raises:
        ConfigError: it is not a host name.
    """
    if "/" in word or not word.strip():
        raise ConfigError(f"--allow-host {word} is not a host name.", "Write it as in --allow-host writers.example.")
    from finetale.server.access import name_of

    return word.lower() if word.count(":") > 1 and not word.startswith("[") else name_of(word)


def _origin(word: str) -> str:
    """Return a site as browsers send it in the Origin header.

    Raises:
        ConfigError: it is not a site.
    """
    scheme, _, place = word.lower().partition("://")
    if scheme not in ("http", "https") or not place.strip("/") or "/" in place.rstrip("/") or "*" in place:
        raise ConfigError(f"--allow-origin {word} is not a site.", "Write it as in --allow-origin https://example.org.")
    default = ":443" if scheme == "https" else ":80"
    return f"{scheme}://{place.rstrip('/').removesuffix(default)}"


def _named(word: str) -> tuple[str, str]:
    name, _, model = word.partition("=")
    if not name or not model:
        raise ConfigError(f"--also {word} is not NAME=MODEL.", "Write it as in --also base=gpt2.")
    return name, model


def _adapter(word: str) -> tuple[str, str]:
    """Return the name and the path of an adapter.

    Raises:
        ConfigError: it is not NAME=RUN, or the name has a slash.
    """
    name, _, path = word.partition("=")
    if not name.strip() or not path:
        raise ConfigError(f"--adapter {word} is not NAME=RUN.", "Write it as in --adapter letters=runs/letters.")
    if "/" in name:
        raise ConfigError(
            f"--adapter {word}: the name {name} has a slash.", "Write it as in --adapter letters=runs/letters."
        )
    return name, path
