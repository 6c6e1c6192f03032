"""Check adapters for a base before any weights are read. Reports the problems of all adapters together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from finetale.errors import FinetaleError, ModelError
from finetale.models import adapters
from finetale.models.adapter_folders import AdapterFolder, find_adapter
from finetale.models.counting import skeleton
from finetale.models.loading import weights_sha256
from finetale.models.locating import Located

S = TypeVar("S")
T = TypeVar("T")


def find_adapters(paths: Mapping[str, str], *, offline: bool = False) -> dict[str, AdapterFolder]:
    """Return the adapters of runs, folders or Hub ids, by the adapters' names.

    Raises:
        FinetaleError: a path has no adapter, its files are corrupted, or the Hub can't be reached.
    """
    return _each(paths, lambda name, path: find_adapter(path, offline=offline))


def check_adapters(base: Located, found: Mapping[str, AdapterFolder]) -> None:
    """Check that adapters belong to a base: its SHA-256, where they have one, and the names and sizes of its layers.

    Raises:
        ModelError: one does not.
    """
    sha256, model = weights_sha256(base), skeleton(base.config)

    def check(name: str, adapter: AdapterFolder) -> None:
        adapter.check_base(name, base.name, sha256)
        adapters.fit_of(model, adapter.folder, name)

    _each(found, check)


def _each(items: Mapping[str, S], work: Callable[[str, S], T]) -> dict[str, T]:
    """Return the results of `work` by name; raise the errors of all items as one."""
    found, problems = {}, []
    for name, item in items.items():
        try:
            found[name] = work(name, item)
        except FinetaleError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ModelError(
            " ".join(problem.message for problem in problems),
            " ".join(dict.fromkeys(problem.hint for problem in problems if problem.hint)),
        )
    return found
