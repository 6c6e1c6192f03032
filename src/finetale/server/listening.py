"""Open the socket that the service listens on: an address of the network, or a Unix socket."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from finetale.errors import ConfigError

UNIX = "unix:"
"""What a host begins with that is the path of a Unix socket."""
_BACKLOG = 2048


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """Listen inside the context; give the socket and its URL, or `unix:PATH`.

    The file of a Unix socket is removed at the end.

    Args:
        host: an address, a name or `unix:PATH`.
        port: 0 for any free one. Not used for a Unix socket.

    Raises:
        ConfigError: the address or the path is not available.
    """
    if host.startswith(UNIX):
        path = Path(host.removeprefix(UNIX)).expanduser().absolute()
        with _unix(path) as listener:
            mine = _identity(path)
            try:
                yield listener, f"{UNIX}{path}"
            finally:
                if _identity(path) == mine:  # not one that another service has made since
                    path.unlink(missing_ok=True)
        return
    with _network(host, port) as listener:
        address, number = listener.getsockname()[:2]
        yield listener, f"http://{f'[{address}]' if ':' in address else address}:{number}"


def _network(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"Finetale can't listen on {host}:{port}: {_reason(error)}.",
            "Choose another address with --host and --port.",
        ) from None


def _unix(path: Path) -> socket.socket:
    """Return a listening Unix socket that only this user can connect to. Replaces one that nobody listens on."""
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("This system has no Unix sockets.", "Use --host with an address and --port.")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_abandoned(path):
            path.unlink()
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except (OSError, ValueError) as error:
        listener.close()
        raise ConfigError(
            f"Finetale can't listen on the Unix socket {path}: {_reason(error)}.",
            "Choose another path with --host unix:PATH. It must not exist, and is limited to about 100 characters.",
        ) from None
    return listener


def _is_abandoned(path: Path) -> bool:
    """Return whether a path is a Unix socket that nobody listens on, as a killed process leaves it."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
    except (OSError, ValueError):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
