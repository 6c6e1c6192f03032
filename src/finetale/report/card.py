"""The model card: README.md of a saved model, with metadata as the Hub reads it. Knows nothing of HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from jinja2 import Template

from finetale.formatting import at, finite, objects, plain
from finetale.report.table import SPLITS
from finetale.report.views import shared_view, template_environment

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_KEY_SETTINGS = (
    "epochs",
    "max_steps",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "batch_size",
    "block_size",
    "dropout",
    "precision",
    "seed",
)
# The names that data.json uses; "Arabic script" and "Devanagari" each stand for more than one language.
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
    manifest: Mapping[str, Any], comparison: Mapping[str, Any] | None, data: Mapping[str, Any] | None
) -> str:
    """The model card: YAML front matter and Markdown.

    Args:
        manifest: content of run.json.
        comparison: content of comparison.json, if the models were compared.
        data: content of data.json, if known.
    """
    view = shared_view(comparison or {}, manifest, data)
    config = at(manifest, "config")
    body = _template().render(
        view,
        sample=next(iter(objects(at(comparison, "after", "samples"))), None),
        key_settings=[(name, plain(at(config, name))) for name in _KEY_SETTINGS if at(config, name) is not None],
    )
    metadata = _metadata(view["name"], manifest, comparison, data)
    front_matter = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    # JSON may hold half of a surrogate pair, UTF-8 may not.
    return f"---\n{front_matter}---\n\n{body.strip()}\n".encode("utf-8", "replace").decode("utf-8")


def escape_markdown(text: Any) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|~#&$])", r"\\\1", " ".join(str(text).split()))


def code_span(text: Any) -> str:
    """Text as inline code, whatever backticks it holds."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    marks = "`" * (_longest_run_of_backticks(line) + 1)
    return f"{marks} {line} {marks}" if "`" in line else f"{marks}{line}{marks}"


def fenced(text: Any, language: str = "text") -> str:
    """Text as a code block, verbatim, whatever fences it holds."""
    marks = "`" * max(3, _longest_run_of_backticks(str(text)) + 1)
    return f"{marks}{language}\n{text}\n{marks}"


@cache
def _template() -> Template:
    environment = template_environment(autoescape=False)
    environment.filters.update(md=escape_markdown, code=code_span, fenced=fenced)
    return environment.get_template("model_card.md.j2")


def _longest_run_of_backticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _metadata(
    name: str, manifest: Mapping[str, Any], comparison: Mapping[str, Any] | None, data: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The front matter. No licence is claimed: it follows from the base model and the text, and only their user knows both."""
    metadata: dict[str, Any] = {}
    if languages := _languages(at(data, "text", "languages")):
        metadata["language"] = languages
    base = at(manifest, "base", "name")
    if at(manifest, "base", "kind") == "hub" and isinstance(base, str) and _HUB_ID.fullmatch(base):
        metadata |= {"base_model": base, "base_model_relation": "finetune"}
    metadata |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["finetale", "causal-lm"]}
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": f"held-out text ({split})", "type": "text", "split": split},
            "metrics": [{"type": "perplexity", "name": "perplexity a token", "value": value}],
        }
        for split in SPLITS
        if (value := finite(at(comparison, "after", split, "perplexity"))) is not None
    ]
    if results:
        metadata["model-index"] = [{"name": name.encode("utf-8", "replace").decode("utf-8"), "results": results}]
    return metadata


def _languages(given: Any) -> list[str]:
    """ISO 639-1 codes of the languages of a tenth or more of the sampled documents, the commonest first."""
    found = [(str(item.get("language")), finite(item.get("sampled_documents")) or 0.0) for item in objects(given)]
    whole = math.fsum(number for _, number in found)
    return [_LANGUAGE_CODES[name] for name, number in found if name in _LANGUAGE_CODES and number * 10 >= whole > 0]
