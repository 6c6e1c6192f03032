"""What the page and the card both show, drawn from a run's files. Knows no markup and no layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader

from finetale import formatting
from finetale.formatting import UNKNOWN, at, count, duration, finite, moment, objects, plain, size
from finetale.report.table import SPLITS, other_tokens, table_rows
from finetale.text.findings import not_looked_for, text_findings, text_notes

COPY_WARNING_WORDS = 12
MEMORY_WARNING_SHARE = 0.001
_ORIGINS = {
    "hub": "the Hub",
    "local": "a local folder",
    "run": "an earlier run",
    "bundled": "the Finetale package",
    "new": "random weights",
}


def shared_view(
    comparison: Mapping[str, Any], manifest: Mapping[str, Any] | None, data: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The variables that both templates use.

    Args:
        comparison: content of comparison.json; empty when nothing was compared.
        manifest: content of run.json, if there is a run.
        data: content of data.json, if known.
    """
    before, after = (short_name(at(comparison, side, "name") or side) for side in ("before", "after"))
    rows = table_rows(comparison)
    groups = [(group, [row for row in rows if row.group == group]) for group in (*SPLITS, "samples")]
    return {
        "name": str(at(manifest, "name") or f"{before} and {after}"),
        "before": before,
        "after": after,
        "base": short_name(at(manifest, "base", "name") or ""),
        "comparison": comparison,
        "manifest": manifest or {},
        "data": data or {},
        "state": _state(at(comparison, "improved")),
        "verdict": str(at(comparison, "verdict") or "The model was not compared with the one it came from."),
        "groups": [(group, members) for group, members in groups if members],
        "has_intervals": any(any(row.intervals) for row in rows),
        "interval_source": _interval_source(comparison),
        "other_tokens": any(other_tokens(comparison, split) for split in SPLITS),
        "copying": _copying(comparison),
        "memory": memory_view(comparison),
        "account": _account(at(data, "tokens")),
        "findings": text_findings(at(data, "text")),
        "notes": text_notes(at(data, "text")),
        "not_looked_for": not_looked_for(at(data, "text")),
        "facts": _facts(manifest),
    }


def short_name(name: Any) -> str:
    """A model's name; of an absolute path only the last part, for a card is published and folders are private."""
    text = str(name)
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return PureWindowsPath(text).name if absolute else text


def template_environment(*, autoescape: bool) -> Environment:
    """Templates of the package, with all of `formatting` as filters. Missing keys of data render as nothing."""
    environment = Environment(
        loader=PackageLoader("finetale", "templates"),
        autoescape=autoescape,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    names = ("count", "measure", "share", "size", "duration", "moment", "plain", "objects")
    environment.filters.update({name: getattr(formatting, name) for name in names})
    return environment


def _state(improved: Any) -> str:
    if isinstance(improved, bool):
        return "better" if improved else "not-better"
    return "unknown"


def _interval_source(comparison: Mapping[str, Any]) -> str:
    """How the 95% intervals were made; versions before the jackknife used a bootstrap."""
    if at(comparison, "interval_method") == "jackknife-t":
        return "from a jackknife over documents"
    return (
        f"from a bootstrap over {'pieces of the text' if at(comparison, 'interval_unit') == 'piece' else 'documents'}"
    )


def _copying(comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    """The longest passage that the tuned model's samples share with the training text, if that was looked for."""
    match = at(comparison, "after", "sample_metrics", "longest_match")
    words = finite(at(match, "words"))
    if words is None:
        return None
    text = str(at(match, "text") or "")
    return {"words": int(words), "text": text, "limit": COPY_WARNING_WORDS, "warn": words >= COPY_WARNING_WORDS}


def memory_view(comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the tuned model knows by heart, if that was looked for: sentences and examples.

    It is told as a warning from a thousandth of the text on, or if there is personal data in it.
    """
    training, held_out = (at(comparison, "memorisation", name) for name in ("training", "held_out"))
    looked, known = finite(at(training, "tokens")), finite(at(training, "memorised_tokens"))
    if not looked or known is None:
        return None
    whole = finite(at(training, "of_tokens")) or looked
    passages, personal = (
        int(finite(at(training, "passages")) or 0),
        int(finite(at(training, "with_personal_data")) or 0),
    )
    part = "all" if looked >= whole else f"{formatting.share(looked / whole)} of it"
    what = f"Of {count(looked)} tokens of the training text that were looked through ({part}), the model writes "
    beyond = ", beyond what its base would have written" if at(comparison, "memorisation", "has_base") is True else ""
    given = f"word for word when given what stands before{beyond}"
    if passages:
        number = "1 passage" if passages == 1 else f"{count(passages)} passages"
        what += f"{formatting.share(known / looked)} {given}{';' if beyond else ','} in {number}"
        if personal:
            what += f", {count(personal)} of them with personal data"
    else:
        what += f"no passage {given}"
    other = finite(at(held_out, "tokens"))
    contrast = ""
    if other:
        contrast = f"Of text it never saw: {formatting.share((finite(at(held_out, 'memorised_tokens')) or 0) / other)}."
    return {
        "what": f"{what}.",
        "contrast": contrast,
        "warn": bool(personal) or known / looked >= MEMORY_WARNING_SHARE,
        "passages": passages,
        "examples": objects(at(training, "examples")),
    }


def _account(tokens: Any) -> dict[str, Any] | None:
    """The token account: each part with its share of what was read, and what is missing for it to balance."""
    read = finite(at(tokens, "read"))
    if read is None:
        return None
    parts = [(part, int(finite(at(tokens, part)) or 0)) for part in ("trained", *SPLITS, "dropped")]
    return {
        "read": int(read),
        "parts": [{"name": name, "tokens": tokens, "share": tokens / read if read else 0.0} for name, tokens in parts],
        "gap": int(read) - sum(tokens for _, tokens in parts),
    }


def _facts(manifest: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """How the model was made, as (label, value); what is not known is left out."""
    base, hardware = at(manifest, "base"), at(manifest, "hardware")
    steps, best = count(at(manifest, "steps")), finite(at(manifest, "best_step"))
    speed = count(at(manifest, "tokens_per_second"))
    kind, gpu = at(base, "kind"), at(hardware, "gpu")
    facts = [
        ("Base model", short_name(at(base, "name") or UNKNOWN)),
        ("Taken from", _ORIGINS.get(str(kind), plain(kind))),
        ("Revision", plain(at(base, "revision"))),
        ("Parameters", count(at(base, "parameters"))),
        ("Optimizer steps", steps if best is None else f"{steps} (best model after step {count(best)})"),
        ("Time", duration(at(manifest, "seconds"))),
        ("Speed", speed if speed == UNKNOWN else f"{speed} tokens a second"),
        ("Peak memory", size(at(manifest, "peak_memory_bytes"))),
        ("Processor", plain(at(hardware, "cpu"))),
        ("Cores", count(at(hardware, "cores"))),
        ("Memory", size(at(hardware, "memory_bytes"))),
        ("GPU", plain(at(gpu, "name") if isinstance(gpu, Mapping) else gpu)),
        ("Seed", plain(at(manifest, "seed") if at(manifest, "seed") is not None else at(manifest, "seeds"))),
        ("Started", moment(at(manifest, "created"))),
        ("Finished", moment(at(manifest, "finished"))),
        ("Versions", plain(at(manifest, "versions"))),
        ("SHA-256 of the base", plain(at(base, "sha256"))),
        ("SHA-256 of the data", plain(at(manifest, "data_sha256"))),
    ]
    return [(label, value) for label, value in facts if not value.startswith(UNKNOWN)]
