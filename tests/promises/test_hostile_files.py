"""Malicious models, tokenizers, texts and run directories.

None of them runs code, writes outside the output folder, or takes unbounded memory or time.

Each attack runs in a new process with limited memory. An audit hook records every file opened for writing, every
started program, every connection and every unpickling.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from children import finish, printed, start
from finetale.models.safety import nests_repetition
from scene import Place
from tiny import save_model, story

MEMORY = 6 * 2**30
"""Bytes of address space that a process may use in addition to those at its start."""
SECONDS = 60
_WATCHED = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
    "code.__new__",
)


def watch(folder: str) -> None:
    """Limit the memory of this process, and log its forbidden actions in folder/audit."""
    import resource

    log = os.open(os.path.join(folder, "audit"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    allowed = tuple(
        os.path.realpath(os.path.join(folder, name)) for name in ("cache", "printed", "audit", "out", "attack")
    )
    temporary = os.path.realpath(os.environ.get("TMPDIR", "/tmp"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes or not isinstance(path, str | bytes | os.PathLike):
                return
            real = os.path.realpath(os.fsdecode(path))
            own_temporary = real.startswith(temporary + os.sep) and not real.startswith(
                os.path.realpath(folder) + os.sep
            )
            if not real.startswith(allowed) and not own_temporary and not real.startswith(("/dev/", "/proc/")):
                os.write(log, f"writes {real}\n".encode())
        elif event == "subprocess.Popen" and arguments[0] == "uname":
            return  # Python's `platform` module runs it to find the processor
        elif event in _WATCHED or (event == "import" and str(arguments[0]).startswith("evil")):
            os.write(log, f"{event} {arguments!r}\n".encode())

    sys.addaudithook(hook)


class Exploit:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(change(value) or value), encoding="utf-8")


def pickled_weights(model: Path, target: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit(str(target))))


def pickled_beside_safetensors(model: Path, target: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt"):
        (model / name).write_bytes(pickle.dumps(Exploit(str(target))))


def code_in_the_folder(model: Path, target: Path) -> None:
    (model / "evil_model.py").write_text(f"open({str(target)!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModel")
    edit(model / "config.json", lambda c: c | {"auto_map": dict.fromkeys(names, "evil_model.Evil")})


def code_of_the_tokenizer(model: Path, target: Path) -> None:
    (model / "evil_tokenizer.py").write_text(f"open({str(target)!r}, 'w')\n", encoding="utf-8")
    auto = {"AutoTokenizer": ["evil_tokenizer.Evil", "evil_tokenizer.Evil"]}
    edit(model / "tokenizer_config.json", lambda c: c | {"auto_map": auto, "tokenizer_class": "Evil"})


def attention_from_elsewhere(model: Path, target: Path) -> None:
    kernel = {
        "_attn_implementation": "evil/kernel",
        "attn_implementation": "evil/kernel",
        "_attn_implementation_internal": "evil/kernel",
    }
    edit(model / "config.json", lambda c: c | kernel | {"experts_implementation": "evil/kernel"})


def unknown_model_type(model: Path, target: Path) -> None:
    edit(model / "config.json", lambda c: c | {"model_type": "../../evil"})


def an_index_with_a_path_outside(model: Path, target: Path) -> None:
    (model / "model.safetensors").rename(model.parent / "evil.safetensors")
    weights = {"transformer.wte.weight": "../evil.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    (model / "model-00001-of-00001.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")


def a_header_of_2_gb(model: Path, target: Path) -> None:
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**31) + b"{")
        file.truncate(2**31 + 100)  # sparse


def a_header_longer_than_the_file(model: Path, target: Path) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


def tensors_that_overlap(model: Path, target: Path) -> None:
    header = json.dumps(
        {f"t{i}": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]} for i in range(9)}
    ).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"0" * 64)


def a_config_nested_deeply(model: Path, target: Path) -> None:
    (model / "config.json").write_text('{"model_type": "gpt2", "x": ' + "[" * 500_000 + "]" * 500_000 + "}")


def a_config_of_100_mb(model: Path, target: Path) -> None:
    (model / "config.json").write_text('{"model_type": "gpt2", "x": "' + "x" * 10**8 + '"}')


def a_model_too_large_for_memory(model: Path, target: Path) -> None:
    edit(model / "config.json", lambda c: c | {"n_embd": 2**20, "n_layer": 10_000, "n_head": 2**10})


def a_pattern_with_exponential_time(model: Path, target: Path) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "([a-z]+ ?)+$"}, "behavior": "Isolated", "invert": False}
    edit(model / "tokenizer.json", lambda t: t | {"pre_tokenizer": pattern})


def a_tokenizer_nested_deeply(model: Path, target: Path) -> None:
    (model / "tokenizer.json").write_text('{"pre_tokenizer": ' + '{"a":' * 200_000 + "1" + "}" * 200_000 + "}")


def a_template_with_code(model: Path, target: Path) -> None:
    code = "{{ cycler.__init__.__globals__.os.system('touch " + str(target) + "') }}"
    edit(model / "tokenizer_config.json", lambda c: c | {"chat_template": code})
    (model / "chat_template.jinja").write_text(code)


MODELS = (
    pickled_weights,
    pickled_beside_safetensors,
    code_in_the_folder,
    code_of_the_tokenizer,
    attention_from_elsewhere,
    unknown_model_type,
    an_index_with_a_path_outside,
    a_header_of_2_gb,
    a_header_longer_than_the_file,
    tensors_that_overlap,
    a_config_nested_deeply,
    a_config_of_100_mb,
    a_model_too_large_for_memory,
    a_pattern_with_exponential_time,
    a_tokenizer_nested_deeply,
    a_template_with_code,
)
HARMLESS = {
    code_of_the_tokenizer,
    pickled_beside_safetensors,
    code_in_the_folder,
    attention_from_elsewhere,
    a_template_with_code,
}
"""Attacks after which the model still works, because the malicious part is never read."""


@pytest.fixture
def scene(place: Place, tmp_path: Path) -> Path:
    """Create a folder with stories/ and a valid model attack/, which the test makes malicious."""
    save_model(tmp_path / "attack")
    (tmp_path / "stories").mkdir()
    for number in range(8):
        (tmp_path / f"stories/{number}.txt").write_text(story(number, 60), encoding="utf-8")
    return tmp_path


def run_watched(scene: Path, *words: str) -> tuple[int, str]:
    """Run a command and check that it did nothing forbidden; return its exit code and output."""
    code = finish(start(scene, words, functools.partial(watch, str(scene))), SECONDS)
    seen = (scene / "audit").read_text(encoding="utf-8")
    assert seen == "", seen
    assert not (scene / "target").exists()
    return code, printed(scene)


QUICK = (
    "--max-steps",
    "1",
    "--num-prompts",
    "1",
    "--num-samples",
    "1",
    "--max-new-tokens",
    "2",
    "--no-tensorboard",
    "--out",
    "out",
)


@pytest.mark.parametrize("attack", MODELS, ids=lambda attack: attack.__name__)
def test_hostile_models(scene: Path, attack: Callable[[Path, Path], None]) -> None:
    attack(scene / "attack", scene / "target")
    code, output = run_watched(scene, "train", "stories", "--model", "attack", *QUICK)
    assert code == (0 if attack in HARMLESS else 1), output
    if attack not in HARMLESS:
        assert "error:" in output
        assert "hint:" in output
        assert "Traceback" not in output


def a_deeply_nested_line(folder: Path) -> str:
    (folder / "bomb.jsonl").write_text("[" * 1_000_000 + "\n" + json.dumps({"text": story(1)}) + "\n")
    return "can't be read"


def one_json_value_of_200_mb(folder: Path) -> str:
    (folder / "bomb.json").write_bytes(b'[{"text": "' + b"x" * 200_000_000)
    return ""


def a_gzip_bomb(folder: Path) -> str:
    with gzip.open(folder / "bomb.txt.gz", "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(b"\0" * 10**6)
    return ""


def file_names_with_paths_and_commands(folder: Path) -> str:
    (folder / "..%2f..%2fevil.txt").write_text(story(3))
    (folder / "-rf \n$(touch target).txt").write_text(story(4))
    return ""


def a_link_to_itself(folder: Path) -> str:
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "device.txt").symlink_to("/dev/zero")
    return ""


TEXTS = (
    a_deeply_nested_line,
    one_json_value_of_200_mb,
    a_gzip_bomb,
    file_names_with_paths_and_commands,
    a_link_to_itself,
)


@pytest.mark.parametrize("attack", TEXTS, ids=lambda attack: attack.__name__)
def test_hostile_texts(scene: Path, attack: Callable[[Path], str]) -> None:
    attack(scene / "stories")
    code, output = run_watched(scene, "check", "stories", "--model", "attack")
    assert code in (0, 1), output
    assert "Traceback" not in output


def a_link_to_outside(run: Path, outside: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    outside.mkdir()
    (run / "checkpoints").symlink_to(outside)


def a_cache_outside(run: Path, outside: Path) -> None:
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text + f"\ncache_dir: {outside}\n", encoding="utf-8")


def exponential_yaml(run: Path, outside: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (run / "config.yaml").write_text("\n".join(lines), encoding="utf-8")


def yaml_with_code(run: Path, outside: Path) -> None:
    (run / "config.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {outside}']\n", encoding="utf-8")


def a_manifest_with_a_path_outside(run: Path, outside: Path) -> None:
    newest = max((run / "checkpoints").iterdir())
    edit(
        newest / "manifest.json",
        lambda m: m | {"files": m["files"] | {"../../../../etc/passwd": {"sha256": "0", "bytes": 1}}},
    )


def deeply_nested_json(run: Path, outside: Path) -> None:
    (run / "run.json").write_text('{"x": ' + "[" * 1_000_000 + "]" * 1_000_000 + "}", encoding="utf-8")


RUNS = (
    a_link_to_outside,
    a_cache_outside,
    exponential_yaml,
    yaml_with_code,
    a_manifest_with_a_path_outside,
    deeply_nested_json,
)


@pytest.mark.parametrize("attack", RUNS, ids=lambda attack: attack.__name__)
def test_hostile_run_directories(scene: Path, place: Place, attack: Callable[[Path, Path], None]) -> None:
    shutil.copytree(place.folder / "whole", scene / "out", ignore=shutil.ignore_patterns(".lock"))
    edit(scene / "out/run.json", lambda m: m | {"status": "interrupted"})
    for name in ("report.html", "comparison.json"):
        (scene / "out" / name).unlink()
    outside = scene / "target"
    attack(scene / "out", outside if attack is not a_link_to_outside else scene / "elsewhere")
    code, output = run_watched(scene, "resume", "out")
    assert code in (0, 1), output
    assert "Traceback" not in output
    if attack is a_link_to_outside:
        assert code == 1
        assert "is a symbolic link" in output
        assert list((scene / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("pattern", "nested"),
    [
        (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", False),
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
            False,
        ),
        (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}]+(?i:'s|'t|'re)?|\p{N}{1,3}", False),
        (r"(?:\r?\n)+(?!\r?\n)", False),
        (r"(a+)+$", True),
        (r"(?:\p{L}+\s?)*!", True),
        (r"([a-z]+ ?)+$", True),
        (r"((ab)*c)*", True),
        (r"(a|b+){2,}", True),
        (r"(a|aa)+$", True),
        (r"(a+){1,500}", True),
        (r"(?:[(+*])+x*", False),
        (r"\(a+\)+", False),
    ],
)
def test_patterns_with_exponential_time_are_recognised(pattern: str, nested: bool) -> None:
    assert nests_repetition(pattern) is nested
