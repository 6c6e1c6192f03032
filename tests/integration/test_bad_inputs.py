"""Test bad inputs with the real command: one error line, one hint line, exit code 1, and no partial files."""

from __future__ import annotations

import errno
import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import zstandard
from transformers import BertConfig, BertForMaskedLM

from commands import Result, environment, finetale, finish, start
from finetale import cli, models, rundir
from finetale.text.formats.zipped import OLE_MAGIC
from finetale.tokens import train_tokenizer
from tiny import WORDS, model, save_model, tokenizer, write_stories

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x10\x00\x00\x00\x10\x08\x06\x00\x00\x00" + bytes(range(256))
LINES = "".join(f"{number}. {WORDS}\n" for number in range(40)).encode()
QUICK = (
    *("--max-new-tokens", "4", "--num-samples", "1", "--num-prompts", "1"),
    *("--batch-size", "2", "--precision", "fp32", "--no-tensorboard", "--audit-tokens", "100"),
)
TINY = ("--max-steps", "2", *QUICK)
GOOD = ("--model", "{shared}/good", "--out", "out", *TINY)


@dataclass(frozen=True)
class Case:
    """A bad input: a command, its files, and texts that its error and its hint must contain.

    The folder of models replaces {shared} in an argument.
    """

    name: str
    arguments: tuple[str, ...]
    error: tuple[str, ...]
    hint: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    code: int = 1


def bad_text(name: str, file: str, data: bytes, error: str, hint: str, *more: str) -> Case:
    """Return a case of `finetale train` with one file."""
    return Case(name, ("train", file, *more, *GOOD), (file, *error.split(" … ")), (hint,), {file: data})


def bad_model(name: str, folder: str, error: str, hint: str) -> Case:
    """Return a case of `finetale train` with a model folder."""
    words = ("train", "text.txt", "--model", f"{{shared}}/{folder}", "--out", "out", *TINY)
    return Case(name, words, (folder, *error.split(" … ")), (hint,), {"text.txt": LINES})


def bad_call(name: str, words: str, error: str, hint: str, files: dict[str, bytes] | None = None) -> Case:
    """Return a case of any command, given as one string."""
    return Case(name, tuple(words.split()), tuple(error.split(" … ")), (hint,), files or {})


TABLE = b"title,body\none,a tale\ntwo,another\n"
RECORDS = b'{"text": "one"}\n{"text": "two"}\n'

