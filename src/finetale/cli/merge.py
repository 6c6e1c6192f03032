"""`finetale merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from finetale.cli.output import Quiet, progress


def command(
    adapter: Annotated[str, Parameter(help="Run that trained an adapter, or an adapter: a folder or a Hub id.")],
    /,
    *,
    out: Annotated[
        Path | None, Parameter(help="Folder of the merged model. Default: model/ of the run, which is replaced.")
    ] = None,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit of an adapter on the Hub.")] = None,
    offline: Annotated[bool, Parameter(negative=(), help="Use only files that are on this machine.")] = False,
    quiet: Quiet = False,
) -> int:
    """Merge an adapter into its base and write a model folder, as when only the adapter was kept."""
    from finetale import pipeline

    with progress(quiet=quiet) as display:
        folder = pipeline.merge_adapter(adapter, out, display, revision=revision, offline=offline)
    sys.stdout.write(f"{folder}\n")
    return 0
