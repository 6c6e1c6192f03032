"""`finetale check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetale.cli.output import Json, Quiet, Source, print_json, progress, stdout, sum_of_tokens
from finetale.cli.settings import with_settings
from finetale.config import TextSettings
from finetale.formatting import plural, size
from finetale.schema import CheckResult, LengthBin, TextReport, TokenizerFit

_MAX_PROBLEMS = 20
_MAX_PLACES = 5
_MAX_NAMES = 12
_MAX_WORD_CHARACTERS = 20  # more characters than this per white space are not words


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
    exact_tokens: Annotated[
        bool, Parameter(negative=(), help="Count all tokens of a text above 20 MB, not a sample.")
    ] = False,
    offline: Annotated[bool | None, Parameter(negative=(), help="Use only what is on this machine already.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    **settings: Any,
) -> int:
    """Show what would be trained on: documents, encodings, splits, repeats, tokens. Show problems by file and line.

    The exit code is 1 if `finetale train` would refuse the text.
    """
    from finetale import library, pipeline

    given = settings | {"model": model, "tokenizer": tokenizer, "offline": offline}
    with progress(quiet=quiet, as_json=as_json) as display:
        resolved = library.resolve(source, None, given)
        result = pipeline.check_text(resolved, display, exact_tokens=exact_tokens)
    if as_json:
        print_json(result.to_dict())
    else:
        _show(result)
    return 0 if result.ok else 1


def _show(result: CheckResult) -> None:
    console, text = stdout(), result.text
    if not text.documents and text.problems:
        _show_problems(console, text)
        return
    has_words = _spaces_separate_words(text)
    counts = ((text.documents, "document"), (text.characters, "character"), (text.words, "word"))
    console.print(", ".join(plural(number, noun) for number, noun in counts[: 2 + has_words]))
    if result.tokens:
        tokens = result.tokens
        console.print(
            f"{'about ' * result.estimated}{plural(tokens.read, 'token')} read = {sum_of_tokens(tokens)}   "
            f"(tokenizer of {escape(result.tokenizer or '')})",
            soft_wrap=True,
        )
        if result.estimated:
            console.print(
                f"  estimated from a sample: ±{(result.tokens_error or 0) / max(1, tokens.read):.2%} "
                "(95% interval); --exact-tokens counts all"
            )
        for row in result.dropped:
            tokens_of = f"{plural(row.tokens, 'token')} in {plural(row.documents, 'document')}"
            console.print(f"  dropped: {tokens_of}: {escape(row.reason)}", soft_wrap=True)
    else:
        console.print(f"Tokens are not counted: {escape(result.no_tokens or '')}", soft_wrap=True)
    console.print()
    table = _table(*("split", "documents", "characters", "words")[: 3 + has_words])
    for name, split in (
        ("train", text.splits.train),
        ("validation", text.splits.validation),
        ("test", text.splits.test),
    ):
        if split.documents:
            numbers = (split.documents, split.characters, split.words)[: 2 + has_words]
            table.add_row(name, *(f"{number:,}" for number in numbers))
    console.print(table)
    if text.split_rule:
        console.print(text.split_rule, soft_wrap=True, markup=False)
    if result.tokenizer_fit is not None:
        _show_fit(console, result.tokenizer_fit)
    _show_files(console, text)
    _show_lengths(console, text.length_histogram)
    for line in (*result.warnings, *_remarks(text)):
        console.print(line if line.startswith(" ") else f"note: {line}", soft_wrap=True, markup=False)
    _show_problems(console, text)
    if result.refused:
        console.print(f"[red]error[/]: {escape(result.refused)}", soft_wrap=True)


def _show_fit(console: Console, fit: TokenizerFit) -> None:
    console.print()
    table = _table("tokenizer", "this model's", "one trained on this text")
    own = "too little text" if fit.own_bytes_per_token is None else f"{fit.own_bytes_per_token:.2f}"
    table.add_row("vocabulary", f"{fit.vocab_size:,}", "–" if fit.own_vocab_size is None else f"{fit.own_vocab_size:,}")
    table.add_row("bytes of text per token", f"{fit.bytes_per_token:.2f}", own)
    table.add_row("fragments of characters", f"{fit.fragments_share:.1%}", "")
    table.add_row("unknown text", f"{fit.unknown_share:.1%}", "")
    console.print(table)
    if fit.advice:
        console.print(f"note: {fit.advice}", soft_wrap=True, markup=False)


def _spaces_separate_words(text: TextReport) -> bool:
    """Return whether the number of words, which are counted by white space, says something about the text."""
    by_characters = text.shared_passages is not None and text.shared_passages.unit == "characters"
    return not by_characters and (text.characters or 0) <= _MAX_WORD_CHARACTERS * (text.words or 0)


def _show_files(console: Console, text: TextReport) -> None:
    console.print()
    table = _table("file", "kind", "encoding", "size", "documents")
    for file in text.files[:_MAX_PROBLEMS]:
        table.add_row(escape(file.file), file.kind, file.encoding or "–", size(file.bytes or 0), f"{file.documents:,}")
    console.print(table)
    if (more := len(text.files) + text.more_files - _MAX_PROBLEMS) > 0:
        console.print(f"… and {plural(more, 'more file')}")


def _show_lengths(console: Console, histogram: Sequence[LengthBin]) -> None:
    most = max((row.documents for row in histogram), default=0)
    if not most:
        return
    console.print()
    table = _table("characters", "documents", "")
    for row in histogram:
        bar = "█" * max(1, round(30 * row.documents / most)) if row.documents else ""
        span = f"{row.low:,} – {row.high:,}" if row.low < row.high else f"{row.low:,}"
        table.add_row(span, f"{row.documents:,}", bar)
    table.columns[2].justify = "left"
    console.print(table)


def _remarks(text: TextReport) -> list[str]:
    from finetale.text.findings import cleaned, not_looked_for, text_findings, text_notes

    lines = []
    notes = [(note, _MAX_NAMES) for note in text_notes(text, forms=False)]
    for finding, most in [*notes, *((finding, _MAX_PLACES) for finding in text_findings(text))]:
        lines.append(finding.sentence())
        lines += [f"  {place}" for place in finding.places[:most]]
    if unknown := not_looked_for(text):
        lines.append(unknown)
    changes = cleaned(text)
    return lines + ([f"Cleaned: {changes}."] if changes else [])


def _show_problems(console: Console, text: TextReport) -> None:
    problems = text.problems
    if not problems:
        everything = not any(column.left_out for column in text.columns) and not text.skipped_names
        console.print("All of it could be read." if everything else "No problem was found in what was read.")
        return
    console.print()
    shown = problems[:_MAX_PROBLEMS]
    hints = [problem.hint if problem.fatal else "" for problem in shown]
    shown = sorted(shown, key=lambda problem: hints.index(problem.hint if problem.fatal else ""))
    for index, problem in enumerate(shown):
        word, colour = ("error", "red") if problem.fatal else ("found", "yellow")
        where = f"{problem.file}:{problem.line}" if problem.line else problem.file
        times = f" ({problem.count:,} times)" if (problem.count or 1) > 1 else ""
        what = escape(problem.detail or problem.kind.replace("_", " "))
        console.print(f"[{colour}]{word}[/] {escape(where)}: {what}{times}", soft_wrap=True)
        is_last = index + 1 == len(shown) or shown[index + 1].hint != problem.hint
        if problem.fatal and problem.hint and is_last:
            console.print(f"  {escape(problem.hint)}", soft_wrap=True)
    if any(problem.fatal for problem in problems):
        console.print("hint: Correct the errors, or name other sources. Training would stop there.", soft_wrap=True)
    if (number := len(problems) + text.more_problems) > _MAX_PROBLEMS:
        console.print(f"… and {number - _MAX_PROBLEMS:,} more; --json lists the first {len(problems):,}")


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    left = ("tokenizer", "split", "file", "kind", "encoding", "characters")
    for title in titles:
        table.add_column(title, justify="left" if title in left and title != "characters" else "right")
    return table
