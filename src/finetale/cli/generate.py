"""`finetale generate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from finetale.cli.output import Json, Model, Quiet, print_json, progress
from finetale.cli.settings import with_settings
from finetale.config import SamplingSettings
from finetale.errors import GenerationError


@with_settings(SamplingSettings)
def command(
    model: Model,
    /,
    *prompt: Annotated[str, Parameter(help="Text to continue; - reads one prompt from standard input.")],
    n: Annotated[int, Parameter(name=["-n", "--num-samples"], help="Samples a prompt.")] = 1,
    prompts_file: Annotated[
        Path | None, Parameter(help="File of prompts: one a line, or .jsonl with the key prompt.")
    ] = None,
    stream: Annotated[bool, Parameter(negative=(), help="Print text as it comes (one prompt, one sample).")] = False,
    truncate: Annotated[bool, Parameter(negative=(), help="Cut prompts that are too long on their left.")] = False,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit on the Hub.")] = None,
    offline: Annotated[bool, Parameter(negative=(), help="Use only what is on this machine already.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    **settings: Any,
) -> int:
    """Continue each PROMPT with MODEL; without a prompt the model begins a text. - reads one prompt from standard input."""
    sampling = SamplingSettings.resolve(settings)
    prompts = _prompts(prompt, prompts_file)
    if n < 1:
        raise GenerationError(f"n is {n}; at least one sample is needed.", "Give -n 1 or more.")
    if stream and (len(prompts) != 1 or n != 1 or as_json):
        raise GenerationError(
            "--stream prints one sample of one prompt.", "Leave out --stream, or -n, --json and further prompts."
        )
    from finetale import models
    from finetale.generate import Generator
    from finetale.schema import StageEvent

    with progress(quiet=quiet, as_json=as_json) as display:
        loaded = models.open_model(model, display, revision=revision, offline=offline)
        models.warn_if_unfinished(loaded, display)
        generator = Generator(loaded.model, loaded.tokenizer)
        if not stream:
            display(StageEvent(message="Writing"))
            results = generator.generate(prompts, sampling, n=n, truncate=truncate)
    if stream:
        sys.stdout.write(prompts[0])
        for piece in generator.stream(prompts[0], sampling, truncate=truncate):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return 0
    samples = [sample for group in results for sample in group]
    if as_json:
        names = ("prompt", "text", "seed", "num_tokens", "finish_reason")
        print_json(
            {
                "model": model,
                "settings": sampling.model_dump(),
                "samples": [{k: getattr(s, k) for k in names} for s in samples],
            }
        )
        return 0
    for number, sample in enumerate(samples):
        if number:
            sys.stdout.write("\n" + "-" * 40 + "\n")
        sys.stdout.write(sample.prompt + sample.text + "\n")
    return 0


def _prompts(given: tuple[str, ...], file: Path | None) -> list[str]:
    prompts = [sys.stdin.read() if text == "-" else text for text in given]
    if file is not None:
        prompts += _read_prompts(file)
    return prompts or [""]


def _read_prompts(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GenerationError(
            f"The prompts in {file} can't be read: {error}.", "Give a UTF-8 text file with a prompt a line."
        ) from None
    if file.suffix != ".jsonl":
        prompts = [line for line in lines if line.strip()]
    else:
        prompts = []
        for number, line in enumerate(lines, 1):
            try:
                prompts.append(str(json.loads(line)["prompt"]))
            except (ValueError, KeyError, TypeError):
                raise GenerationError(
                    f"{file}:{number} is no JSON object with the key prompt.", 'Write {"prompt": "…"} a line.'
                ) from None
    if not prompts:
        raise GenerationError(f"{file} holds no prompt.", "Write one prompt a line.")
    return prompts
