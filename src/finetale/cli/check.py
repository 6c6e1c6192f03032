"""`finetale check`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetale.cli.output import Json, Quiet, Source, print_json, progress, stdout
from finetale.cli.settings import with_settings
from finetale.config import TextSettings
from finetale.display import size
from finetale.formatting import plural

_MOST_PROBLEMS = 20
_MOST_PLACES = 5
_MOST_NAMES = 12


@with_settings(TextSettings)
def command(
    *source: Source,
    model: Annotated[
        str | None,
        Parameter(
            name=["--model", "-m"], help="Count tokens with this model's tokenizer (gpt2 if it is on this machine)."
        ),
    ] = None,
    tokenizer: Annotated[str | None, Parameter(help="Count tokens with this tokenizer.")] = None,
    offline: Annotated[bool | None, Parameter(negative=(), help="Use only what is on this machine already.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    **settings: Any,
) -> int:
    """Show what would be trained on: documents, encodings, splits, repeats, tokens; every problem by file and line.

    The exit code is 1 if `finetale train` would refuse the text.
    """
    from finetale import library, pipeline

    given = settings | {"model": model, "tokenizer": tokenizer, "offline": offline}
    with progress(quiet=quiet, as_json=as_json) as display:
        report = pipeline.check_text(library.resolve(source, None, given), display).to_dict()
    if as_json:
        print_json(report)
    else:
        _show(report)
    return 1 if report["refused"] or any(problem["fatal"] for problem in report["text"]["problems"]) else 0


def _show(report: dict[str, Any]) -> None:
    console = stdout()
    text = report["text"]
    if not text["documents"] and text["problems"]:
        _show_problems(console, text)
        return
    console.print(f"{text['documents']:,} documents, {text['characters']:,} characters, {text['words']:,} words")
    if report["tokens"]:
        tokens = report["tokens"]
        console.print(
            f"{tokens['read']:,} tokens read = {tokens['trained']:,} trained + {tokens['validation']:,} validation "
            f"+ {tokens['test']:,} test + {tokens['dropped']:,} dropped   (tokenizer of {escape(report['tokenizer'])})",
            soft_wrap=True,
        )
        for row in report["dropped"]:
            console.print(
                f"  dropped: {plural(row['tokens'], 'token')} in {plural(row['documents'], 'document')}: "
                f"{escape(row['reason'])}"
            )
    else:
        console.print(f"Tokens are not counted: {escape(report['no_tokens'])}", soft_wrap=True)
    console.print()
    table = _table("split", "documents", "characters", "words")
    for split in ("train", "validation", "test"):
        row = text["splits"].get(split)
        if row and row["documents"]:
            table.add_row(split, *(f"{row[key]:,}" for key in ("documents", "characters", "words")))
    console.print(table)
    if text.get("split_rule"):
        console.print(text["split_rule"], soft_wrap=True, markup=False)
    _show_files(console, text)
    _show_lengths(console, text["length_histogram"])
    for line in (*report["warnings"], *_remarks(text)):
        console.print(line if line.startswith(" ") else f"note: {line}", soft_wrap=True, markup=False)
    _show_problems(console, text)
    if report["refused"]:
        console.print(f"[red]error[/]: {escape(report['refused'])}", soft_wrap=True)


def _show_files(console: Console, text: dict[str, Any]) -> None:
    console.print()
    table = _table("file", "kind", "encoding", "size", "documents")
    for file in text["files"][:_MOST_PROBLEMS]:
        table.add_row(
            escape(file["file"]),
            file["kind"],
            file["encoding"] or "–",
            size(file["bytes"] or 0),
            f"{file['documents']:,}",
        )
    console.print(table)
    if (more := len(text["files"]) + text["more_files"] - _MOST_PROBLEMS) > 0:
        console.print(f"… and {plural(more, 'more file')}")


def _show_lengths(console: Console, histogram: list[dict[str, int]]) -> None:
    most = max((row["documents"] for row in histogram), default=0)
    if not most:
        return
    console.print()
    table = _table("characters", "documents", "")
    for row in histogram:
        bar = "█" * max(1, round(30 * row["documents"] / most)) if row["documents"] else ""
        table.add_row(f"{row['from']:,} – {row['to']:,}", f"{row['documents']:,}", bar)
    table.columns[2].justify = "left"
    console.print(table)


def _remarks(text: dict[str, Any]) -> list[str]:
    from finetale.text.findings import not_looked_for, text_findings, text_notes

    lines = []
    notes = text_notes(text, forms=False)
    for finding, most in [(each, _MOST_NAMES) for each in notes] + [
        (each, _MOST_PLACES) for each in text_findings(text)
    ]:
        lines.append(finding.sentence())
        lines += [f"  {place}" for place in finding.places[:most]]
    if unknown := not_looked_for(text):
        lines.append(unknown)
    lines += [f"cleaning: {name.replace('_', ' ')}: {count:,}" for name, count in text["cleaning"].items() if count]
    return lines


def _show_problems(console: Console, text: dict[str, Any]) -> None:
    problems = text["problems"]
    if not problems:
        all_of_it = not any(column["left_out"] for column in text["columns"]) and not text["skipped_names"]
        console.print("All of it could be read." if all_of_it else "No problem was found in what was read.")
        return
    console.print()
    for problem in problems[:_MOST_PROBLEMS]:
        word, colour = ("error", "red") if problem["fatal"] else ("found", "yellow")
        where = f"{problem['file']}:{problem['line']}" if problem["line"] else problem["file"]
        times = f" ({problem['count']:,} times)" if (problem["count"] or 1) > 1 else ""
        console.print(
            f"[{colour}]{word}[/] {escape(where)}: {escape(problem['detail'] or problem['kind'])}{times}",
            soft_wrap=True,
        )
    if any(problem["fatal"] for problem in problems):
        hints = dict.fromkeys(problem["hint"] for problem in problems if problem["fatal"] and problem["hint"])
        advice = "Correct what is marked as error, or name other sources; training would stop there."
        console.print(f"hint: {escape(' '.join([*hints, advice]))}", soft_wrap=True)
    if (num := len(problems) + text["more_problems"]) > _MOST_PROBLEMS:
        console.print(f"… and {num - _MOST_PROBLEMS:,} more; --json lists the first {len(problems):,}")


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    left = ("split", "file", "kind", "encoding", "characters")
    for title in titles:
        table.add_column(title, justify="left" if title in left and title != "characters" else "right")
    return table
