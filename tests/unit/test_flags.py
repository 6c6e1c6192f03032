"""Test flags: unknown flags get a suggestion, and short flags have one meaning in all commands."""

from __future__ import annotations

import pytest

from finetale.cli import COMMANDS, build_app, run
from finetale.config import Config, SamplingSettings
from finetale.errors import ConfigError
from finetale.trainer_names import TRAINER_NAMES, find_name

TRAINED = ("train", "plan")


def refused(capsys: pytest.CaptureFixture[str], line: str) -> tuple[str, str]:
    """Parse an invalid command line; return the message and the hint."""
    assert run(line.split()) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


@pytest.mark.parametrize(
    ("flag", "written"),
    [
        ("--lr 3e-4", "--learning-rate 3e-4"),
        ("--lr=3e-4", "--learning-rate 3e-4"),
        ("--learningRate 3e-4", "--learning-rate 3e-4"),
        ("--fp16", "--precision bf16"),
        ("--bf16 True", "--precision bf16"),
        ("--bf16 False", "--precision"),
        ("--early-stopping", "--patience"),
        ("--early_stopping_patience 4", "--patience 4"),
        ("--max-length 512", "--block-size 512"),
        ("--temp 0.5", "--temperature 0.5"),
        ("--num-train-epochs 2", "--epochs 2"),
        ("--per-device-train-batch-size 4", "--micro-batch-size 4"),
        ("--gradient-accumulation-steps 8", "--batch-size"),
        ("--output-dir runs/x", "--out runs/x"),
        ("--weight_dekay 0.1", "--weight-decay 0.1"),
        ("--model-name-or-path gpt2-medium", "--model gpt2-medium"),
        ("--overwrite-output-dir", "--overwrite"),
        ("--num-return-sequences 3", "--num-samples 3"),
    ],
)
def test_unknown_flags_get_a_suggestion(flag: str, written: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = flag.split()[0].split("=")[0]
    message, hint = refused(capsys, f"train x {flag}")
    assert message == f"train has no flag {name}."
    expected = f"Did you mean {written}?" if "dekay" in flag else f"{name} is {written} here"
    assert hint.startswith(expected)
    assert hint[len(expected)] in " .("  # the flag with its value
    assert hint.endswith("See `finetale train --help`.")


def test_all_unknown_flags_are_reported_together(capsys: pytest.CaptureFixture[str]) -> None:
    message, hint = refused(capsys, "train x --lr 1 --epochs 3 --lora --out y --temp 2")
    assert message == "train has no flags --lr, --lora, --temp."
    for words in ("--learning-rate 1", "--method lora", "--temperature 2"):
        assert words in hint


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("check x --bogus", "No flag has a similar name to --bogus."),
        ("train x --foo", "No flag has a similar name to --foo."),
        ("train x --ouput y", "Did you mean --out y?"),
        ("train x --sead 2", "Did you mean --seed 2?"),
        ("check x --hlep", "Did you mean --help?"),
    ],
)
def test_only_near_names_are_suggested(line: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, line)[1] == f"{expected} See `finetale {line.split()[0]} --help`."


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_suggests_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    message, hint = refused(capsys, f"{command} x --lr 3e-4")
    assert message == f"{command} has no flag --lr."
    assert ("--learning-rate 3e-4 here" if command in TRAINED else "--learning-rate of `finetale train`") in hint


def test_one_name_can_mean_different_things_to_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--max-new-tokens 50 here" in refused(capsys, "generate m x --max-length 50")[1]
    assert "--block-size 50 here" in refused(capsys, "evaluate m x --max-length 50")[1]
    with pytest.raises(ConfigError, match="max_new_tokens = 50"):
        SamplingSettings.resolve({"max_length": 50})


def test_unknown_keys_of_files_and_arguments_get_a_suggestion_with_the_value() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.resolve({"lr": 3e-4, "fp16": True, "load-in-8bit": True, "temp": 0.5})
    for words in ("learning_rate = 0.0003", "precision = bf16", "weights stay in fp32", "temperature = 0.5"):
        assert words in caught.value.hint


def test_the_table_of_suggestions_names_existing_settings() -> None:
    assert len(TRAINER_NAMES) > 250
    known = set(Config.model_fields)
    assert {name.setting for name in TRAINER_NAMES.values()} - known == {""}
    assert {name.instead for name in TRAINER_NAMES.values()} - known == {""}
    assert set(TRAINER_NAMES) & known == set()
    assert all(len(name.note) > 10 for name in TRAINER_NAMES.values() if not name.setting)
    assert find_name("--Max-Length") == find_name("maxLength") == TRAINER_NAMES["max_length"]
    assert find_name("--nothing-like-it") is None


def test_short_flags_mean_the_same_in_every_command() -> None:
    app = build_app()
    meanings: dict[str, set[str]] = {"-m": set(), "-n": set(), "--model": set(), "-q": set()}
    for command in COMMANDS:
        for argument in app[command].assemble_argument_collection():
            for short in meanings.keys() & set(argument.names):
                meanings[short].update(name for name in argument.names if name.startswith("--"))
    assert meanings == {"-m": {"--model"}, "-n": {"--num-samples"}, "--model": {"--model"}, "-q": {"--quiet"}}


@pytest.mark.parametrize("command", ["generate", "evaluate", "compare", "serve"])
def test_commands_with_the_model_as_first_argument_explain_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--model", "-m", "--model-name-or-path"):
        hint = refused(capsys, f"{command} x {flag} gpt2")[1]
        assert hint.startswith(f"The model is the first argument: finetale {command} ")
