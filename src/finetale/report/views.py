"""The content that the page and the card share, from the records of a run. Knows no markup and no layout."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetale import formatting
from finetale.formatting import UNKNOWN, count, duration, moment, plain, plural, share, shell_command, size
from finetale.report.table import COMPARED, MEASURES, SPLITS, compared_by, copied_unit, other_tokens, table_rows
from finetale.schema import (
    ACCOUNT_PARTS,
    RARE_PARTS,
    ComparisonFile,
    DataFile,
    MemorisationAudit,
    RunManifest,
    TokenAccount,
    WatchedFigures,
)
from finetale.text.findings import not_looked_for, text_findings, text_notes
from finetale.text.openings import opening

COPY_WARNING_WORDS = 12
"""Minimum length, in words, of a copied passage that the report warns of."""
MEMORY_WARNING_SHARE = 0.001
"""Minimum share of memorised tokens that the report warns of."""
_ORIGINS = {
    "hub": "the Hub",
    "local": "a local folder",
    "gguf": "a GGUF file",
    "run": "an earlier run",
    "bundled": "the Finetale package",
    "new": "random weights",
}
_UNDECIDED = {
    "": "Whether it got better is not known",
    "random base": "Compared with random weights",
    "too few documents": "Better on this text; whether on other text is not known",
}
"""Headline where `improved` is null, by its reason."""

_CLEAR_RISE = 10.0
"""Minimum rise, in percent, that counts as clear if there is no interval."""
_NOT_COMPARED = "The model was not compared with the one it came from."


def shared_view(
    comparison: ComparisonFile | None, manifest: RunManifest | None, data: DataFile | None
) -> dict[str, Any]:
    """Return the variables that both templates use.

    Args:
        comparison: None when nothing was compared.
        manifest: None when there is no run.
        data: None when nothing is known of the text.
    """
    rows = [] if comparison is None else table_rows(comparison)
    groups = [
        (group, [row for row in rows if row.group == group]) for group in (*SPLITS, "watched", "answers", "samples")
    ]
    before = short_name(comparison.before.name) if comparison else "before"
    after = short_name(comparison.after.name) if comparison else "after"
    base = manifest.base if manifest else None
    text = data.text if data else None
    prompt = example_prompt(comparison, data)
    after_name = comparison.after.name if comparison else "MODEL"
    asked = ("--chat",) if text and text.examples and text.examples.has_messages else (prompt, "-n", 3)
    return {
        "name": (manifest.name if manifest else None) or f"{before} and {after}",
        "before": before,
        "after": after,
        "base": short_name(base.name) if base else "",
        "base_kind": base.kind if base else None,
        "comparison": comparison,
        "manifest": manifest,
        "data": data,
        "text": text,
        "state": "unknown" if comparison is None else _state(comparison.improved),
        "not_better": _not_better(comparison),
        "undecided": _UNDECIDED.get((comparison.improved_reason if comparison else None) or "", _UNDECIDED[""]),
        "verdict": comparison.verdict if comparison else _NOT_COMPARED,
        "forgotten": [sentence for watched in comparison.watched if (sentence := forgetting(watched))]
        if comparison
        else [],
        "groups": [(group, members) for group, members in groups if members],
        "has_intervals": any(any(row.intervals) for row in rows),
        "interval_source": _interval_source(comparison) if comparison else "",
        "other_tokens": comparison is not None and any(other_tokens(comparison, split) for split in SPLITS),
        "copying": _copying(comparison),
        "memory": memory_view(comparison),
        "account": _account(data.tokens) if data else None,
        "findings": text_findings(text),
        "notes": text_notes(text),
        "not_looked_for": not_looked_for(text),
        "facts": _facts(manifest) if manifest else [],
        "prompt": prompt,
        "generate_command": shell_command("finetale", "generate", ".", *asked),
        "generate_elsewhere": shell_command("finetale", "generate", after_name, *asked),
        "python_prompt": repr(prompt),
    }


def forgetting(watched: WatchedFigures) -> str:
    """Return a sentence if a model clearly got worse on watched text, else an empty string.

    It did if the 95% interval is above zero. Of text with too few documents for an interval, a rise of 10% counts.
    """
    change = watched.change
    name = short_name(watched.source)
    if change is None or change.percent < (0 if change.excludes_zero else _CLEAR_RISE):
        return ""
    if change.excludes_zero is False:
        return ""
    key = COMPARED[change.per]
    old, new = (formatting.measure(getattr(side, key), 3 if key == "bits_per_byte" else None) for side in watched.sides)
    what = next(item.name for item in MEASURES if item.key == key)
    rise = formatting.percent(change.percent)
    if change.interval is not None:
        rise += f", 95% interval {formatting.interval(change.interval, formatting.percent)}"
    return (
        f"It forgot: on {name}, which it was not trained on, {what} rose from {old} to {new} ({rise}). Mixing in such "
        "text with --mix makes it forget less."
    )


def example_prompt(comparison: ComparisonFile | None, data: DataFile | None) -> str:
    """Return a prompt in the language of the text, for the commands that the report and the terminal show.

    It is the first prompt of the comparison for a model that was trained on examples. Otherwise it is the opening of a
    story where the language has one, else the first prompt, else empty.
    """
    if comparison and comparison.prompts and data and data.text and data.text.examples:
        return comparison.prompts[0]
    languages = data.text.to_dict()["languages"] if data and data.text else []
    begin = opening(languages)
    if begin is not None:
        return begin
    return next(iter(comparison.prompts), "") if comparison else ""


def short_name(name: str) -> str:
    """Return a model's name; of an absolute path the last part only, because cards are published."""
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
    return PureWindowsPath(name).name if absolute else name


