"""Test the service with adapters: by name, on one copy of the base's weights, reloaded without losing a request."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from children import call
from finetale import cli, models
from finetale.config import SamplingSettings
from finetale.generate import Generator
from finetale.models import LoadedModel
from finetale.notify import Notify
from finetale.server import model_spec, service
from finetale.server.access import Limits
from finetale.server.adapter_spec import AdapterSpec
from finetale.server.app import Service
from finetale.server.model_spec import ModelSpec
from scene import make_run, train_with, write_adapter
from serving import Serving
from tiny import llama_model, save_model, tokenizer

TRAIN = train_with(method="lora", lora_rank=2, learning_rate="1e-2", audit_tokens=0, num_answers=0)
NAMES = ("base", "letters", "tales")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base/, run/ (a run that trained an adapter of it), tales/ (a DoRA adapter) and full/ (a run)."""
    folder = make_run(tmp_path_factory.mktemp("adapters"), *TRAIN)
    code, output = call(folder, *train_with(audit_tokens=0, num_answers=0, max_steps=1), "--out", "full")
    assert code == 0, output
    write_adapter(folder / "tales", folder / "base", 1, method="dora")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the place, as the current folder."""
    for name in ("base", "run", "tales", "full"):
        shutil.copytree(place / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORDS = ("base", "--adapter", "letters=run", "--adapter", "tales=tales")


@contextmanager
def client_of(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, model: str, prompt: str = "The lamp", tokens: int = 20) -> tuple[str, list[float]]:
    """Return the most likely text of a model, and the log-probabilities of its tokens."""
    made = client.completions.create(model=model, prompt=prompt, max_tokens=tokens, temperature=0, logprobs=0)
    choice = made.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    return choice.text, choice.logprobs.token_logprobs


def get(serving: Serving, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{serving.port}{path}", timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def expected(place: Path, prompts: list[str], tokens: int) -> dict[tuple[str, str], str]:
    """Return the most likely texts of the base and of the merged models."""
    settings = SamplingSettings.resolve({"temperature": 0, "max_new_tokens": tokens, "top_p": 1.0})
    found = {}
    for name, path in zip(NAMES, ("base", "run", "tales"), strict=True):
        loaded = models.load(str(place / path))
        for prompt in prompts:
            sample = Generator(loaded.model, loaded.tokenizer).generate([prompt], settings)[0][0]
            found[name, prompt] = sample.text
    return found


def test_each_name_gives_the_text_of_its_merged_model_alone_and_with_others(place: Path) -> None:
    prompts = ["The lamp", "She counted the eggs", "A heron waited in the shallows, grey and"]
    texts = expected(place, prompts, 20)
    assert all(len({texts[name, prompt] for name in NAMES}) == 3 for prompt in prompts)
    with Serving(place, *WORDS, "--engine", "torch", "--slots", "9") as serving, client_of(serving) as client:
        assert [model.id for model in client.models.list()] == list(NAMES)
        alone = {key: ask(client, *key) for key in texts}
        assert {key: text for key, (text, _) in alone.items()} == texts
        with ThreadPoolExecutor(9) as pool:
            for _ in range(3):
                together = dict(zip(texts, pool.map(lambda key: ask(client, *key), texts), strict=True))
                for key, (text, logprobs) in together.items():
                    assert text == texts[key]
                    assert logprobs == pytest.approx(alone[key][1], abs=1e-4)
        for name in NAMES:  # structured output shares its compiled forms with the base
            asked = {
                "model": name,
                "prompt": "The lamp",
                "max_tokens": 20,
                "extra_body": {"guided_regex": "(yes|no){2}"},
            }
            text = client.completions.create(**asked).choices[0].text  # type: ignore[call-overload]
            assert re.fullmatch("(yes|no){2}", text)
        metrics = get(serving, "/metrics")
        for name in NAMES:
            written = re.search(rf'finetale_completion_tokens_total{{model="{name}"}} (\S+)', metrics)
            assert written is not None
            assert float(written[1]) >= 12
            assert f'finetale_queue_length{{model="{name}"}} 0.0' in metrics
        memory = dict(re.findall(r'finetale_kv_cache_bytes\{model="(\w+)"\} (\S+)', metrics))
        assert float(memory["base"]) > 0
        assert memory["letters"] == memory["tales"] == "0.0", "the memory is counted once"
        assert all(f'data-model="{name}"' in get(serving, "/") for name in NAMES)
        code, log = serving.end()
        assert code == 0
    assert "one copy of the weights of base in memory serves it and its adapters (letters, tales)" in log


def test_several_adapters_share_the_slots_and_the_weights_of_the_base(here: Path) -> None:
    base = ModelSpec("base", opened("base"), "torch", adapters={"letters": "run", "tales": "tales"})
    found: dict[str, Any] = {}
    for spec in (base, AdapterSpec("letters", "run", base), AdapterSpec("tales", "tales", base)):
        found[spec.name] = spec.open(lambda event: None, found)
    assert len({id(served.worker) for served in found.values()}) == 1
    assert len({id(served.host) for served in found.values()}) == 1
    owned = {tensor.data_ptr() for tensor in found["base"].host.parameters()}
    for name in ("letters", "tales"):
        tensors = [each.down for each in found[name].adapter.updates.values()]
        assert not owned & {tensor.data_ptr() for tensor in tensors}
        assert found[name].adapter.num_bytes < 60_000
    found["base"].close(10)


def opened(name: str) -> Any:
    def load(notify: Notify) -> LoadedModel:
        return models.open_model(name, notify)

    return load


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_an_adapter_that_was_trained_again_replaces_the_old_one(here: Path) -> None:
    with Serving(here, *WORDS, "--engine", "torch") as serving, client_of(serving) as client:
        before = {name: ask(client, name)[0] for name in NAMES}
        running = client.completions.create(
            model="tales", prompt="The lamp", max_tokens=40, temperature=0, n=4, stream=True
        )
        first = next(iter(running)).choices[0]
        stop, seen = threading.Event(), set()

        def ask_on(name: str) -> None:
            while not stop.is_set():
                seen.add((name, ask(client, name)[0]))

        askers = [threading.Thread(target=ask_on, args=(name,)) for name in NAMES]
        for asker in askers:
            asker.start()
        write_adapter(here / "tales", here / "base", 6)
        (new,) = (expected(here, ["The lamp"], 20)["tales", "The lamp"],)
        assert new != before["tales"]
        reload(serving, "tales (torch, adapter) has been reloaded")
        deadline = time.monotonic() + 60
        while ask(client, "tales")[0] != new:
            assert time.monotonic() < deadline
        stop.set()
        for asker in askers:
            asker.join(30)
        assert seen <= {*before.items(), ("tales", new)}, "each request has the old or the new adapter"
        parts: dict[int, str] = {first.index: first.text}
        for piece in running:
            choice = piece.choices[0]
            parts[choice.index] = parts.get(choice.index, "") + choice.text
        assert len(set(parts.values())) == 1
        assert parts[0].startswith(before["tales"]), "a running request keeps the adapter that it began with"

        weights = here / "tales" / "adapter_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        reload(serving, "tales could not be reloaded and stays as it was: ")
        assert ask(client, "tales")[0] == new
        weights.write_bytes(whole)
        reload(serving, "tales has not changed")
        save_model(here / "base", seed=8)
        reload(serving, "letters could not be reloaded and stays as it was: The adapter letters was trained on ")
        assert ask(client, "base")[0] not in before.values()
        assert ask(client, "letters")[0] == before["letters"], "it stays on the weights of its own base"
        assert ask(client, "tales")[0] == new
        write_adapter(here / "tales", here / "base", 6)
        reload(serving, "tales (torch, adapter) has been reloaded", times=2)
        assert ask(client, "tales")[0] == expected(here, ["The lamp"], 20)["tales", "The lamp"]
        code, log = serving.end()
        assert code == 0
        assert "Traceback" not in log


def reload(serving: Serving, message: str, times: int = 1) -> None:
    """Send SIGHUP, and wait until the log has a message."""
    assert serving.log().count(message) == times - 1
    serving.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 60
    while serving.log().count(message) < times:
        assert time.monotonic() < deadline, serving.log()
        time.sleep(0.02)


def test_the_old_base_is_freed_when_no_adapter_needs_it(here: Path) -> None:
    base = ModelSpec("base", opened("base"), "torch", adapters={"tales": "tales"})
    specs = [base, AdapterSpec("tales", "tales", base)]
    serving = Service(Limits())
    for spec in specs:
        made = spec.open(lambda event: None, serving.models)
        assert made is not None
        serving.add(made)
    old: Any = serving.models["base"]
    save_model(here / "base", seed=8)
    service.reload(serving, specs)
    assert serving.models["base"] is not old
    assert serving.models["tales"].backend is old.backend
    assert old.worker.works
    time.sleep(0.2)
    assert old.worker._thread.is_alive(), "the adapter runs on it"
    write_adapter(here / "tales", here / "base", 6)
    service.reload(serving, specs)
    assert serving.models["tales"].backend is serving.models["base"].backend
    old.worker._thread.join(20)
    assert not old.worker._thread.is_alive()
    for model in serving.models.values():
        model.close(10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter", "tales"], "--adapter tales is not NAME=RUN."),
        (["--adapter", "=tales"], "--adapter =tales is not NAME=RUN."),
        (["--adapter", " =tales"], "is not NAME=RUN."),
        (["--adapter", "a/b=tales"], "the name a/b has a slash."),
        (["--adapter", "base=tales"], "Two models have the name base."),
        (["--adapter", "a=tales", "--adapter", "a=run"], "Two models have the name a."),
        (["--adapter", "a=tales", "--also", "a=base"], "Two models have the name a."),
        (["--adapter", "a=full"], "The run full has no adapter: it was trained with --method full."),
        (["--adapter", "a=base"], "base is a whole model, not an adapter."),
        (["--adapter", "a=../nowhere"], "There is no folder ../nowhere."),
        (["--offline", "--adapter", "a=owner/nowhere"], "owner/nowhere is not on this machine, and offline mode"),
        (["--adapter", "a=full", "--adapter", "b=nowhere"], "--method full. There is no folder nowhere."),
        (["--adapter", "a=llama"], "is for layers called "),
        (["--adapter", "a=sized"], "has the shape "),
    ],
)
def test_what_can_not_be_served_is_refused_before_any_weights_are_loaded(
    here: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if words[-1] in ("a=llama", "a=sized"):
        foreign = llama_model() if words[-1] == "a=llama" else None
        if foreign is not None:
            models.save(foreign, tokenizer(), here / "other")
        write_adapter(here / words[-1][2:], here / ("other" if foreign is not None else "base"), 0)
        config = here / words[-1][2:] / "adapter_config.json"
        values = json.loads(config.read_text(encoding="utf-8"))
        if foreign is None:
            config.write_text(json.dumps(values | {"r": 5}), encoding="utf-8")
        without_hash(config.parent)
    monkeypatch.setattr(models, "open_model", lambda *words, **options: pytest.fail("the base was loaded"))
    assert cli.run(["serve", "base", "--port", "0", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "hint: " in error
    assert "Traceback" not in error


def without_hash(folder: Path) -> None:
    """Rewrite the weights of an adapter without metadata, as PEFT alone would."""
    from safetensors.torch import load_file, save_file

    file = str(folder / "adapter_model.safetensors")
    save_file(load_file(file), file)


def test_an_adapter_of_another_base_is_refused_with_both_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(here / "other", seed=4)
    assert cli.run(["serve", "other", "--port", "0", "--adapter", "letters=run"]) == 1
    error = capsys.readouterr().err
    shas = [models.load(name).provenance.sha256[:12] for name in ("base", "other")]
    assert "The adapter letters was trained on " in error
    assert f"base (SHA-256 {shas[0]}…), which is not other (SHA-256 {shas[1]}…)." in error


def test_openvino_serves_a_merged_copy_of_each_adapter(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETALE_CACHE", str(here / "cache"))
    base = ModelSpec("base", opened("base"), "openvino", slots=2, adapters={"letters": "run"})
    found: dict[str, Any] = {}
    specs = [base, AdapterSpec("letters", "run", base)]
    for spec in specs:
        found[spec.name] = spec.open(lambda event: None, found)
    assert found["letters"].is_merged
    assert found["letters"].worker is not found["base"].worker
    assert found["letters"].described == "letters (openvino, merged adapter)"
    records = [json.loads(file.read_text()) for file in (here / "cache" / "engines").glob("*/engine.json")]
    assert {record["problem"] for record in records} == {None}
    assert {record["perplexity"]["text"] for record in records} == {"general text", "held-out text"}
    assert found["letters"].provenance.sha256 in {record["weights"] for record in records}
    assert specs[1].open(lambda event: None, found) is None, "its files have not changed"
    for served in found.values():
        served.close(10)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_openvino_gets_a_new_copy_of_an_adapter_that_was_trained_again(here: Path) -> None:
    texts = expected(here, ["The lamp"], 20)
    with Serving(here, *WORDS, "--engine", "openvino", "--precision", "fp32") as serving, client_of(serving) as client:
        assert {(name, "The lamp"): ask(client, name)[0] for name in NAMES} == texts
        running = iter(
            client.completions.create(model="tales", prompt="The lamp", max_tokens=20, temperature=0, stream=True)
        )
        old = next(running).choices[0].text
        write_adapter(here / "tales", here / "base", 6)
        new = expected(here, ["The lamp"], 20)
        assert {key for key in texts if new[key] != texts[key]} == {("tales", "The lamp")}
        reload(serving, "tales (openvino, merged adapter) has been reloaded")
        assert old + "".join(piece.choices[0].text for piece in running) == texts["tales", "The lamp"]
        assert {(name, "The lamp"): ask(client, name)[0] for name in NAMES} == new
        for name in ("base", "letters"):
            assert f"{name} has not changed" in serving.log()
        code, log = serving.end()
        assert code == 0
        assert "Traceback" not in log


def test_openvino_is_not_chosen_if_its_copies_need_too_much_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_spec.environment, "available_memory", lambda: 500_000)
    base = ModelSpec("base", opened("base"), "auto", adapters={str(at): "tales" for at in range(9)})
    events: list[Any] = []
    served: Any = base.open(events.append, {})
    assert served.described == "base (torch)"
    assert served.host is not None
    assert any("need too much memory" in getattr(event, "message", "") for event in events)
    served.close(10)


STAND_IN = """#!{python}
import os, sys

