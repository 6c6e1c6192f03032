"""`finetale push`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from finetale import formatting
from finetale.cli.output import Json, Quiet, print_json, progress, stdout

if TYPE_CHECKING:
    from finetale.schema import PushResult


def command(
    run: Annotated[str, Parameter(help="A run directory, or a folder with a model or an adapter.")],
    repository: Annotated[str, Parameter(help="Repository on the Hub, OWNER/NAME. It is created if there is none.")],
    /,
    *,
    public: Annotated[bool, Parameter(negative=(), help="Let everyone read it. Default: private.")] = False,
    anyway: Annotated[
        bool, Parameter(negative=(), help="Push although personal data or memorised passages were found.")
    ] = False,
    report: Annotated[
        bool | None,
        Parameter(
            negative="--no-report",
            help="Include report.html, which quotes the text and names its files. Default: unless --public.",
        ),
    ] = None,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only show what would be uploaded. Uses no network.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Upload a run or a model folder to the Hub in one commit.

    The model with its card, the report and the adapter are uploaded. Text, settings, checkpoints and logs are not. The
    token is that of `hf auth login` or HF_TOKEN. After an interruption, push again: what arrived is not sent again.
    """
    from finetale import pipeline

    with progress(quiet=quiet, as_json=as_json) as display:
        push = pipeline.prepare_push(run, repository, display, public=public, with_report=report)
    if dry_run and as_json:
        print_json(push.result.to_dict())
    elif not quiet and not as_json:
        _print_files(push.result, stdout() if dry_run else Console(stderr=True, highlight=False))
    if not anyway:
        push.refuse_findings()
    if dry_run:
        return 0
    with progress(quiet=quiet, as_json=as_json) as display:
        result = push.send(display)
    print_json(result.to_dict()) if as_json else sys.stdout.write(f"{result.url}\n")
    return 0


def _print_files(result: PushResult, console: Console) -> None:
    kind = "public: everyone may read it" if result.public else "private"
    sizes = [formatting.size(file.bytes) for file in result.files]
    width = max(map(len, sizes), default=0)
    lines = [
        f"{formatting.plural(len(result.files), 'file')} ({formatting.size(result.bytes)}) "
        f"for {result.repository} ({kind})",
        *(f"  {size:>{width}}  {file.path}" for size, file in zip(sizes, result.files, strict=True)),
    ]
    if result.left_out:
        lines.append(f"Not part of the model and left out: {', '.join(result.left_out)}")
    lines += [f"Found: {finding}." for finding in result.findings]
    lines += result.not_looked_for
    for line in lines:
        console.print(escape(line), soft_wrap=True)
