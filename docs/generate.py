"""Write docs/commands.md, settings.md, schema.md and models.md, and README's layer numbers, from the code.

A test checks that they are up to date.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from finetale.cli import build_app
from finetale.config import Config, setting_groups
from finetale.schema import (
    EVENTS,
    RECORDED,
    SCHEMA_VERSION,
    CheckResult,
    ComparisonFile,
    DataFile,
    Evaluation,
    ExportFile,
    PlanResult,
    PushResult,
    Record,
    RunManifest,
)
from finetale.trainer_names import TRAINER_NAMES

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py (`make docs`); do not edit. -->\n\n"


def commands() -> str:
    """Return the command reference."""
    return NOTE + build_app().generate_docs(recursive=True).rstrip() + "\n"


def settings() -> str:
    """Return the settings reference, and the names of settings in other tools."""
    lines = [
        "# Settings",
        "",
        "Each setting is a flag (`--block-size 512`), a key of the settings file (`block_size: 512`) and a Python",
        "argument (`block_size=512`) of the same name. *auto* settings are chosen for your text and machine. The run's",
        "`config.yaml` records the choice, and `finetale train --config` reads it.",
        "",
    ]
    for title, names in setting_groups():
        lines += [f"## {title}", "", "| setting | default | meaning |", "|---|---|---|"]
        for name in names:
            field = Config.model_fields[name]
            default = "auto" if field.default is None else "none" if field.default in ((), "") else str(field.default)
            lines.append(f"| `{name}` | {default} | {_cell(field.description or '')} |")
        lines.append("")
    lines += [
        "## Names of other tools",
        "",
        "Flags and keys with these names are refused, and the error names the setting here. They include all names of",
        "`transformers.TrainingArguments`.",
        "",
        "| there | here | note |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{old}` | {f'`{name.setting}`' if name.setting else '–'} | {_cell(name.note)} |"
        for old, name in sorted(TRAINER_NAMES.items())
    ]
    return NOTE + "\n".join(lines) + "\n"


def schema() -> str:
    """Return the reference of the files of a run and of its events."""
    lines = [
        "# Files of a run",
        "",
        "A run directory holds `run.json`, `data.json`, `comparison.json` and `metrics.jsonl` (one event per line);",
        "an export holds `export.json`.",
        f"This page lists their fields in version {SCHEMA_VERSION} of the format (`schema_version`). "
        "Finetale also opens",
        "files of version 1. Later versions may add fields: ignore the fields that you do not know. Numbers "
        "are finite.",
        "Times are seconds, sizes are bytes and losses are nats per token, unless a field says otherwise. An "
        "event that",
        "`metrics.jsonl` does not record goes to the listeners of a run alone.",
        "",
    ]
    parts: tuple[tuple[str, Sequence[type[Record]]], ...] = (
        ("run.json", [RunManifest]),
        ("data.json", [DataFile]),
        ("comparison.json", [ComparisonFile]),
        ("metrics.jsonl and events", EVENTS),
        ("export.json", [ExportFile]),
        ("check --json, plan --json, evaluate --json, push --json", [CheckResult, PlanResult, Evaluation, PushResult]),
    )
    for title, kinds in parts:
        lines += [f"## {title}", ""]
        waiting, done = list(kinds), set[type[Record]]()
        while waiting:
            kind = waiting.pop(0)
            if kind in done:
                continue
            done.add(kind)
            lines += [f"### {_title(kind)}", "", f"{kind.__doc__}", "", "| field | type | meaning |", "|---|---|---|"]
            for name, field in kind.model_fields.items():
                if name == "event":
                    continue
                lines.append(
                    f"| `{field.alias or name}` | {_type(field.annotation)} | {_cell(field.description or '')} |"
                )
                waiting += _records(field.annotation)
            lines.append("")
    return NOTE + "\n".join(lines).rstrip() + "\n"


def models() -> str:
    """Return the table of architectures, from the list that tests/models/test_matrix.py asserts."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    try:
        from architectures import ALL
    finally:
        sys.path.pop(0)
    lines = [
        "# Models",
        "",
        "Finetale trains any causal language model that transformers has, from safetensors or GGUF. It tests three",
        "things on the loaded model itself, not by its name, and chooses the fastest way whose numbers are right:",
        "",
        "- *Packed documents*: how documents that share a row are kept apart in training and evaluation.",
        "- *Generation*: whether the scores with a cache, and in a batch of prompts of different lengths, are those of",
        "  each text alone. Without a cache, the whole text is read again for each token, which is slow.",
        "- *Service*: the engine of PyTorch that serves it, and whether OpenVINO can.",
        "",
        "A model whose scores change with the text that follows is not a causal language model, and is refused before",
        "training.",
        "",
        "The rows below are tested with tiny models with random weights: train, stop, resume (the same weights to the",
        "bit as a run without a stop), compare, generate (the same tokens as transformers without a cache), serve, and",
        "load in plain transformers (the same tensor names as the base, the same loss to 1e-5).",
        "",
        "| models | `model_type` | packed documents | generation | service: PyTorch | service: OpenVINO |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {item.name} | `{item.kind}` | {item.documents} | {item.reading} | {item.server.removeprefix('torch, ')} | "
        f"{'yes' if item.openvino is None else 'no, PyTorch serves it'} |".replace("| torch |", "| all rows together |")
        for item in ALL
    ]
    lines += ["", *(f"{item.name} {item.note}." for item in ALL if item.note)]
    lines += [
        "",
        "## Precision and files",
        "",
        "- Weights in fp16 or bf16 are read exactly, trained as fp32 and saved as fp32: the run is that from the same",
        "  weights in fp32, bit for bit on a CPU. The type in config.json is not used.",
        "- Weights in several files (`model.safetensors.index.json`) are read; each file must be there.",
        "- Weights in pickles alone (`pytorch_model.bin`) are refused, because they can carry code.",
        "- Quantised weights (GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8, MXFP4 and others) are refused before",
        "  their download, because Finetale trains weights in full precision. Choose the model that they come from.",
        "- A model that sees positions up to a limit is never read beyond it: longer blocks and prompts are refused.",
    ]
    return NOTE + "\n".join(lines) + "\n"


