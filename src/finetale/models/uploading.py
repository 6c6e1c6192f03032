"""Upload files to a model repository on the Hub with its own client. Knows no runs and no model formats.

Large files are sent first. The Hub keeps those that arrived, so an upload that is repeated sends only the others. One
commit then makes all files visible at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from finetale.errors import HubError
from finetale.models.files import first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_FIRST_TIMEOUTS, _TIMEOUTS = (5.0, 15.0, 15.0, 15.0), (5.0, 120.0, 120.0, 120.0)
"""Seconds to connect, to wait for an answer, to send, and to wait for a free connection: for the first request, and for
the others. The client has no limits."""
_TITLE = "Upload {} with Finetale"
"""Title of a commit. It marks the files of an earlier push."""
_LARGE = 1_000_000
"""Minimum bytes of a file that is sent before the commit."""
_OFFICIAL = "https://huggingface.co"
_LOGIN = (
    "Create a token with write access on the Hub (Settings, Access Tokens), then run `hf auth login` or set HF_TOKEN."
)
_AGAIN = "Push again: what the hub has received is not sent again."
_NO_HUB = "Check HF_ENDPOINT: it must name a hub that takes uploads."
_NETWORKING = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests"})


@dataclass(frozen=True)
class Uploaded:
    """A finished upload.

    Attributes:
        repository: full name of the repository.
        url: its address.
        commit: the commit.
        private: whether the repository is private.
        removed: files of an earlier upload that were removed.
    """

    repository: str
    url: str
    commit: str
    private: bool
    removed: tuple[str, ...] = ()


def check_repository(name: str) -> None:
    """Check the form of a repository's name.

    Raises:
        HubError: it is neither NAME nor OWNER/NAME as the Hub allows.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise HubError(
            f"{name!r} can't be the name of a repository.",
            "Write OWNER/NAME with letters, digits, `-`, `_` and `.`, such as anna/tales; at most 96 characters.",
        ) from None


def upload(
    repository: str,
    files: Mapping[str, Path | bytes],
    *,
    public: bool,
    what: str,
    progress: Callable[[str, int], None] = lambda name, done: None,
) -> Uploaded:
    """Upload files in one commit, to a repository that is created if there is none.

    The same commit removes the files of an earlier upload that are not among these. Files that someone else wrote or
    changed since stay.

    Args:
        repository: NAME or OWNER/NAME.
        files: content or local file by the path in the repository.
        public: whether everyone may read a new repository.
        what: what is uploaded, for the title of the commit.
        progress: called with the name of each file, and the bytes before it, when its upload begins.

    Raises:
        HubError: there is no token, the Hub refuses or can't be reached, or an existing repository is public and
            `public` is False. The repository is then as it was, or new and empty.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_session, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    endpoint = constants.ENDPOINT.rstrip("/")
    where = _shown(endpoint)
    if constants.HF_HUB_OFFLINE:
        raise HubError("Offline mode is on (HF_HUB_OFFLINE), so nothing can be pushed.", "Unset HF_HUB_OFFLINE.")
    if get_token() is None:
        raise HubError(f"There is no token for {where}, and pushing needs one.", _LOGIN)
    api = HfApi()
    with _client(endpoint), _errors(repository, where):
        user, may_write = _user(api.whoami(), where)
        get_session().timeout = _TIMEOUTS
        if not may_write:
            raise HubError(f"The token of {user} may only read.", _LOGIN)
        full = repository if "/" in repository else f"{user}/{repository}"
        removed: list[str] = []
        try:
            private = bool(api.model_info(full).private)
            removed = [path for path in _uploaded_before(api, full) if path not in files]
        except RepositoryNotFoundError:
            api.create_repo(full, private=not public, exist_ok=True)
            private = not public
        if not private and not public:
            raise HubError(
                f"The repository {full} exists and is public.",
                "Add --public if everyone may read the model, or choose another name.",
            )
        operations = {name: CommitOperationAdd(name, content) for name, content in files.items()}
        sizes = {name: operation.upload_info.size for name, operation in operations.items()}
        done = 0
        for name in sorted(files, key=lambda name: -sizes[name]):
            if sizes[name] >= _LARGE:
                progress(name, done)
                api.preupload_lfs_files(full, [operations[name]], free_memory=False)
                done += sizes[name]
        progress("the other files", done)
        deletions = [CommitOperationDelete(path) for path in removed]
        commit = api.create_commit(full, [*operations.values(), *deletions], commit_message=_TITLE.format(what))
    return Uploaded(full, f"{where}/{full}", commit.oid, private, tuple(removed))


def _uploaded_before(api: HfApi, repository: str) -> list[str]:
    """Return the files of a repository whose last commit is an upload of Finetale.

    Hubs that do not tell the last commit of a file have none.
    """
    start, end = _TITLE.split("{}")
    found = []
    for item in api.list_repo_tree(repository, recursive=True, expand=True):
        commit = getattr(item, "last_commit", None)
        if hasattr(item, "size") and commit and commit.title.startswith(start) and commit.title.endswith(end):
            found.append(item.path)
    return sorted(found)


def _user(answer: Any, where: str) -> tuple[str, bool]:
    """Return the user's name and whether the token may write, from the Hub's answer to whoami."""
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        raise HubError(f"The hub at {where} does not know the user of the token.", _NO_HUB)
    token = (answer.get("auth") or {}).get("accessToken") or {}
    return answer["name"], token.get("role") != "read"


@contextlib.contextmanager
def _client(endpoint: str) -> Iterator[None]:
    """Set time limits of the Hub's client. Upload without Xet to other hubs than the official one: they lack it."""
    from huggingface_hub import constants, get_session

    session, without_xet = get_session(), constants.HF_HUB_DISABLE_XET
    before, session.timeout = session.timeout, _FIRST_TIMEOUTS
    constants.HF_HUB_DISABLE_XET = without_xet or endpoint != _OFFICIAL
    try:
        yield
    finally:
        session.timeout, constants.HF_HUB_DISABLE_XET = before, without_xet


