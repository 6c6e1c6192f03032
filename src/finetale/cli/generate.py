"""`finetale generate`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from finetale.cli.interactive import Talk, converse
from finetale.cli.output import Json, Model, Quiet, print_json, progress
from finetale.cli.prompts import read_prompts
from finetale.cli.settings import with_settings
from finetale.cli.streams import is_unicode
from finetale.config import SamplingSettings
from finetale.errors import GenerationError

if TYPE_CHECKING:
    from finetale.generate import Sample

_TOGETHER = 16
"""Number of texts that are generated together; --jsonl prints them when they are complete."""


@with_settings(SamplingSettings)
def command(
    model: Model,
    /,
    *prompt: Annotated[str, Parameter(help="Text to continue, in quotes; - is all of standard input as one prompt.")],
    prompts: Annotated[
        tuple[str, ...], Parameter(name="--prompt", negative=(), help="Another prompt; may be given several times.")
    ] = (),
    prompts_file: Annotated[
        str | None,
        Parameter(help="File with a prompt per line, or .jsonl with the key prompt; - is standard input."),
    ] = None,
    n: Annotated[int, Parameter(name=["-n", "--num-samples"], help="Texts per prompt.")] = 1,
    chat: Annotated[
        bool, Parameter(negative=(), help="Take each prompt as a message, and print the answer, by the chat template.")
    ] = False,
    stream: Annotated[bool, Parameter(negative=(), help="Print text as it comes (one prompt, one text).")] = False,
    truncate: Annotated[bool, Parameter(negative=(), help="Cut prompts that are too long on their left.")] = False,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit on the Hub.")] = None,
    offline: Annotated[bool, Parameter(negative=(), help="Use only files that are on this machine.")] = False,
    as_json: Json = False,
    as_json_lines: Annotated[
        bool, Parameter(name="--jsonl", negative=(), help="Print one JSON object per text and line, once it is done.")
    ] = False,
    quiet: Quiet = False,
    **settings: Any,
) -> int:
    """Continue each PROMPT with MODEL, or answer it with --chat.

    Without a prompt, a terminal begins a conversation: it reads prompts and continues each. Each line of piped input is
    a prompt. Without a prompt, terminal or input, the model begins a text of its own.
    """
    sampling = SamplingSettings.resolve(settings)
    given = read_prompts(model, prompt, prompts, prompts_file)
    if n < 1:
        raise GenerationError(f"n is {n}; at least one sample is needed.", "Give -n 1 or more.")
    if stream and (len(given) > 1 or n != 1 or as_json or as_json_lines):
        raise GenerationError(
            "--stream prints one text of one prompt.", "Leave out --stream, or -n, --json, --jsonl and further prompts."
        )
    if as_json and as_json_lines:
        raise GenerationError("--json and --jsonl are two formats.", "Give one of them.")
    talks = not (given or as_json or as_json_lines or stream or n > 1) and _is_terminal()
    given = given or [""]
    from finetale import models
    from finetale.chat import conversation_prompt
    from finetale.generate import Generator
    from finetale.schema import StageEvent
    from finetale.text.conversations import Message

    with progress(quiet=quiet, as_json=as_json or as_json_lines) as display:
        loaded = models.open_model(model, display, revision=revision, offline=offline)
        models.warn_if_unfinished(loaded.provenance, display)
        generator = Generator(loaded.model, loaded.tokenizer)
        asked = given
        if chat:
            given = [conversation_prompt(loaded.tokenizer, [Message("user", text, False)], model) for text in given]
        if not (stream or talks or as_json_lines):
            display(StageEvent(message="Writing"))
            groups = generator.generate(given, sampling, n=n, truncate=truncate)
    if talks and chat:
        talk = Talk(
            lambda messages: conversation_prompt(loaded.tokenizer, messages, model),
            lambda text, chosen: generator.stream(text, chosen, truncate=True),
        )
        converse(model, sampling, talk, echo=False)
        return 0
    if talks:
        converse(model, sampling, lambda text, chosen: generator.stream(text, chosen, truncate=truncate))
        return 0
    if stream:
        sys.stdout.write("" if chat else given[0])
        for piece in generator.stream(given[0], sampling, truncate=truncate):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return 0
    said = dict(zip(given, asked, strict=True))
    if as_json_lines:
        at_once = max(1, _TOGETHER // n)
        for start in range(0, len(given), at_once):
            some = given[start : start + at_once]
            for group in generator.generate(some, sampling, n=n, truncate=truncate, batch_size=_TOGETHER):
                for sample in group:
                    line = json.dumps(
                        _values(sample, said[sample.prompt]), ensure_ascii=not is_unicode(sys.stdout), allow_nan=False
                    )
                    sys.stdout.write(line + "\n")
            sys.stdout.flush()
        return 0
    samples = [sample for group in groups for sample in group]
    if as_json:
        rows = [_values(sample, said[sample.prompt]) for sample in samples]
        print_json({"model": model, "settings": sampling.model_dump(), "samples": rows})
        return 0
    for number, sample in enumerate(samples):
        if number:
            sys.stdout.write("\n" + "-" * 40 + "\n")
        sys.stdout.write(("" if chat else sample.prompt) + sample.text + "\n")
    return 0


def _values(sample: Sample, prompt: str) -> dict[str, Any]:
    values = {key: getattr(sample, key) for key in ("text", "seed", "num_tokens", "finish_reason")}
    return {"prompt": prompt} | values


def _is_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
