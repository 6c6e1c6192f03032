"""`finetale merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from finetale.cli.output import Quiet, progress


def command(
    adapter: Annotated[str, Parameter(help="Run that trained an adapter, or an adapter folder.")],
    /,
    *,
    out: Annotated[
        Path | None, Parameter(help="Folder of the merged model. Default: model/ of the run, which is replaced.")
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Merge an adapter into its base and write a model folder, as when only the adapter was kept."""
    from finetale import pipeline

    with progress(quiet=quiet) as display:
        folder = pipeline.merge_adapter(adapter, out, display)
    sys.stdout.write(f"{folder}\n")
    return 0
