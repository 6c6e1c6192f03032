"""Test settings: one declaration, all errors reported together, and hints for names of other tools."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from finetale.config import SECTIONS, Config, TextSettings, TrainSettings, read_settings_file, setting_groups
from finetale.errors import ConfigError
from finetale.trainer_names import TRAINER_NAMES

OLDER_NAMES = [
    "overwrite_output_dir",
    "evaluation_strategy",
    "logging_dir",
    "warmup_ratio",
    "per_gpu_train_batch_size",
    "per_gpu_eval_batch_size",
    "evaluate_during_training",
    "no_cuda",
    "fp16_backend",
    "fp16_opt_level",
    "half_precision_backend",
    "tpu_num_cores",
    "sharded_ddp",
    "group_by_length",
    "adafactor",
    "save_safetensors",
    "push_to_hub_model_id",
    "push_to_hub_organization",
    "push_to_hub_token",
    "use_mps_device",
    "jit_mode_eval",
    "use_ipex",
    "torchdynamo",
    "ray_scope",
    "mp_parameters",
    "dispatch_batches",
    "split_batches",
    "past_index",
    "include_inputs_for_metrics",
    "include_tokens_per_second",
    "xpu_backend",
    "tpu_metrics_debug",
    "fsdp_min_num_params",
    "fsdp_transformer_layer_cls_to_wrap",
]


def test_flag_file_and_argument_give_the_same_object(tmp_path: Path) -> None:
    from finetale.library import resolve

    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 2\nlearning_rate: 3.0e-4\ndeduplicate: true\nvalidation: [held.txt]\nsources: [a.txt]\n")
    by_file = resolve((), file, {})
    by_argument = resolve(
        "a.txt", None, {"epochs": 2, "learning_rate": 3e-4, "deduplicate": True, "validation": ["held.txt"]}
    )
    by_flag = resolve(
        ["a.txt"], None, {"epochs": "2", "learning_rate": "3e-4", "deduplicate": True, "validation": ["held.txt"]}
    )
    assert by_file == by_argument == by_flag


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    from finetale.library import resolve

    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 2\nseed: 5\n")
    config = resolve("a.txt", file, {"epochs": "7", "seed": None})
    assert (config.epochs, config.seed) == (7.0, 5)


def test_a_written_settings_file_resolves_to_the_same_settings(tmp_path: Path) -> None:
    config = Config.resolve(
        {
            "sources": ["a", "b"],
            "stop": ["\n\n", "ENDE: ß"],
            "documents": "\\n---\\n",
            "out": "runs/x",
            "max_steps": 7,
            "prompts": "So: ",
        }
    )
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert Config.resolve(read_settings_file(file)) == config


def test_every_setting_is_in_one_group_and_explained() -> None:
    names = [name for _, group in setting_groups() for name in group]
    assert sorted(names) == sorted(Config.model_fields)
    assert len(names) == len(set(names)) >= 60
    assert [n for n in names if len(Config.model_fields[n].description or "") < 10] == []
    assert len(SECTIONS) == 9


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.resolve({"eppochs": 3, "learning_rate": "fast", "batch_size": 0, "top_p": 2})
    message = caught.value.message
    for name in ("eppochs", "learning_rate = 'fast'", "batch_size = 0", "top_p = 2"):
        assert name in message
    assert "did you mean epochs?" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_size": 2, "micro_batch_size": 4}, "micro_batch_size 4 is larger than batch_size 2"),
        ({"validation_fraction": 0.6, "test_fraction": 0.4}, "must stay below 1"),
        ({"warmup_steps": 1.5}, "must be whole"),
        ({"shard": True, "compile": "on"}, "compile on and shard can't be combined"),
        ({"stop": [""]}, "a stop string is empty"),
        ({"documents": ""}, "separator of documents is empty"),
        ({"precision": "fp16"}, "precision = 'fp16'"),
        ({"name": "../x"}, "name = '../x'"),
        ({"name": "x", "out": "runs/y"}, "out runs/y and name x both set the run directory; give only one of them."),
    ],
)
def test_contradictions_and_bad_values(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.resolve(values)
    assert words in caught.value.message


def test_every_name_of_training_arguments_is_known_or_gets_a_hint() -> None:
    current = [field.name for field in dataclasses.fields(transformers.TrainingArguments)]
    names = [name for name in [*current, *OLDER_NAMES] if name not in Config.model_fields]
    assert len(names) >= 130
    for name in names:
        with pytest.raises(ConfigError) as caught:
            Config.resolve({name: 1})
        ours, note = TRAINER_NAMES[name][:2]
        assert name in caught.value.hint
        assert (ours in caught.value.hint and ours in Config.model_fields) if ours else len(note) > 10


def test_hints_for_common_names_of_other_tools() -> None:
    for old, ours in {
        "evaluation_strategy": "eval_every",
        "num_train_epochs": "epochs",
        "per_device_train_batch_size": "micro_batch_size",
        "output_dir": "out",
        "warmup_ratio": "warmup_steps",
        "lr_scheduler_type": "schedule",
        "fp16": "precision",
    }.items():
        with pytest.raises(ConfigError, match=f"{old} is {ours} here"):
            Config.resolve({old: 1})


def test_invalid_settings_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    with pytest.raises(ConfigError, match="can't be read"):
        read_settings_file(file)
    file.write_text("a: [1\nb: 2\n")
    with pytest.raises(ConfigError, match="not valid YAML at line"):
        read_settings_file(file)
    file.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="does not hold"):
        read_settings_file(file)
    file.write_text("# nothing\n")
    assert read_settings_file(file) == {}


def test_a_settings_file_may_have_the_old_name_of_a_setting(tmp_path: Path) -> None:
    """The config.yaml of old runs has the old name."""
    old = tmp_path / "config.yaml"
    old.write_text("final_learning_rate: 0.25\n", encoding="utf-8")
    config = Config.resolve(read_settings_file(old))
    assert config.final_learning_rate_ratio == 0.25
    assert "final_learning_rate_ratio: 0.25\n" in config.to_yaml()
    assert Config.resolve(read_settings_file(old), {"final_learning_rate_ratio": 0.5}).final_learning_rate_ratio == 0.5
    both = {"final_learning_rate_ratio": 0.5, "final_learning_rate": 0.25}
    assert Config.resolve(both).final_learning_rate_ratio == 0.5
    with pytest.raises(ConfigError, match=r"final_learning_rate_ratio = 2: "):
        Config.resolve({"final_learning_rate": 2})


def test_the_old_flag_of_a_setting_names_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    from finetale.cli import run

    assert run(["train", "text", "--final-learning-rate", "0.2"]) == 2
    assert "Did you mean --final-learning-rate-ratio 0.2?" in capsys.readouterr().err


def test_a_subset_of_the_settings_keeps_their_values() -> None:
    config = Config.resolve({"strip": False, "epochs": 9})
    narrow = config.narrow(TextSettings)
    assert not narrow.strip
    assert type(narrow) is TextSettings
    assert not hasattr(narrow, "epochs")
    assert yaml.safe_load(config.to_yaml())["strip"] is False


@pytest.mark.parametrize(
    ("line", "expected"),
    [("true", "exact"), ("false", "off"), ("off", "off"), ("exact", "exact"), ("near", "near")],
)
def test_settings_with_kinds_accept_yes_and_no(tmp_path: Path, line: str, expected: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"deduplicate: {line}\n")
    config = Config.resolve(read_settings_file(file))
    assert config.deduplicate == expected
    file.write_text(config.to_yaml())
    assert Config.resolve(read_settings_file(file)) == config


@pytest.mark.parametrize(("given", "expected"), [("embeddings", "embeddings"), (3, "3"), ("12", "12"), (None, None)])
def test_valid_values_of_freeze(given: Any, expected: str | None) -> None:
    assert TrainSettings.resolve({"freeze": given}).freeze == expected


@pytest.mark.parametrize("given", ["all", "0", 0, -1, "", True, "1.5"])
def test_invalid_values_of_freeze(given: Any) -> None:
    with pytest.raises(ConfigError, match="must be embeddings, or a number of layers"):
        TrainSettings.resolve({"freeze": given})


def test_yaml_reads_on_and_off_as_true_and_false(tmp_path: Path) -> None:
    for word in ("on", "off", "auto"):
        (tmp_path / "settings.yaml").write_text(f"compile: {word}\n", encoding="utf-8")
        assert Config.resolve(read_settings_file(tmp_path / "settings.yaml")).compile == word


def test_a_removed_setting_in_an_old_file_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("bootstrap_samples: 100\nseed: 3\n", encoding="utf-8")
    assert read_settings_file(path) == {"seed": 3}
    with pytest.raises(ConfigError, match="bootstrap_samples"):
        Config.resolve({"bootstrap_samples": 100})


def test_a_later_layer_replaces_the_whole_budget() -> None:
    def budget(*layers: dict[str, object]) -> tuple[float | None, int | None]:
        config = Config.resolve(*layers)
        return config.epochs, config.max_steps

    assert budget() == (None, None)
    assert budget({"epochs": 3.0}, {"max_steps": 150}) == (None, 150)
    assert budget({"max_steps": 150}, {"epochs": 2}) == (2.0, None)
    assert budget({"epochs": 3.0, "max_steps": 5}, {"seed": 1}) == (3.0, 5)
    assert budget({"epochs": 3.0}, {"epochs": 1, "max_steps": 7}) == (1.0, 7)
    written = Config.resolve({"max_steps": 150}).to_yaml()
    assert "max_steps: 150" in written
    assert "# epochs: null" in written
