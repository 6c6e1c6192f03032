"""Writes docs/commands.md and docs/settings.md from the code. A test checks that both are up to date."""

from __future__ import annotations

from pathlib import Path

from finetale.cli import build_app
from finetale.config import Config, setting_groups
from finetale.trainer_names import TRAINER_NAMES

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py (`make docs`); do not edit. -->\n\n"


def commands() -> str:
    """The command reference."""
    return NOTE + build_app().generate_docs(recursive=True).rstrip() + "\n"


def settings() -> str:
    """The settings reference, and the names of transformers.TrainingArguments."""
    lines = [
        "# Settings",
        "",
        "Each setting is a flag (`--block-size 512`), a key of the settings file (`block_size: 512`) and a Python argument",
        "(`block_size=512`) of the same name. *auto* settings are chosen for your text and machine and then written into the",
        "run's `config.yaml`, which `finetale train --config` takes back.",
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
        "## Names from `transformers.TrainingArguments`",
        "",
        "A setting of these names is refused with the name it has here.",
        "",
        "| there | here | note |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{old}` | {f'`{ours}`' if ours else '–'} | {_cell(note)} |"
        for old, (ours, note) in sorted(TRAINER_NAMES.items())
    ]
    return NOTE + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    (HERE / "commands.md").write_text(commands(), encoding="utf-8")
    (HERE / "settings.md").write_text(settings(), encoding="utf-8")