CASES = [
    # sources
    Case(
        "wrong path",
        ("train", "storys", *GOOD),
        ("storys", "no such file"),
        ("Did you mean stories?",),
        {"stories/a.txt": LINES},
    ),
    Case(
        "two wrong paths",
        ("train", "one.txt", "two.txt", *GOOD),
        ("one.txt", "two.txt", "no such file"),
        ("Check the path",),
    ),
    Case(
        "empty folder",
        ("train", "empty", *GOOD),
        ("empty: holds no file that can be read",),
        ("txt",),
        folders=("empty",),
    ),
    Case(
        "unreadable kinds",
        ("train", "mixed", *GOOD),
        ("mixed: holds no file that can be read (2 of other kinds)",),
        ("txt", "parquet"),
        {"mixed/a.ppt": OLE_MAGIC, "mixed/b.doc": OLE_MAGIC},
    ),
    bad_text("empty file", "empty.txt", b"", "no training text", "finetale check"),
    bad_text("white space", "blank.txt", b" \n\t\n \n", "no training text", "finetale check"),
    bad_text("binary file", "picture.txt", PNG, "PNG … not text", "plain text"),
    bad_text(
        "truncated gzip",
        "cut.txt.gz",
        gzip.compress(os.urandom(4000) + LINES)[:-100],
        "gzip data is cut off",
        "Get the file again",
    ),
    bad_text(
        "damaged zst",
        "bad.txt.zst",
        b"\x00" + zstandard.compress(LINES),
        "Zstandard data is damaged",
        "Get the file again",
    ),
    bad_text(
        "truncated zst",
        "cut.txt.zst",
        zstandard.compress(LINES)[:-9],
        "Zstandard data is cut off",
        "Get the file again",
    ),
    bad_text(
        "bad JSON",
        "data.jsonl",
        RECORDS + b'{"text": "three"\n' + RECORDS,
        "data.jsonl:3: … not valid JSON",
        "Correct this line",
    ),
    bad_text("record that is a number", "data.jsonl", RECORDS + b"12\n", "data.jsonl:3: … a number", '"text"'),
    bad_text(
        "csv column",
        "table.csv",
        TABLE,
        "table.csv:2: … no column 'story' … 'title', 'body'",
        "--text-column",
        "--text-column",
        "story",
    ),
    bad_text(
        "jsonl column",
        "data.jsonl",
        RECORDS,
        "data.jsonl:1: … no column 'story' … 'text'",
        "--text-column",
        "--text-column",
        "story",
    ),
    bad_text(
        "ragged csv", "table.csv", TABLE + b"three,a,tale\n", "table.csv:4: … 3 fields … 2 columns", "double quotes"
    ),
    bad_text("no parquet", "table.parquet", b"PAR1 or so", "not a Parquet file", "Get the file again"),
    bad_text(
        "mixed encodings",
        "mixed.txt",
        "Il était une fois une fée à l'orée du bois, où dormait un très vieux hêtre.\n".encode("cp1252") * 20
        + "La fée dit : « Où est passé l'été ? »\n".encode(),
        "mixed.txt:21: … UTF-8",
        "one encoding",
    ),
    bad_text(
        "undecodable",
        "text.txt",
        LINES + b"caf\xe9 noir\n",
        "text.txt:41: … 0xe9 … utf-8",
        "--undecodable replace",
        "--encoding",
        "utf-8",
    ),
    Case(
        "too little text",
        ("train", "text.txt", *GOOD),
        ("too little text to train on",),
        ("Add text",),
        {"text.txt": b"One tale."},
    ),
    Case("no source", ("train", *GOOD), ("No text was given",), ("hf:DATASET",)),
    Case("no arguments", ("train",), ("No text was given",), ("hf:DATASET",)),
    Case("plan without a source", ("plan",), ("No text was given",), ("hf:DATASET",)),
    Case(
        "no such encoding",
        ("train", "text.txt", "--encoding", "utf-9", *GOOD),
        ("'utf-9'",),
        ("gb18030",),
        {"text.txt": LINES},
    ),
    Case(
        "held-out path",
        ("train", "text.txt", "--validation", "val.txt", *GOOD),
        ("val.txt", "no such file"),
        ("Check the path",),
        {"text.txt": LINES},
    ),
    # models
    bad_model("pickle only", "pickled", "pytorch_model.bin … safetensors only", "model.save_pretrained"),
    bad_model("encoder", "encoder", "an encoder (model_type bert)", "gpt2"),
    bad_model("no tokenizer", "mute", "tokenizer … is empty", "missing"),
    bad_model("tokenizer too large", "foreign", "does not fit … 499 … 400 embeddings", "--tokenizer"),
    bad_model(
        "truncated weights",
        "truncated",
        "weights of … can't be read",
        "The files may be corrupted or incomplete. Download them again.",
    ),
    bad_model("missing folder", "goood", "neither an existing folder nor a Hub id", "/good?"),
    bad_call(
        "unknown shape",
        "train text.txt --model new:10mm --out out",
        "no shape '10mm'",
        "Did you mean new:10m?",
        {"text.txt": LINES},
    ),
    bad_call(
        "model is a file",
        "train text.txt --model text.txt --out out",
        "text.txt is a file",
        "config.json",
        {"text.txt": LINES},
    ),
    Case(
        "block past positions",
        ("train", "text.txt", "--block-size", "128", *GOOD),
        ("block_size", "128", "64"),
        ("--block-size",),
        {"text.txt": LINES},
    ),
    Case(
        "block past text",
        ("train", "text.txt", "--block-size", "60", *GOOD),
        ("too little text for one block", "60"),
        ("--block-size",),
        {"text.txt": b"One tale of a lamp."},
    ),
    Case(
        "missing tokenizer folder",
        ("train", "text.txt", "--tokenizer", "./none", *GOOD),
        ("./none", "neither a folder nor a Hub id"),
        ("Check the path",),
        {"text.txt": LINES},
    ),
    # settings
    Case(
        "unknown setting",
        ("train", "--config", "c.yaml"),
        ("no setting 'learnin_rate'",),
        ("did you mean learning_rate?",),
        {"c.yaml": b"learnin_rate: 1e-4\n"},
    ),
    Case(
        "transformers name",
        ("train", "--config", "c.yaml"),
        ("no setting 'evaluation_strategy'",),
        ("eval_every",),
        {"c.yaml": b"evaluation_strategy: epoch\n"},
    ),
    Case(
        "bad YAML",
        ("train", "--config", "c.yaml"),
        ("c.yaml is not valid YAML at line 3",),
        ("name: value",),
        {"c.yaml": b"epochs: 3\nmodel: [gpt2\n"},
    ),
    Case(
        "list for settings",
        ("train", "--config", "c.yaml"),
        ("does not hold `name: value` lines",),
        ("docs/settings.md",),
        {"c.yaml": b"- epochs\n"},
    ),
    Case("missing settings file", ("train", "--config", "c.yaml"), ("c.yaml can't be read",), ("--config",)),
    Case(
        "several bad settings",
        (
            "train",
            "--config",
            "c.yaml",
            "--epochs",
            "-1",
            "--learning-rate",
            "2",
            "--schedule",
            "step",
            "--batch-size",
            "two",
        ),
        ("epochs = '-1'", "learning_rate = '2'", "schedule = 'step'", "batch_size = 'two'", "no setting 'velocity'"),
        ("docs/settings.md",),
        {"c.yaml": b"velocity: 9\n"},
    ),
    # output folders
    Case(
        "out is a folder of other files",
        ("train", "text.txt", *GOOD),
        ("out exists already and is not a run directory.",),
        ("--out",),
        {"text.txt": LINES, "out/letter.txt": b"mine"},
    ),
    Case(
        "out is a file",
        ("train", "text.txt", *GOOD),
        ("out exists already and is not a run directory.",),
        ("--out",),
        {"text.txt": LINES, "out": b"mine"},
    ),
    Case(
        "overwrite a folder that is not a run",
        ("train", "text.txt", "--overwrite", *GOOD),
        ("out exists already and is not a run directory.",),
        ("--out",),
        {"text.txt": LINES, "out/letter.txt": b"mine"},
    ),
    Case(
        "out holds a run",
        ("train", "text.txt", "--model", "{shared}/good", "--out", "{shared}/run", *TINY),
        ("contains a run already",),
        ("finetale resume", "--overwrite"),
        {"text.txt": LINES},
    ),
    # the other commands
    bad_call(
        "resume a folder that is not a run",
        "resume folder",
        "folder is not a run directory",
        "finetale runs",
        {"folder/a.txt": b"a"},
    ),
    bad_call("resume a missing run", "resume runs/none", "runs/none does not exist", "finetale runs"),
    bad_call(
        "resume to fewer steps than done",
        "resume {shared}/run --max-steps 1",
        "the new budget ends after 1",
        "--max-steps",
    ),
    bad_call(
        "resume a damaged run", "resume broken", "run.json is corrupted", "Restore the file", {"broken/run.json": b"{"}
    ),
    bad_call(
        "report of a folder that is not a run",
        "report folder",
        "folder is not a run directory",
        "finetale runs",
        {"folder/a.txt": b"a"},
    ),
    Case("long prompt", ("generate", "{shared}/good", WORDS), ("prompt", "64"), ("Shorten", "truncate")),
    bad_call("bad temperature", "generate {shared}/good The --temperature -1", "temperature = '-1'", "settings"),
    bad_call("no temperature", "generate {shared}/good The --temperature hot", "temperature = 'hot'", "settings"),
    bad_call("no samples", "generate {shared}/good The -n 0", "n is 0", "-n 1"),
    bad_call("missing prompts", "generate {shared}/good --prompts-file p.txt", "p.txt can't be read", "UTF-8"),
    bad_call(
        "bad prompt",
        "generate {shared}/good --prompts-file p.jsonl",
        "p.jsonl:2",
        "prompt",
        {"p.jsonl": b'{"prompt": "a"}\n{"text": "b"}\n'},
    ),
    bad_call(
        "compare with a missing model",
        "compare {shared}/good {shared}/none",
        "none … neither an existing folder nor a Hub id",
        "Check the path",
    ),
    bad_call(
        "compare a folder that is not a run",
        "compare folder",
        "folder is not a run directory",
        "finetale runs",
        {"folder/a.txt": b"a"},
    ),
    bad_call(
        "evaluate a missing file",
        "evaluate {shared}/good none.txt",
        "none.txt: there is no such file",
        "Check the path",
    ),
    bad_call("evaluate without a source", "evaluate {shared}/good", "source", "Name a file"),
    bad_call(
        "stride past the block",
        "evaluate {shared}/good text.txt --stride 65",
        "stride 65",
        "stride",
        {"text.txt": LINES},
    ),
    bad_call(
        "plan a wrong path", "plan none.txt --model {shared}/good", "none.txt: there is no such file", "Check the path"
    ),
    bad_call("runs of no folder", "runs none", "none", "folder"),
    # bad usage
    Case(
        "unknown flag",
        ("train", "text.txt", "--learnin-rate", "1"),
        ("--learnin-rate",),
        ("finetale train --help",),
        {"text.txt": LINES},
        code=2,
    ),
    Case("unknown command", ("trane",), ("trane",), ("finetale --help",), code=2),
    Case("missing argument", ("generate",), ("MODEL",), ("finetale generate --help",), code=2),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create model folders, most of them invalid, and a finished run."""
    folder = tmp_path_factory.mktemp("shared")
    good = save_model(folder / "good")
    weights = (good / "model.safetensors").read_bytes()
    (save_model(folder / "pickled") / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=400, **sizes)).save_pretrained(folder / "encoder")
    tokenizer().save_pretrained(folder / "encoder")
    mute = save_model(folder / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (mute / name).unlink()
    save_model(folder / "foreign")
    names = [f"{first}{last}" for first in WORDS.split() for last in WORDS.split()]
    train_tokenizer([" ".join(names)] * 2, 500).save_pretrained(folder / "foreign")
    (save_model(folder / "truncated") / "model.safetensors").write_bytes(weights[:2000])
    for name, value in (("nan", torch.nan), ("huge", 1e30)):
        broken = model()
        with torch.no_grad():
            broken.transformer.h[0].mlp.c_fc.weight[0, 0] = value
            broken.transformer.h[0].ln_1.weight.mul_(1e30 if name == "huge" else 1)
        models.save(broken, tokenizer(), save_model(folder / name))
    write_stories(folder / "stories", 30, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FINETALE_CACHE", str(folder / "cache"))
        assert cli.run(["train", "stories", "--model", "good", "--out", "run", "--quiet", *TINY]) == 0
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty working directory, with the cache beside it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FINETALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_COLOR", "1")
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Return a function that runs a command in this process."""

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = cli.run([str(word) for word in arguments])
        return Result(code, *capsys.readouterr())

    return run


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return every file with its content, and every folder with None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def half_written(folder: Path) -> list[str]:
    """Return the names of partial results: temporary names, and stores without store.json."""
    if not folder.is_dir():
        return []
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    tokens = folder / "tokens"  # contains the stores of a cache, or is the store of a run
    stores = [path for path in tokens.glob("*") if path.is_dir()]
    if any(path.is_file() for path in tokens.glob("*")):
        stores.append(tokens)
    stores = [store for store in stores if not (store / "store.json").is_file()]
    partial = [name for name in names if name.endswith((".tmp", ".old")) or name.startswith("stream-")]
    return partial + [store.name for store in stores]


def check(result: Result, error: tuple[str, ...], hint: tuple[str, ...], code: int = 1) -> None:
    """Check that a command was refused with one error line and one hint line that contain some words."""
    assert result.code == code, result.stderr
    assert len(result.errors) == 1, result.stderr
    assert len(result.hints) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert [words for words in error if words not in result.errors[0]] == [], result.errors[0]
    assert [words for words in hint if words not in result.hints[0]] == [], result.hints[0]


def put_files(folder: Path, case: Case) -> None:
    for name in case.folders:
        (folder / name).mkdir()
    for name, data in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_there_are_enough_cases() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) == 66


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_a_bad_input(case: Case, shared: Path, work: Path, command: Callable[..., Result]) -> None:
    put_files(work, case)
    before = snapshot(work), snapshot(shared)
    result = command(*(word.replace("{shared}", str(shared)) for word in case.arguments))
    assert (snapshot(work), snapshot(shared)) == before
    check(result, case.error, case.hint, case.code)
    assert half_written(work.parent / "cache") == []