def template_environment(*, autoescape: bool) -> Environment:
    """Return the package's templates, with functions of `formatting` as filters. An unknown name is an error."""
    environment = Environment(
        loader=PackageLoader("finetale", "templates"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    names = ("count", "measure", "share", "size", "duration", "moment", "plain", "plural")
    environment.filters.update({name: getattr(formatting, name) for name in names})
    return environment


def bars_of(comparison: ComparisonFile) -> list[dict[str, Any]]:
    """Return the deciding measure of each split as two bars; lengths are percent of the longest."""
    bars = []
    for split in SPLITS:
        sides = (comparison.before.on(split), comparison.after.on(split))
        if sides[0] is None or sides[1] is None:
            continue
        key = compared_by(comparison, split)
        values = [getattr(side, key) for side in sides if side is not None]
        if None in values:
            continue
        ends = [getattr(side.interval, key) if side and side.interval else None for side in sides]
        longest = max([*values, *(end for pair in ends if pair for end in pair)]) or 1.0
        lines = [
            {
                "side": side,
                "text": formatting.measure(value, 3 if key == "bits_per_byte" else None),
                "width": _css_percent(value / longest),
                "interval": [_css_percent(pair[0] / longest), _css_percent((pair[1] - pair[0]) / longest)]
                if pair
                else None,
            }
            for side, value, pair in zip(("before", "after"), values, ends, strict=True)
        ]
        name = next(item.name for item in MEASURES if item.key == key)
        bars.append({"split": split, "measure": name[:1].upper() + name[1:], "lines": lines})
    return bars


def _css_percent(part: float) -> str:
    return f"{100 * min(max(part, 0.0), 1.0):.2f}%"


def _not_better(comparison: ComparisonFile | None) -> str:
    """Return the headline where `improved` is false. A gain whose interval includes no change is not clear."""
    moved = comparison.change.on(comparison.judged_on) if comparison and comparison.judged_on else None
    is_unclear = moved is not None and moved.percent < 0 and moved.excludes_zero is False
    return "It is not clear that it got better" if is_unclear else "It did not get better"


def _state(improved: bool | None) -> str:
    return "unknown" if improved is None else "better" if improved else "not-better"


def _interval_source(comparison: ComparisonFile) -> str:
    """Return how the 95% intervals were made; versions before the jackknife used a bootstrap."""
    if comparison.interval_method == "jackknife-t":
        return "from a jackknife over documents"
    return f"from a bootstrap over {'pieces of the text' if comparison.interval_unit == 'piece' else 'documents'}"


def _copying(comparison: ComparisonFile | None) -> dict[str, Any] | None:
    """Return the longest passage that the tuned model's samples copy. None if copies were not searched for."""
    match = comparison.after.sample_metrics.longest_match if comparison else None
    if comparison is None or match is None:
        return None
    return {
        "length": match.words,
        "unit": copied_unit(comparison.after),
        "text": match.text,
        "limit": COPY_WARNING_WORDS,
        "warn": match.words >= COPY_WARNING_WORDS,
    }


def memory_view(comparison: ComparisonFile | None) -> dict[str, Any] | None:
    """Return what the tuned model has memorised, as sentences and examples. None if that was not searched for.

    It is a warning if a thousandth of the text or more is memorised, or if there is personal data in it.
    """
    memory = comparison.memorisation if comparison else None
    if memory is None or memory.training is None or not memory.training.tokens:
        return None
    audit, other = memory.training, memory.held_out
    whole = audit.of_tokens or audit.tokens
    part = "all" if audit.tokens >= whole else f"{share(audit.tokens / whole)} of it"
    beyond = ", beyond what its base would have written" if memory.has_base else ""
    given = f"word for word when given the text before{beyond}"
    what = f"Of {count(audit.tokens)} tokens of the training text that were looked through ({part}), the model writes "
    if audit.passages:
        what += f"{_known(audit)} {given}{';' if beyond else ','} in {plural(audit.passages, 'passage')}"
        if audit.with_personal_data:
            what += f", {count(audit.with_personal_data)} of them with personal data"
    else:
        what += f"no passage {given}"
    return {
        "what": f"{what}.",
        "contrast": f"Of text it never saw: {_known(other)}." if other and other.tokens else "",
        "warn": bool(audit.with_personal_data) or audit.memorised_tokens / audit.tokens >= MEMORY_WARNING_SHARE,
        "passages": audit.passages,
        "examples": audit.examples or [],
    }


def _known(audit: MemorisationAudit) -> str:
    return share(audit.memorised_tokens / audit.tokens)


def _account(tokens: TokenAccount) -> dict[str, Any]:
    """Return the token account: each part with its share of what was read, and what is missing for it to balance."""
    parts = [(name, getattr(tokens, name)) for name in ACCOUNT_PARTS]
    return {
        "read": tokens.read,
        "parts": [
            {"name": name, "tokens": number, "share": number / tokens.read if tokens.read else 0.0}
            for name, number in parts
            if number or name not in RARE_PARTS
        ],
        "gap": tokens.read - sum(number for _, number in parts),
    }


def _facts(manifest: RunManifest) -> list[tuple[str, str]]:
    """Return how the model was made, as (label, value). Unknown values are left out."""
    base, hardware = manifest.base, manifest.hardware
    steps = f"{count(manifest.steps)}"
    if manifest.best_step is not None:
        steps += f" (best model after step {count(manifest.best_step)})"
    facts = [
        ("Base model", short_name(base.name) if base else UNKNOWN),
        ("Taken from", _ORIGINS.get(base.kind or "", plain(base.kind)) if base else UNKNOWN),
        ("Revision", plain(base.revision if base else None)),
        ("Weights of the base", plain(base.weights if base else None)),
        ("Parameters", count(base.parameters if base else None)),
        ("Trained", _trained(manifest)),
        ("Optimizer steps", steps),
        ("Time", duration(manifest.seconds)),
        ("Speed", _with_unit(count(manifest.tokens_per_second), "tokens per second")),
        ("Peak memory", size(manifest.peak_memory_bytes)),
        ("Processor", plain(hardware.cpu if hardware else None)),
        ("Cores", count(hardware.cores if hardware else None)),
        ("Memory", size(hardware.memory_bytes if hardware else None)),
        ("GPU", plain(hardware.gpu.name if hardware and hardware.gpu else None)),
        ("Seed", plain(manifest.seed)),
        ("Started", moment(manifest.created)),
        ("Finished", moment(manifest.finished)),
        ("Versions", plain(manifest.versions)),
        ("SHA-256 of the base", plain(base.sha256 if base else None)),
        ("SHA-256 of the data", plain(manifest.data_sha256)),
    ]
    return [(label, value) for label, value in facts if value != UNKNOWN]


def _trained(manifest: RunManifest) -> str:
    """Return which weights were trained, or UNKNOWN for all of them and for runs of older versions."""
    trained, base = manifest.trained, manifest.base
    if trained is None or (base is not None and trained.parameters == base.parameters):
        return UNKNOWN
    whole = base.parameters if base else None
    part = f" ({share(trained.parameters / whole)} of the base)" if whole else ""
    if trained.rank is None:
        return f"{plural(trained.parameters, 'parameter')}{part}"
    kind = {"lora": "LoRA", "dora": "DoRA"}.get(trained.method, trained.method)
    return f"{kind} of rank {trained.rank}: {plural(trained.parameters, 'parameter')}{part}"


def _with_unit(value: str, unit: str) -> str:
    return value if value == UNKNOWN else f"{value} {unit}"
