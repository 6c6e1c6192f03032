"""Test `finetale push`: the real client uploads runs and folders to a local hub that refuses, breaks off and counts."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

import hub
from commands import Result, Worker, environment, finetale
from finetale.errors import HubError
from finetale.models import uploading
from hub import Fault, Hub, refused
from tiny import MODEL_FILES, save_model, write_stories

TINY = (
    *("--max-steps", "2", "--batch-size", "2", "--max-new-tokens", "4", "--num-samples", "1", "--num-prompts", "1"),
    *("--no-tensorboard", "--quiet"),
)
OF_ADAPTER = {f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")}


@dataclass
class Place:
    """A hub, and a folder with stories/, the run lora/ and the model folder base/, whose user has a token."""

    hub: Hub
    work: Path
    home: Path
    worker: Worker
    pushed: int = 0

    @property
    def token_file(self) -> Path:
        return self.home / "huggingface" / "token"

    def log_in(self, token: str) -> None:
        self.token_file.parent.mkdir(parents=True, exist_ok=True)
        self.token_file.write_text(token)

    def new_name(self) -> str:
        self.pushed += 1
        return f"author/tale-{self.pushed}"

    def run(self, *words: str | Path, fault: Fault | None = None) -> Result:
        """Run a command while a fault lasts; check that it never prints the token."""
        self.hub.requests.clear()
        self.hub.received = 0
        self.hub.faults[:] = [fault] if fault else []
        try:
            result = self.worker.run(*words)
        finally:
            self.hub.faults.clear()
        for token in hub.USERS:
            assert token not in result.stdout + result.stderr
        return result

    def files(self, repo: str) -> set[str]:
        """Return the files of a repository."""
        folder = self.hub.root / "models" / repo
        return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}

    def sent(self) -> list[str]:
        """Return the large files whose upload began in the last command, once for each try."""
        return [line for line in self.hub.requests if line.startswith("PUT lfs/")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("push")
    work = base / "work"
    write_stories(work / "stories", 30, 60)
    save_model(work / "base")
    with (
        hub.running(base / "hub") as server,
        Worker(work, environment(base / "home", HF_ENDPOINT=server.url), impatient=True) as worker,
    ):
        here = Place(server, work, base / "home", worker)
        here.log_in(hub.TOKEN)
        result = here.run("train", "stories", "--model", "base", "--method", "lora", "--out", "lora", *TINY)
        assert result.code == 0, result.stderr
        yield here


def change(file: Path, **values: object) -> None:
    """Change values of a JSON file; names with dots are nested."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for name, value in values.items():
        *path, last = name.split("__")
        inner = content
        for key in path:
            inner = inner[key]
        inner[last] = value
    file.write_text(json.dumps(content), encoding="utf-8")