@pytest.mark.parametrize("name", ["wrong path", "bad JSON", "unknown flag"])
def test_a_bad_input_in_a_new_process(name: str, shared: Path, work: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    put_files(work, case)
    before = snapshot(work)
    words = (word.replace("{shared}", str(shared)) for word in case.arguments)
    result = finetale(*words, cwd=work, env=environment(work.parent / "home", HF_HUB_OFFLINE="1"))
    assert snapshot(work) == before
    check(result, case.error, case.hint, case.code)


def test_empty_standard_input(shared: Path, work: Path) -> None:
    words = (word.replace("{shared}", str(shared)) for word in ("train", "-", *GOOD))
    result = finetale(*words, cwd=work, env=environment(work.parent / "home", HF_HUB_OFFLINE="1"))
    check(result, ("Standard input holds no text",), ("Send text into it",))
    assert snapshot(work) == {}
    assert not (work.parent / "home" / "finetale" / "stdin").exists()


def test_blank_standard_input(
    shared: Path, work: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b" \n\n")))
    check(command("evaluate", shared / "good", "-"), ("Standard input holds no text",), ("Send text into it",))
    assert snapshot(work) == {}
    assert not (work.parent / "cache").exists()


@pytest.mark.parametrize(
    ("base", "more", "error", "hint", "saved"),
    [
        ("nan", (), ("Step 0: the base model's", "holds numbers that are not finite"), "Download it again", set()),
        ("huge", ("--validation-fraction", "0"), ("Step 1: the", "loss is nan"), "--learning-rate", {"model"}),
    ],
)
def test_a_loss_that_is_not_finite(
    base: str,
    more: tuple[str, ...],
    error: tuple[str, ...],
    hint: str,
    saved: set[str],
    shared: Path,
    work: Path,
    command: Callable[..., Result],
) -> None:
    words = ("train", shared / "stories", "--model", shared / base, "--out", "out", *more, *TINY)
    result = command(*words)
    check(result, error, (hint,))
    manifest = rundir.read_json(work / "out" / "run.json")
    assert manifest["status"] == "failed"
    assert "DivergedError" in manifest["error"]
    assert manifest["steps"] == 0
    written = {path.name for path in (work / "out").iterdir()}
    assert written == {".lock", "run.json", "config.yaml", "data.json", "metrics.jsonl", "tokens"} | saved
    assert "NaN" not in (work / "out" / "metrics.jsonl").read_text()
    assert half_written(work) == []


