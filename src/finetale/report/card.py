"""The model card: README.md of a saved model, with metadata as the Hub reads it. Knows nothing of HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from jinja2 import Template

from finetale.formatting import plain
from finetale.report.table import SPLITS
from finetale.report.views import shared_view, template_environment
from finetale.schema import ComparisonFile, DataFile, ExportFile, Figures, RunManifest

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_KEY_SETTINGS = (
    "epochs",
    "max_steps",
    "method",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_targets",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "batch_size",
    "block_size",
    "dropout",
    "attention_dropout",
    "precision",
    "seed",
)
# Names as in data.json. "Arabic script" and "Devanagari" are missing, because each is used for several languages.
_LANGUAGE_CODES = {
    "Chinese": "zh",
    "Czech": "cs",
    "Danish": "da",
    "Dutch": "nl",
    "English": "en",
    "French": "fr",
    "German": "de",
    "Greek": "el",
    "Hebrew": "he",
    "Italian": "it",
    "Japanese": "ja",
    "Korean": "ko",
    "Polish": "pl",
    "Portuguese": "pt",
    "Russian": "ru",
    "Spanish": "es",
    "Swedish": "sv",
    "Thai": "th",
    "Turkish": "tr",
    "Ukrainian": "uk",
}


def model_card(
    manifest: RunManifest,
    comparison: ComparisonFile | None,
    data: DataFile | None,
    *,
    settings: Mapping[str, Any] | None = None,
    adapter: bool = False,
) -> str:
    """Return the model card: YAML front matter and Markdown.

    Args:
        manifest: content of run.json.
        comparison: content of comparison.json, if the models were compared.
        data: content of data.json, if known.
        settings: of config.yaml, by name.
        adapter: whether the card is that of the run's adapter alone, and not of its model.
    """
    view = shared_view(comparison, manifest, data)
    known = settings or manifest.config or {}
    body = _template("model_card.md.j2").render(
        view,
        license=manifest.base.license if manifest.base else None,
        sample=next(iter(comparison.after.samples), None) if comparison else None,
        key_settings=[(name, plain(known[name])) for name in _KEY_SETTINGS if known.get(name) is not None],
    )
    metadata = _metadata(view["name"], manifest, comparison, data, adapter=adapter)
    front_matter = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{front_matter}---\n\n{body.strip()}\n"


def export_card(record: ExportFile, *, purpose: str, usage: str) -> str:
    """Return the card of an exported model, in Markdown.

    Args:
        record: content of export.json.
        purpose: the programs that the format is for.
        usage: how to use the files, in Markdown.
    """
    name = re.split(r"[\\/]", record.model.rstrip("\\/"))[-1]
    template = _template("export_card.md.j2")
    return template.render(record=record, name=name, purpose=purpose, usage=usage).strip() + "\n"


def escape_markdown(text: Any) -> str:
    """Escape text so that Markdown shows it unchanged, in one line."""
    return re.sub(r"([\\`*_\[\]<>|~#&$])", r"\\\1", " ".join(str(text).split()))


def code_span(text: Any) -> str:
    """Return text as inline code. It can contain backticks."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    marks = "`" * (_longest_run_of_backticks(line) + 1)
    return f"{marks} {line} {marks}" if "`" in line else f"{marks}{line}{marks}"


def fenced(text: Any, language: str = "text") -> str:
    """Return text as a code block, verbatim. It can contain fences."""
    marks = "`" * max(3, _longest_run_of_backticks(str(text)) + 1)
    return f"{marks}{language}\n{text}\n{marks}"


@cache
def _template(name: str) -> Template:
    environment = template_environment(autoescape=False)
    environment.filters.update(md=escape_markdown, code=code_span, fenced=fenced)
    return environment.get_template(name)


def _longest_run_of_backticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _metadata(
    name: str, manifest: RunManifest, comparison: ComparisonFile | None, data: DataFile | None, *, adapter: bool
) -> dict[str, Any]:
    """Return the front matter.

    The licence is that of the base, if its card states one. That of the text is not known.
    """
    metadata: dict[str, Any] = {}
    if languages := _languages(data):
        metadata["language"] = languages
    base = manifest.base
    if base is not None and base.license is not None:
        metadata["license"] = base.license
    if base is not None and base.kind == "hub" and _HUB_ID.fullmatch(base.name):
        metadata |= {"base_model": base.name, "base_model_relation": "adapter" if adapter else "finetune"}
    if datasets := _datasets(data):
        metadata["datasets"] = datasets
    metadata |= {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    metadata["tags"] = ["finetale", "causal-lm", *(["lora"] if adapter else [])]
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": f"held-out text ({split})", "type": "text", "split": split},
            "metrics": _metrics(figures),
        }
        for split in SPLITS
        if comparison is not None and (figures := comparison.after.on(split)) is not None
    ]
    if results:
        metadata["model-index"] = [{"name": name, "results": results}]
    return metadata


def _metrics(figures: Figures) -> list[dict[str, Any]]:
    """Return the figures on one text. Their intervals are in `args`: the format has no place of its own for them."""
    metrics = []
    for key, name in (("perplexity", "perplexity per token"), ("bits_per_byte", "bits per byte")):
        args: dict[str, Any] = {"documents": figures.documents, "tokens": figures.tokens}
        interval = getattr(figures.interval, key) if figures.interval else None
        if interval is not None:
            args["interval_95"] = [round(end, 4) for end in interval]
        metrics.append({"type": key, "name": name, "value": round(getattr(figures, key), 4), "args": args})
    return metrics


def _datasets(data: DataFile | None) -> list[str]:
    """Return the ids of the datasets on the Hub that were trained on; of `hf:OWNER/NAME/CONFIG:SPLIT` the first two."""
    text = data.text if data else None
    sources = [*text.sources, *(mixed.source for mixed in text.mixed)] if text else []
    names = ["/".join(source[3:].split(":")[0].split("/")[:2]) for source in sources if source.startswith("hf:")]
    return [name for name in dict.fromkeys(names) if _HUB_ID.fullmatch(name)]


def _languages(data: DataFile | None) -> list[str]:
    """Return ISO 639-1 codes of the languages of a tenth or more of the sampled documents, the most frequent first."""
    found = data.text.languages if data and data.text else []
    whole = sum(each.sampled_documents for each in found)
    return [
        _LANGUAGE_CODES[each.language]
        for each in found
        if each.language in _LANGUAGE_CODES and each.sampled_documents * 10 >= whole > 0
    ]
