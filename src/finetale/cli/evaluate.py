"""`finetale evaluate`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from finetale.cli.output import Json, Model, Quiet, Source, number, print_json, progress, stdout
from finetale.cli.settings import with_settings
from finetale.config import EvaluationSettings, TextSettings, TokenSettings
from finetale.formatting import plural

_NAMES = {
    "loss": "loss (nats per token)",
    "perplexity": "perplexity (per token)",
    "word_perplexity": "perplexity (per word)",
    "bits_per_byte": "bits per byte",
}
_UNUSED = (
    "validation",
    "test",
    "mix",
    "watch",
    "validation_fraction",
    "test_fraction",
    "drop_overlap",
    "vocab_size",
    "tokenizer",
    "long_document",
)
_TRAINING_ONLY = ("eval_every", "patience", "save_every", "keep_checkpoints", "log_every", "tensorboard", "track")


@with_settings(TextSettings, TokenSettings, EvaluationSettings, skip=(*_UNUSED, *_TRAINING_ONLY))
def command(
    model: Model,
    /,
    *source: Source,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit on the Hub.")] = None,
    offline: Annotated[bool | None, Parameter(negative=(), help="Use only what is on this machine already.")] = None,
    precision: Annotated[str | None, Parameter(help="fp32, bf16 or auto.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    **settings: object,
) -> int:
    """Measure loss, perplexity and bits per byte of MODEL on all text of SOURCE, with 95% intervals."""
    from finetale import library, pipeline

    given = settings | {"revision": revision, "offline": offline, "precision": precision}
    config = library.resolve(source, None, given)
    with progress(quiet=quiet, as_json=as_json) as display:
        result = pipeline.evaluate_on(model, config, display)
    if as_json:
        print_json(result.to_dict())
        return 0
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("", "value", "95% interval"):
        table.add_column(title, justify="left" if not title else "right", overflow="fold")
    for key, name in _NAMES.items():
        value = getattr(result, key)
        if value is None:  # perplexity per word, if white space does not separate words
            continue
        digits = 4 if key in ("loss", "bits_per_byte") else 2
        ends = getattr(result.interval, key) if result.interval else None
        span = "–" if ends is None else " to ".join(number(end, digits) for end in ends)
        table.add_row(name, number(value, digits), span)
    console = stdout()
    console.print(table)
    counts = [plural(result.tokens, "token")]
    if result.words is not None:
        counts.append(plural(result.words, "word"))
    counts += [plural(result.bytes, "byte"), plural(result.documents, "document")]
    console.print(", ".join(counts))
    if result.interval is None:
        console.print(
            "There is no 95% interval, because it needs at least 5 documents. The figures hold for this text only."
        )
    return 0