def test_a_run_is_pushed_and_used_by_the_plain_client(place: Place) -> None:
    result = place.run("push", "lora", "author/tale")
    assert result.code == 0, result.stderr
    assert result.stdout == f"{place.hub.url}/author/tale\n"
    assert "for author/tale (private)" in result.stderr
    own = {*MODEL_FILES, "report.html"}
    assert place.files("author/tale") >= own | OF_ADAPTER
    assert {name for name in place.files("author/tale") if "/" not in name} == own
    assert place.hub.private["author/tale"] is True
    assert len([line for line in place.hub.requests if "/commit/" in line]) == 1
    pushed = place.hub.root / "models" / "author" / "tale"
    for name in own - {"report.html"}:
        assert (pushed / name).read_bytes() == (place.work / "lora" / "model" / name).read_bytes()
    # No file of the run holds the token.
    files = [file for file in (place.work / "lora").rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [file for file in files if hub.TOKEN.encode() in file.read_bytes()]

    code = (
        "import sys, torch, transformers\n"
        "name, folder = sys.argv[1:]\n"
        "model, local = (transformers.AutoModelForCausalLM.from_pretrained(path) for path in (name, folder))\n"
        "ids = transformers.AutoTokenizer.from_pretrained(name)('The lamp', return_tensors='pt').input_ids\n"
        "assert torch.equal(model(ids).logits, local(ids).logits)\n"
    )
    env = environment(place.home / "plain", HF_ENDPOINT=place.hub.url)
    words = [sys.executable, "-c", code, "author/tale", str(place.work / "lora" / "model")]
    with_token = subprocess.run(words, env=env | {"HF_TOKEN": hub.TOKEN}, capture_output=True, text=True, check=False)
    assert with_token.returncode == 0, with_token.stderr

    result = place.run("train", "stories", "--model", "author/tale", "--out", "further", *TINY)
    assert result.code == 0, result.stderr
    base = json.loads((place.work / "further" / "run.json").read_text())["base"]
    assert (base["name"], base["kind"]) == ("author/tale", "hub")
    assert base["revision"] == place.hub.commits["author/tale"] != hub.COMMIT
    assert "license" not in base
    card = ModelCard.load(place.work / "further" / "model" / "README.md").data.to_dict()
    assert (card["base_model"], card["base_model_relation"]) == ("author/tale", "finetune")
    assert "license" not in card

    place.token_file.unlink()
    try:
        error, _ = refused(place.run("generate", "author/tale", "The lamp", "--revision", "main"))
    finally:
        place.log_in(hub.TOKEN)
    assert "There is no model 'author/tale'" in error, "a private model is hidden from others"


def test_the_licence_of_the_base_reaches_the_card(place: Place) -> None:
    """It is in the card of a folder, and in what the Hub says of a repository; the card of a run states it again."""
    licensed = save_model(place.work / "licensed")
    (licensed / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    repo = place.new_name()
    assert place.run("push", licensed, repo, "--quiet").code == 0
    for base, run in ((repo, "from-hub"), ("from-hub", "from-run")):
        result = place.run("train", "stories", "--model", base, "--out", run, *TINY)
        assert result.code == 0, result.stderr
        assert json.loads((place.work / run / "run.json").read_text())["base"]["license"] == "apache-2.0"
        assert ModelCard.load(place.work / run / "model" / "README.md").data.license == "apache-2.0"
    assert not [line for line in place.hub.requests if "README.md" in line]


def test_an_adapter_alone_gets_a_card(place: Place) -> None:
    repo = place.new_name()
    result = place.run("push", place.work / "lora" / "adapter", repo)
    assert result.code == 0, result.stderr
    assert place.files(repo) >= {name.removeprefix("adapter/") for name in OF_ADAPTER} | {"README.md"}
    card = ModelCard.load(place.hub.root / "models" / repo / "README.md").data.to_dict()
    assert (card["library_name"], card["pipeline_tag"]) == ("peft", "text-generation")
    assert "model-index" in card


def test_pushing_again_sends_nothing_twice(place: Place) -> None:
    repo = place.new_name()
    assert place.run("push", "base", repo).code == 0
    first = place.hub.commits[repo]
    result = place.run("push", "base", repo)
    assert result.code == 0, result.stderr
    assert place.sent() == []
    assert place.hub.commits[repo] == first, "nothing changed, so there is no new commit"


def test_an_interrupted_push_resumes(place: Place) -> None:
    """Cut the smaller of two large files until the client gives up; the second push sends that one only."""
    repo = place.new_name()
    folder = place.work / "shards"
    save_model(folder, seed=5)
    large = folder / "model.safetensors"
    save_file({"extra": torch.rand(400_000)}, folder / "extra.safetensors")
    large_oid = hub.sha256(large.read_bytes())
    error, hint = refused(place.run("push", folder, repo, "--quiet", fault=Fault(f"PUT lfs/{large_oid}", cut=1000)))
    assert "The connection to the hub" in error
    assert "broke" in error
    assert "not sent again" in hint
    assert place.files(repo) == set(), "a commit is whole or not there"
    assert len(place.sent()) > 2, "the client tries again"

    result = place.run("push", folder, repo)
    assert result.code == 0, result.stderr
    assert place.sent() == [f"PUT lfs/{large_oid}"]
    assert place.hub.received == large.stat().st_size
    assert place.files(repo) >= {"extra.safetensors", "model.safetensors", "config.json"}


def test_a_transfer_that_breaks_once_is_repeated_by_the_client(place: Place) -> None:
    repo = place.new_name()
    folder = place.work / "other"
    save_model(folder, seed=7)
    result = place.run("push", folder, repo, fault=Fault("PUT lfs/", cut=10, times=1))
    assert result.code == 0, result.stderr
    assert len(place.sent()) == 2


def test_dry_run_shows_files_and_uses_no_network(place: Place) -> None:
    result = place.run("push", "lora", "author/dry", "--dry-run", "--public")
    assert result.code == 0, result.stderr
    assert place.hub.requests == []
    lines = result.stdout.splitlines()
    assert lines[0].endswith("for author/dry (public: everyone may read it)")
    shown = json.loads(place.run("push", "lora", "author/dry", "--dry-run", "--json").stdout)
    assert shown["commit"] is None
    sizes = {each["path"]: each["bytes"] for each in shown["files"]}
    assert sizes["model.safetensors"] == (place.work / "lora" / "model" / "model.safetensors").stat().st_size
    assert set(sizes) >= {*MODEL_FILES, "report.html"} | OF_ADAPTER
    assert "manifest.json" not in sizes
    assert {line.split()[-1] for line in lines if line.startswith("  ")} == set(sizes) - {"report.html"}
    without = json.loads(place.run("push", "lora", "author/dry", "--dry-run", "--json", "--no-report").stdout)
    assert {each["path"] for each in without["files"]} == set(sizes) - {"report.html"}
    public = json.loads(place.run("push", "lora", "author/dry", "--dry-run", "--json", "--public").stdout)
    assert {each["path"] for each in public["files"]} == set(sizes) - {"report.html"}
    asked = json.loads(place.run("push", "lora", "author/dry", "--dry-run", "--json", "--public", "--report").stdout)
    assert {each["path"] for each in asked["files"]} == set(sizes)


def test_only_the_files_of_a_model_are_pushed(place: Place) -> None:
    folder = place.work / "mixed"
    save_model(folder, seed=8)
    for name in (".env", "diary.txt", "training_args.bin", "modeling_x.py", "LICENSE"):
        (folder / name).write_text("secret")
    (folder / "checkpoint").mkdir()
    repo = place.new_name()
    result = place.run("push", folder, repo)
    assert result.code == 0, result.stderr
    assert place.files(repo) == (set(MODEL_FILES) - {"README.md"}) | {"LICENSE"}
    assert "left out: .env, checkpoint, diary.txt, modeling_x.py, training_args.bin" in result.stderr


FINDINGS: dict[str, tuple[str, dict[str, object], str]] = {
    "personal data": (
        "data.json",
        {"text__personal_data": {"documents": 2, "counts": {"email": 3}, "examples": []}},
        "Personal data in 2 documents: 3 e-mail addresses",
    ),
    "memorised": (
        "comparison.json",
        {
            "memorisation": {
                "has_base": True,
                "training": {"tokens": 90, "memorised_tokens": 9, "passages": 1, "with_personal_data": 1},
            }
        },
        "it writes 1 passage of the training text word for word, 1 of them with personal data",
    ),
    "copied": (
        "comparison.json",
        {"after__sample_metrics__longest_match": {"words": 12, "text": "…"}},
        "its samples repeat 12 words of the training text in a row",
    ),
}


@pytest.mark.parametrize("kind", list(FINDINGS))
def test_what_may_reveal_the_text_is_refused(place: Place, kind: str) -> None:
    file, values, says = FINDINGS[kind]
    run = place.work / f"found-{file}"
    shutil.copytree(place.work / "lora", run, dirs_exist_ok=True)
    change(run / "comparison.json", memorisation=None, after__sample_metrics__longest_match=None)
    change(run / file, **values)
    for source in (run, run / "model"):
        error, hint = refused(place.run("push", source, "author/found"))
        assert says in error
        assert "--anyway" in hint
        assert place.hub.requests == []
    shown = place.run("push", run, "author/found", "--dry-run")
    assert shown.code == 1
    assert f"Found: {says}." in shown.stdout
    result = place.run("push", run, place.new_name(), "--anyway")
    assert result.code == 0, result.stderr


def test_masked_personal_data_is_no_reason_to_refuse(place: Place) -> None:
    run = place.work / "masked"
    shutil.copytree(place.work / "lora", run)
    change(
        run / "data.json",
        text__personal_data={"documents": 1, "counts": {"email": 1}, "examples": []},
        text__cleaning={"masked_personal_data": 1},
    )
    change(run / "comparison.json", memorisation=None)
    result = place.run("push", run, "author/masked", "--dry-run")
    assert result.code == 0, result.stderr
    assert "Memorised passages were not looked for." in result.stdout


def test_an_unfinished_run(place: Place) -> None:
    run = place.work / "unfinished"
    shutil.copytree(place.work / "lora", run)
    change(run / "run.json", status="interrupted")
    (run / "model" / "README.md").unlink()
    (run / "model" / "manifest.json").unlink()
    repo = place.new_name()
    result = place.run("push", run, repo)
    assert result.code == 0, result.stderr
    assert "is not finished" in result.stderr
    assert (place.hub.root / "models" / repo / "README.md").read_text().startswith("---\n"), "a card is made"
    shutil.rmtree(run / "model")
    error, hint = refused(place.run("push", run, repo))
    assert "has no model" in error
    assert "finetale merge" in hint
    shutil.rmtree(run / "adapter")
    error, hint = refused(place.run("push", run, repo))
    assert "has no model yet" in error
    assert "finetale resume" in hint
    assert place.hub.requests == []


@pytest.mark.parametrize("part", ["model", "adapter"])
def test_a_corrupted_file_is_not_pushed(place: Place, part: str) -> None:
    run = place.work / f"corrupted-{part}"
    shutil.copytree(place.work / "lora", run)
    weights = next((run / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    error, _ = refused(place.run("push", run, "author/corrupted"))
    assert f"{part} is corrupted ({weights.name}" in error
    assert place.hub.requests == []


@pytest.mark.parametrize(
    ("source", "repo", "says"),
    [
        ("nowhere", "author/x", "nowhere is neither a run nor a model folder"),
        ("stories", "author/x", "stories"),
        ("base", "a/b/c", "'a/b/c' can't be the name of a repository"),
        ("base", "author/-x", "can't be the name"),
        ("base", "au thor/x", "can't be the name"),
    ],
)
def test_bad_arguments(place: Place, source: str, repo: str, says: str) -> None:
    error, _ = refused(place.run("push", source, repo))
    assert says in error
    assert place.hub.requests == []


FAULTS: list[tuple[str, Fault, str, str]] = [
    ("token", Fault("whoami", 401), "does not know the token", "hf auth login"),
    ("namespace", Fault("repos/create", 404), "does not have author", "spelling"),
    ("no rights", Fault("repos/create", 403), "may not write to author/", "write access"),
    ("conflict", Fault("/commit/", 409), "Someone else is changing author/", "Push again"),
    ("moved", Fault("/commit/", 412), "Someone else is changing author/", "Push again"),
    ("storage", Fault("/commit/", 402), "wants payment", "storage"),
    ("too large", Fault("PUT lfs/", 413), "too large", "--to safetensors"),
    ("rate", Fault("whoami", 429, {"Retry-After": "77"}), "fewer requests", "Wait 77 seconds"),
    ("rate at LFS", Fault("objects/batch", 429), "fewer requests", "some minutes"),
    ("500", Fault("preupload", 500), "answered 500", "fault is on its side"),
    ("503", Fault("/commit/", 503), "answered 503", "fault is on its side"),
    ("503 early", Fault("whoami", 503), "answered 503", "fault is on its side"),
    ("read-only mirror", Fault("whoami", 404), "takes no uploads", "HF_ENDPOINT"),
    ("odd", Fault("PUT lfs/", 400), "answered 400", "Check"),
    ("lost answer", Fault("/commit/", cut=0), "broke during the upload", "Push again"),
    ("web page", Fault("whoami", body=b"<html>"), "did not accept", "HF_ENDPOINT"),
    ("no user", Fault("whoami", body=b"[]"), "does not know the user", "HF_ENDPOINT"),
    ("no commit", Fault("/commit/", body=b"{}"), "did not accept", "Push again"),
]


@pytest.mark.parametrize(("fault", "says", "hint"), [each[1:] for each in FAULTS], ids=[each[0] for each in FAULTS])
def test_faults_of_the_hub(place: Place, fault: Fault, says: str, hint: str) -> None:
    repo = place.new_name()
    folder = place.work / "faulty"
    shutil.rmtree(folder, ignore_errors=True)
    save_model(folder, seed=1000 + place.pushed)
    before = sorted(folder.iterdir())
    got, advice = refused(place.run("push", folder, repo, "--quiet", fault=fault))
    assert says in got
    assert hint in advice
    assert "127.0.0.1" in got or "author/" in got
    assert sorted(folder.iterdir()) == before
    if "/commit/" not in fault.to or fault.status:  # else the commit was done, and only its answer was lost
        assert place.files(repo) == set()
    result = place.run("push", folder, repo, "--quiet")
    assert result.code == 0, result.stderr
    assert place.files(repo) == {file.name for file in before}


def test_tokens(place: Place) -> None:
    try:
        place.token_file.unlink()
        error, hint = refused(place.run("push", "base", "author/x", "--quiet"))
        assert "There is no token" in error
        assert "HF_TOKEN" in hint
        assert place.hub.requests == []
        place.log_in("hf_" + "x" * 30)
        error, _ = refused(place.run("push", "base", "author/x", "--quiet"))
        assert "does not know the token" in error
        place.log_in(hub.READ_TOKEN)
        error, hint = refused(place.run("push", "base", "author/x", "--quiet"))
        assert "may only read" in error
        assert "write access" in hint
    finally:
        place.log_in(hub.TOKEN)
    error, _ = refused(place.run("push", "base", "stranger/x", "--quiet"))
    assert "may not write to stranger/x" in error


def test_public_and_private(place: Place) -> None:
    repo = place.new_name()
    result = place.run("push", "base", repo, "--public", "--json")
    shown = json.loads(result.stdout)
    assert (shown["public"], shown["commit"]) == (True, place.hub.commits[repo])
    assert place.hub.private[repo] is False
    error, hint = refused(place.run("push", "base", repo, "--quiet"))
    assert "exists and is public" in error
    assert "--public" in hint
    private = place.new_name()
    assert place.run("push", "base", private.removeprefix("author/")).code == 0, "the owner of the token is the default"
    assert place.hub.private[private] is True
    result = place.run("push", "base", private, "--public")
    assert result.code == 0
    assert "stays private" in result.stderr
    assert place.hub.private[private] is True


def test_without_a_network(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence comes within seconds: refused connections, an unknown name, a hub that does not answer, offline."""
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))  # bound but not listening
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(uploading, "_FIRST_TIMEOUTS", (5.0, 0.5, 0.5, 0.5))
        monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
        for endpoint, says in (
            (f"http://127.0.0.1:{closed.getsockname()[1]}", "can't be reached"),
            (f"http://127.0.0.1:{silent.getsockname()[1]}", "broke"),
            ("http://hub.invalid", "The hub at http://hub.invalid can't be reached"),
            ("hub.invalid", "The hub at hub.invalid can't be reached"),
        ):
            start = time.monotonic()
            monkeypatch.setattr(constants, "ENDPOINT", endpoint)
            with pytest.raises(HubError, match=says) as raised:
                uploading.upload("author/x", {"a": b""}, public=False, what="m")
            assert time.monotonic() - start < 10
            assert raised.value.hint
            assert constants.HF_HUB_DISABLE_XET is False
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="Offline mode is on"):
            uploading.upload("author/x", {"a": b""}, public=False, what="m")
        refusing = f"http://user:hidden@127.0.0.1:{closed.getsockname()[1]}"
        env = environment(place.home, HF_TOKEN=hub.TOKEN, HF_ENDPOINT=refusing)
        result = finetale("push", "base", "author/x", "--quiet", cwd=place.work, env=env)
        error, _ = refused(result)
        assert "The hub at http://127.0.0.1:" in error
        assert "hidden" not in result.stderr
        assert hub.TOKEN not in result.stderr


def test_files_of_an_earlier_push_are_removed_and_no_others(place: Place) -> None:
    repo, folder = place.new_name(), place.work / "shrinking"
    save_model(folder, seed=9)
    for name in ("vocab.txt", "LICENSE", "chat_template.jinja"):
        (folder / name).write_text(f"the first {name}\n", encoding="utf-8")
    result = place.run("push", folder, repo)
    assert result.code == 0, result.stderr
    assert "Removed" not in result.stderr
    # Someone adds a file on the hub, and changes one that was pushed.
    theirs = place.hub.root / "models" / repo
    (theirs / "poem.txt").write_text("mine\n", encoding="utf-8")
    (theirs / "LICENSE").write_text("changed\n", encoding="utf-8")
    place.hub.titles[repo]["LICENSE"] = "Update LICENSE"
    for name in ("vocab.txt", "LICENSE", "chat_template.jinja"):
        (folder / name).unlink()
    before = place.files(repo)
    result = place.run("push", folder, repo, "--json")
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["removed"] == ["chat_template.jinja", "vocab.txt"]
    assert place.files(repo) == before - {"chat_template.jinja", "vocab.txt"} >= {"poem.txt", "LICENSE", "config.json"}
    assert len([line for line in place.hub.requests if "/commit/" in line]) == 1


def test_a_push_from_python(place: Place) -> None:
    code = (
        "import sys, finetale as ft\n"
        "done = ft.push('lora', sys.argv[1], quiet=True)\n"
        "print(done.url, done.public, len(done.files))\n"
    )
    repo = place.new_name()
    env = environment(place.home, HF_ENDPOINT=place.hub.url, HF_TOKEN=hub.TOKEN)
    words = [sys.executable, "-c", code, repo]
    done = subprocess.run(words, env=env, cwd=place.work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    url, public, count = done.stdout.split()
    assert (url, public) == (f"{place.hub.url}/{repo}", "False")
    assert int(count) == len(place.files(repo))