class FullDisk:
    """A fake os.fsync that raises ENOSPC in call number `last` and all later ones."""

    def __init__(self, last: int | None) -> None:
        self.last = last
        self.count = 0

    def __call__(self, descriptor: int) -> None:
        self.count += 1
        if self.last is not None and self.count >= self.last:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(shared: Path, work: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """At any point, the error names the full disk, no partial file or folder is left, and the run can be resumed."""
    for file in sorted((shared / "stories").iterdir())[:12]:
        shutil.copy(file, work)
    words = ("train", *sorted(path.name for path in work.iterdir()), "--model", shared / "good", *TINY)
    disk = FullDisk(None)
    monkeypatch.setattr(rundir.atomic.os, "fsync", disk)
    assert command(*words, "--out", "whole", "--cache-dir", "cache").code == 0
    weights = (work / "whole" / "model" / "model.safetensors").read_bytes()
    assert disk.count >= 30
    wrong: list[tuple[int, str, Result]] = []
    places = range(1, disk.count + 1, 4)
    for place in places:
        disk.last, disk.count = place, 0
        out, cache = Path(f"out-{place}"), Path(f"cache-{place}")
        result = command(*words, "--out", out, "--cache-dir", cache)
        reported = len(result.errors) == len(result.hints) == 1 and "No space left" in result.errors[0]
        if result.code != 1 or not reported or "Traceback" in result.stderr:
            wrong.append((place, "stop", result))
        if left := half_written(out) + half_written(cache):
            wrong.append((place, f"left {left}", result))
        disk.last = None
        again = ("resume", out) if (out / "run.json").is_file() else (*words, "--out", out, "--cache-dir", cache)
        result = command(*again)
        written = out / "model" / "model.safetensors"
        same = written.is_file() and written.read_bytes() == weights
        if not same or result.code != 0:
            wrong.append((place, f"{again[0]}{'' if same else ', other weights'}", result))
    assert [(place, what, result.code, result.errors) for place, what, result in wrong] == []
    assert len(places) >= 8


@pytest.mark.parametrize(("limit", "file"), [(100_000, "model"), (250_000, "checkpoints")])
def test_a_limit_on_the_size_of_files(
    limit: int, file: str, shared: Path, work: Path, command: Callable[..., Result]
) -> None:
    """safetensors reports system errors, such as an exceeded quota, with its own exceptions."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        result = command("train", shared / "stories", "--model", shared / "good", "--out", "out", *TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check(result, (f"out/{file}", "can't be written", "File too large"), ("finetale resume",))
    assert rundir.read_json(work / "out" / "run.json")["status"] == "failed"
    assert half_written(work / "out") == []


def test_a_run_killed_before_its_first_checkpoint(
    shared: Path, work: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """model/ is written before the first checkpoint. The run must start again from its base, not from model/."""
    killed = rundir.RunDirectory(shutil.copytree(shared / "run", work / "killed"))
    shutil.rmtree(killed.checkpoints)
    for file in (killed.comparison, killed.report):
        file.unlink()
    killed.update_manifest(status="running", finished=None, steps=0, best_step=0)
    weights = (killed.model / "model.safetensors").read_bytes()
    assert weights != (shared / "good" / "model.safetensors").read_bytes()
    monkeypatch.chdir(shared)  # the settings of the run have relative paths
    result = command("resume", killed.root)
    assert result.code == 0, result.stderr
    assert killed.read_manifest().steps == 2
    assert (killed.model / "model.safetensors").read_bytes() == weights


STEPS = 100


def long_run(shared: Path, out: Path) -> tuple[str, ...]:
    """Return the command of a run that is long enough to be interrupted."""
    words = ("train", str(shared / "stories"), "--model", str(shared / "good"), "--out", str(out))
    words += ("--max-steps", str(STEPS), "--epochs", "100", "--eval-every", "50", "--learning-rate", "1e-3")
    return words + QUICK


@pytest.fixture(scope="module")
def uninterrupted(shared: Path) -> Path:
    """Finish the long run without an interruption."""
    out = shared / "uninterrupted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETALE_CACHE", str(shared / "cache"))
        assert cli.run([*long_run(shared, out), "--quiet"]) == 0
    return out


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])  # Ctrl-C and a closed terminal
def test_an_interrupted_run_resumes_to_the_same_weights(
    shared: Path, uninterrupted: Path, work: Path, command: Callable[..., Result], name: str
) -> None:
    env = environment(work.parent / "home", HF_HUB_OFFLINE="1")
    stopped = start(*long_run(shared, Path("stopped")), cwd=work, env=env)
    metrics = work / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and '"train", "step": 7' in metrics.read_text()):
        assert stopped.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stopped.send_signal(getattr(signal, name))
    result = finish(stopped)
    assert result.code == 75, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.errors) == len(result.hints) == 1
    assert name in result.errors[0]
    assert f"of {STEPS} steps are done and saved" in result.errors[0]
    assert "finetale resume stopped" in result.hints[0]
    manifest = rundir.read_json(work / "stopped" / "run.json")
    assert manifest["status"] == "interrupted"
    assert 7 <= manifest["steps"] < STEPS
    assert not (work / "stopped" / "comparison.json").exists()
    assert half_written(work / "stopped") == []

    resumed = command("resume", "stopped")
    assert resumed.code == 0, resumed.stderr
    ends = [rundir.read_json(run / "run.json") for run in (uninterrupted, work / "stopped")]
    assert [end["status"] for end in ends] == ["finished", "finished"]
    assert ends[0]["steps"] == ends[1]["steps"] == STEPS
    assert ends[0]["best_step"] == ends[1]["best_step"] > 0
    models_written = [(run / "model" / "model.safetensors").read_bytes() for run in (uninterrupted, work / "stopped")]
    assert models_written[0] == models_written[1]
    assert models_written[0] != (shared / "good" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "words", [("check", "../text.txt"), ("train", "text.txt"), ("generate", "run", "Once"), ("--help",)]
)
def test_a_current_folder_that_was_deleted(work: Path, words: tuple[str, ...]) -> None:
    gone = work / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", gone, sys.executable, "-m", "finetale", *words], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "error: The current folder was deleted.",
        "hint: Change to a folder that exists, such as `cd ~`.",
    ]