words = sys.argv[1:]
assert words[9:15] == ["8", "--enable-lora", "--max-loras", "1", "--max-lora-rank", "8"], words
assert words[15] == "--lora-modules" and len(words) == 17, words
os.environ["FINETALE_API_KEY"] = os.environ["VLLM_API_KEY"]
given = ["--name", words[3], "--host", words[5], "--port", words[7], "--engine", "torch", "--adapter", words[16]]
os.execv(sys.executable, [sys.executable, "-m", "finetale", "serve", words[1], *given])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs an executable script")
def test_vllm_gets_the_adapters_and_is_started_again_for_a_new_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = here / "vllm"
    script.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("FINETALE_VLLM", str(script))
    words = ("base", "--engine", "vllm", "--slots", "8", "--adapter", "letters=run/adapter")
    texts = expected(here, ["The lamp"], 20)
    with Serving(here, *words) as serving, client_of(serving) as client:
        assert [model.id for model in client.models.list()] == ["base", "letters"]
        for name in ("base", "letters"):
            assert ask(client, name)[0] == texts[name, "The lamp"]
        new = write_adapter(here / "run" / "adapter", here / "base", 6)
        reload(serving, "letters (vllm, adapter) has been reloaded")
        shutil.rmtree(here / "tales")
        shutil.copytree(new, here / "tales")
        assert ask(client, "letters")[0] == expected(here, ["The lamp"], 20)["tales", "The lamp"]


def test_vllm_refuses_dora(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "base", "--port", "0", "--engine", "vllm", "--adapter", "tales=tales"]) == 1
    error = capsys.readouterr().err
    assert "it is a DoRA adapter, and vLLM supports LoRA only" in error
    assert "--engine torch" in error
