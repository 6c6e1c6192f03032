"""Download models from the Hub with its own client. Knows no architectures; `files` checks them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from finetale.errors import HubError
from finetale.models import adapter_files
from finetale.models.cards import as_license, read_license
from finetale.models.files import (
    INDEX,
    WEIGHTS,
    check_config,
    check_files,
    first_line,
    holds_adapter_alone,
    read_config,
)
from finetale.models.names import meant
from finetale.models.safety import check_index

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_NO_NETWORK = "or give a local folder; `--model bundled` needs no network."
_UNREACHABLE = (
    "Check the network; use a mirror with HF_ENDPOINT=https://…; if the model is on this machine, use --offline; "
    + _NO_NETWORK
)


_AGAIN = "Run again. Files that are complete are not downloaded again."
_BROKEN = frozenset({"RemoteProtocolError", "ReadError", "ReadTimeout", "WriteError"})
"""Errors of the client for a connection that broke after it was made."""


class Download(NamedTuple):
    """A local snapshot of a repository, its commit, and the licence that its card states, if it is known."""

    folder: Path
    commit: str | None
    license: str | None


def download(
    name: str,
    revision: str | None,
    offline: bool,
    *,
    weights: bool = True,
    check_adapter: Callable[[], None] = lambda: None,
) -> Download:
    """Download the needed root-level files of a Hub repository.

    The licence is known online only, because the card is not downloaded.

    Args:
        weights: whether weights are needed, and not the tokenizer only.
        check_adapter: called before anything is downloaded if the repository holds an adapter; may raise.
    """
    from huggingface_hub import HfApi, snapshot_download

    # The patterns must be the same online and offline, or the client reports the files as missing.
    wanted = ["*.json", "*.jinja", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    below = ["*/*"]
    with _hub_errors(name, revision, offline):
        if offline or _hub_is_offline():
            folder = Path(
                snapshot_download(
                    name, revision=revision, local_files_only=True, allow_patterns=wanted, ignore_patterns=below
                )
            )
            return Download(folder, folder.name, read_license(folder))
        info = HfApi().model_info(name, revision=revision)

    def first(file: str) -> Path:
        with _hub_errors(name, revision, offline):
            return Path(snapshot_download(name, revision=info.sha, allow_patterns=[file])) / file

    files = [item.rfilename for item in info.siblings or [] if "/" not in item.rfilename]
    if weights and holds_adapter_alone(files):
        check_adapter()
        adapter_files.read_settings(first(adapter_files.CONFIG_NAME).parent, name)
        adapter_files.check_files(name, files)
    elif weights:
        if "config.json" in files:
            check_config(name, read_config(first("config.json")))
        check_files(name, files)
        if WEIGHTS not in files:
            check_index(name, first(INDEX), files)
    with _hub_errors(name, revision, offline):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=below))
    return Download(folder, folder.name, as_license(getattr(info.card_data, "license", None)))


def holds_adapter(name: str, revision: str | None, offline: bool) -> bool:
    """Return whether a Hub repository holds an adapter. Downloads nothing."""
    from huggingface_hub import HfApi

    if offline or _hub_is_offline():
        folder = download(name, revision, offline).folder
        return holds_adapter_alone([file.name for file in folder.iterdir()])
    with _hub_errors(name, revision, offline):
        info = HfApi().model_info(name, revision=revision)
    return holds_adapter_alone([item.rfilename for item in info.siblings or []])


def _hub_is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextlib.contextmanager
def _hub_errors(name: str, revision: str | None, offline: bool) -> Iterator[None]:
    """Convert errors of the Hub's client to ours."""
    from huggingface_hub import errors

    where = f"{name} at {revision}" if revision else name
    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{where} is gated: its owner wants its terms accepted.",
            "Accept them on its page on the Hub, then set HF_TOKEN.",
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(
            f"{name} has no revision {revision!r}.",
            "Check --revision, or the revision in adapter_config.json: a branch, a tag or a commit.",
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"There is no model {name!r} on the Hub, nor a folder of that name.",
            meant(name) + "Check the spelling; for a private model set HF_TOKEN.",
        ) from None
    except errors.LocalEntryNotFoundError:
        if offline or _hub_is_offline():
            raise HubError(
                f"{where} is not on this machine, and offline mode is on.",
                f"{meant(name)}Run once without --offline (or HF_HUB_OFFLINE=1), {_NO_NETWORK}",
            ) from None
        raise HubError(f"The hub can't be reached for {where}.", meant(name) + _UNREACHABLE) from None
    except errors.HfHubHTTPError as error:
        raise _answered(error, where, name) from None
    except OSError as error:
        if error.errno == 28:
            raise HubError(
                f"The disk is full while downloading {where}.", "Free some space, or set HF_HOME to a larger disk."
            ) from None
        if "Consistency check failed" in str(error):
            raise HubError(f"The hub sent a file of {where} with another size than it says.", _AGAIN) from None
        raise _unreachable(error, where, name) from None
    except errors.HFValidationError:
        raise HubError(
            f"{name!r} can't be a name on the Hub.", meant(name) + "Check the spelling: NAME or OWNER/NAME."
        ) from None
    except (ValueError, TypeError, LookupError) as error:  # of the client, for a page or other JSON
        raise HubError(
            f"The answer for {where} is not that of a hub: {first_line(error)}",
            "Check HF_ENDPOINT, and whether this network wants a login in the browser.",
        ) from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}:
            raise
        if type(error).__name__ in _BROKEN:
            raise HubError(f"The download of {where} broke off: {first_line(error)}", _AGAIN) from None
        raise _unreachable(error, where, name) from None


def _unreachable(error: Exception, where: str, name: str) -> HubError:
    return HubError(f"The hub can't be reached for {where}: {first_line(error)}", meant(name) + _UNREACHABLE)


def _answered(error: HfHubHTTPError, where: str, name: str) -> HubError:
    """Return the error for a status of HTTP."""
    if error.response is None:
        return _unreachable(error, where, name)
    status, wait = error.response.status_code, str(error.response.headers.get("retry-after", ""))
    if status in (401, 403):
        return HubError(
            f"The hub refuses access to {where} ({status}).",
            "Run `hf auth login`, or set HF_TOKEN to a token that may read it.",
        )
    if status == 404:
        return HubError(
            f"The hub lists a file of {where} that it does not have (404).",
            "Run again later, name another --revision, or unset HF_ENDPOINT if it is a mirror.",
        )
    if status == 416:
        return HubError(f"The hub does not continue the download of {where} (416).", _AGAIN)
    if status == 429:
        return HubError(
            f"The hub wants fewer requests (429, for {where}).",
            f"Wait {f'{wait} seconds' if wait.isdigit() else 'some minutes'} and run again. With a token (HF_TOKEN) "
            "the limit is higher.",
        )
    if status >= 500:
        return HubError(
            f"The hub has a fault ({status}, for {where}).",
            "Run again later, use a mirror with HF_ENDPOINT=https://…, or --offline if the model is on this machine.",
        )
    return _unreachable(error, where, name)