def _shown(endpoint: str) -> str:
    """Return an address without user name and password."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextlib.contextmanager
def _errors(repository: str, where: str) -> Iterator[None]:
    """Convert errors of the Hub's client to ours."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HubError:
        raise
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            wait = str(cause.response.headers.get("retry-after", ""))
            status = cause.response.status_code
            if status == 404 and cause.response.url.path.endswith("/whoami-v2"):
                status = 405
            raise _refusal(status, cause.server_message or "", wait, repository, where) from None
        # The client raises ConnectionError for Xet, and the others for answers that it does not understand.
        if (
            isinstance(cause, ConnectionError | ValueError | LookupError)
            or type(cause).__module__.split(".")[0] in _NETWORKING
        ):
            raise _broken(cause, repository, where) from None
        raise


def _cause(error: BaseException) -> BaseException:
    """Return the error behind the RuntimeError that the client raises for an upload."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _broken(error: BaseException, repository: str, where: str) -> HubError:
    if isinstance(error, ValueError | LookupError):
        return HubError(
            f"The hub at {where} did not accept the upload to {repository}, or its answer is not a hub's: "
            f"{first_line(error)}",
            f"{_NO_HUB} {_AGAIN}",
        )
    detail = f" ({first_line(error).rstrip('.')})" if str(error) else ""
    if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"):
        return HubError(
            f"The hub at {where} can't be reached{detail}.",
            "Check the network; HF_ENDPOINT=https://… names another hub that takes uploads.",
        )
    return HubError(f"The connection to the hub at {where} broke during the upload{detail}.", _AGAIN)


def _refusal(status: int, says: str, wait: str, repository: str, where: str) -> HubError:
    """Return the error for a status of HTTP."""
    owner = repository.rpartition("/")[0] or "its owner"
    says = f": {' '.join(says.split()).rstrip('.')}" if says else ""
    answer = f"The hub at {where} answered {status}{says}."
    sentences = {
        401: (f"The hub at {where} does not know the token.", _LOGIN),
        402: (
            f"The hub at {where} wants payment for {repository}{says}.",
            "Free storage there, or push with --public.",
        ),
        403: (
            f"The token may not write to {repository}{says}.",
            f"Use a token with write access to {owner}, and accept what the hub asks for on its page.",
        ),
        404: (
            f"The hub at {where} does not have {owner} or does not take uploads for {repository}{says}.",
            "Check the spelling of OWNER/NAME.",
        ),
        405: (f"The hub at {where} takes no uploads.", "HF_ENDPOINT is probably a mirror that only reads: unset it."),
        409: (f"Someone else is changing {repository} right now{says}.", _AGAIN),
        412: (f"Someone else is changing {repository} right now{says}.", _AGAIN),
        413: (
            f"A file is too large for the hub at {where}{says}.",
            "Export with half the size, such as `finetale export RUN --to safetensors`, and push that folder.",
        ),
        429: (
            f"The hub at {where} wants fewer requests.",
            f"Wait {f'{wait} seconds' if wait.isdigit() else 'some minutes'}. {_AGAIN}",
        ),
        507: (f"The storage of {owner} is full{says}.", "Free storage on the hub."),
    }
    if status >= 500 and status not in sentences:
        return HubError(answer, f"The fault is on its side. Wait some minutes. {_AGAIN}")
    return HubError(*sentences.get(status, (answer, "Check the name of the repository, and that the token may write.")))
