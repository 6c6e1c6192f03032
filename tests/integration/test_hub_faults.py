"""Test each fault of a hub during a download: what the user reads, what is on disk. The guide has the same table."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub
from commands import Worker, environment
from hub import Fault, Hub, refused
from tiny import save_model

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "share.md"
INFO = "GET api/models/owner/tale"
CONFIG = f"GET owner/tale/resolve/{hub.COMMIT}/config.json"
WEIGHTS = f"GET owner/tale/resolve/{hub.COMMIT}/model.safetensors"
NOTHING, OTHERS, ALL = "nothing", "the other files", "all files"

FAULTS: list[tuple[str, Fault, str, str]] = [
    ("no access (401)", Fault(WEIGHTS, 401), "The hub refuses access to owner/tale (401).", OTHERS),
    ("no access (403)", Fault(INFO, 403), "The hub refuses access to owner/tale (403).", NOTHING),
    (
        "a file is missing (404)",
        Fault(WEIGHTS, 404),
        "The hub lists a file of owner/tale that it does not have (404).",
        OTHERS,
    ),
    ("no ranges (416)", Fault(WEIGHTS, 416), "The hub does not continue the download of owner/tale (416).", OTHERS),
    (
        "too many requests (429)",
        Fault(INFO, 429, {"Retry-After": "77"}),
        "The hub wants fewer requests (429, for owner/tale). Wait 77 seconds",
        NOTHING,
    ),
    (
        "too many requests for a file (429)",
        Fault(WEIGHTS, 429),
        "The hub wants fewer requests (429, for owner/tale). Wait some minutes",
        OTHERS,
    ),
    ("a fault of the hub (500)", Fault(WEIGHTS, 500), "The hub has a fault (500, for owner/tale).", OTHERS),
    ("maintenance (503)", Fault(INFO, 503), "The hub has a fault (503, for owner/tale).", NOTHING),
    ("the connection breaks", Fault(WEIGHTS, cut=5000), "The download of owner/tale broke off", OTHERS),
    ("a file is longer than sent", Fault(WEIGHTS, size=10**6), "The download of owner/tale broke off", OTHERS),
    (
        "a file is shorter than listed",
        Fault(WEIGHTS, body=b"x" * 3000),
        "The hub sent a file of owner/tale with another size than it says.",
        OTHERS,
    ),
    (
        "weights with another SHA-256",
        Fault(WEIGHTS, body=b"changed below"),
        "model.safetensors differs from its SHA-256 on the hub",
        ALL,
    ),
    (
        "a page in place of the answer",
        Fault(INFO, body=b"<html>"),
        "The answer for owner/tale is not that of a hub",
        NOTHING,
    ),
    (
        "other JSON in place of the answer",
        Fault(INFO, body=b"[]"),
        "The answer for owner/tale is not that of a hub",
        NOTHING,
    ),
    ("a slow answer", Fault(WEIGHTS, delay=1.0, times=1), "", ALL),
    ("a connection that breaks once", Fault(WEIGHTS, cut=5000, times=1), "", ALL),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Worker, Path]]:
    base = tmp_path_factory.mktemp("faults")
    weights = bytearray((save_model(base / "hub" / "models" / "owner" / "tale") / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    next(fault for name, fault, *_ in FAULTS if "SHA-256" in name).body = bytes(weights)
    home = base / "home"
    with (
        hub.running(base / "hub") as server,
        Worker(base, environment(home, HF_ENDPOINT=server.url), impatient=True) as worker,
    ):
        yield server, worker, home


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[each[0] for each in FAULTS])
def test_faults_of_downloads(served: tuple[Hub, Worker, Path], number: int) -> None:
    server, worker, home = served
    _, fault, says, left = FAULTS[number]
    cache = home / "huggingface"
    shutil.rmtree(cache, ignore_errors=True)
    words = ("generate", "owner/tale", "The lamp", "--max-new-tokens", "2", "--quiet")
    server.faults[:] = [fault]
    result = worker.run(*words)
    server.faults.clear()
    if says:
        error, hint = refused(result)
        assert says in f"{error} {hint}".replace(" hint: ", " ")
    else:
        assert result.code == 0, result.stderr
    files = {file.name for file in cache.rglob("snapshots/*/*")}
    expected = {NOTHING: set(), OTHERS: {"config.json", "tokenizer.json"}, ALL: {"config.json", "model.safetensors"}}
    assert files >= expected[left]
    assert ("model.safetensors" in files) == (left == ALL)
    assert left != NOTHING or not files

    if "SHA-256" in says:
        assert worker.run(*words).code == 1, "it is noticed in the cache too"
        (path,) = re.findall(r"Delete (\S+) and run again", result.stderr)
        Path(path).unlink()
    again = worker.run(*words)
    assert again.code == 0, again.stderr


def test_the_guide_has_the_table() -> None:
    rows = [
        f"| {name} | {'it works' if not says else says.replace('owner/tale', 'NAME')} | {left} |"
        for name, _, says, left in FAULTS
    ]
    guide = GUIDE.read_text(encoding="utf-8")
    table = guide.split("## Faults of downloads\n")[1].split("\n## ")[0]
    assert [line for line in table.splitlines() if line.startswith("| ") and "what is on disk" not in line] == rows