def readme() -> str:
    """Return the README with the layer number of each module, from the contract in pyproject.toml, lowest first."""
    page = (HERE.parent / "README.md").read_text(encoding="utf-8")
    layers = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    rows = [row.split("|") for row in reversed(layers["contracts"][0]["layers"])]
    numbers = {name.strip().removeprefix("finetale."): number for number, row in enumerate(rows) for name in row}
    before, _, rest = page.partition("```text\nsrc/finetale/\n")
    tree, _, after = rest.partition("\nrecipes/")
    lines = [re.fullmatch(r"  (\S+?) +(?:\d+ +)?(\S.*)", line) for line in tree.splitlines()]
    entries = [(line[1], line[2]) for line in lines if line is not None]
    entries.sort(key=lambda entry: numbers.get(re.sub(r"(\.py|/)$", "", entry[0]), 99))
    written = []
    for name, text in entries:
        number = numbers.get(re.sub(r"(\.py|/)$", "", name), "")
        written.append(f"  {name:<17} {number:>2}  {text}")
    return before + "```text\nsrc/finetale/\n" + "\n".join(written) + "\nrecipes/" + after


def _title(kind: type[Record]) -> str:
    event = kind.model_fields.get("event")
    if event is None:
        return kind.__name__
    return f"`{event.default}`" + ("" if event.default in RECORDED else " (not recorded)")


def _records(annotation: Any) -> list[type[Record]]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _records(inner)]


def _type(annotation: Any) -> str:
    """Return the name of a type in JSON."""
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "any value"}
    inner = get_args(annotation)
    if annotation in names:
        return names[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation.__name__
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if get_origin(annotation) is list:
        return f"list of {_type(inner[0])}"
    if get_origin(annotation) is dict:
        return f"object of {_type(inner[1])}"
    if get_origin(annotation) is tuple:
        return "[low, high]"
    return " or ".join(_type(part) for part in inner)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    (HERE / "commands.md").write_text(commands(), encoding="utf-8")
    (HERE / "settings.md").write_text(settings(), encoding="utf-8")
    (HERE / "schema.md").write_text(schema(), encoding="utf-8")
    (HERE / "models.md").write_text(models(), encoding="utf-8")
    (HERE.parent / "README.md").write_text(readme(), encoding="utf-8")
