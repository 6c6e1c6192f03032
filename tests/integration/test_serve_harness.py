"""Test EleutherAI's evaluation harness: the service must give the same scores as a model loaded by the harness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving import Serving
from tiny import save_model, story

pytestmark = pytest.mark.slow  # the harness is large, and not among what the tests install


@pytest.mark.filterwarnings("ignore")
def test_log_likelihoods_equal_those_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval[api]")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    folder = save_model(tmp_path / "tiny")
    pairs = [(story(number, 4), f" {ending}") for number in range(12) for ending in ("the old man", "went home.")]
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    local = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)
    with Serving(tmp_path, "tiny", "--engine", "torch") as serving:
        served = LocalCompletionsAPI(
            base_url=f"http://127.0.0.1:{serving.port}/v1/completions",
            model="tiny",
            tokenizer=str(folder),
            tokenizer_backend="huggingface",
            max_length=64,
            batch_size=4,
        )
        found = served.loglikelihood(asked, disable_tqdm=True)
        texts = [Instance("loglikelihood_rolling", {}, (story(number, 6),), number) for number in range(3)]
        rolling = served.loglikelihood_rolling(texts, disable_tqdm=True)
    for (nats, greedy), (expected, known) in zip(found, local.loglikelihood(asked, disable_tqdm=True), strict=True):
        assert nats == pytest.approx(expected, abs=1e-4)
        assert greedy == known
    for nats, expected in zip(rolling, local.loglikelihood_rolling(texts, disable_tqdm=True), strict=True):
        assert nats == pytest.approx(expected, abs=1e-3)


TASK = """task: endings
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: text
doc_to_choice: endings
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def test_the_harness_command_gives_the_service_and_the_model_the_same_score(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval[api]")
    folder = save_model(tmp_path / "tiny")
    documents = [
        {"text": story(number, 4), "endings": [" the old man", " went home.", " a heron"], "label": number % 3}
        for number in range(12)
    ]
    data = tmp_path / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/endings.yaml").write_text(TASK.format(data=data), encoding="utf-8")

    def scored(name: str, given: str) -> list[list[float]]:
        command = [sys.executable, "-m", "lm_eval", "--model", name, "--model_args", given, "--tasks", "endings"]
        command += [
            "--device",
            "cpu",
            "--include_path",
            "tasks",
            "--batch_size",
            "4",
            "--log_samples",
            "--output_path",
            name,
        ]
        environment = os.environ | {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        (file,) = (tmp_path / name).rglob("samples_endings_*.jsonl")
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        samples.sort(key=lambda sample: sample["doc_id"])
        return [[float(nats) for nats, _ in sample["filtered_resps"]] for sample in samples]

    with Serving(tmp_path, "tiny", "--engine", "torch") as serving:
        address = f"http://127.0.0.1:{serving.port}/v1/completions"
        served = scored(
            "local-completions",
            f"base_url={address},model=tiny,tokenizer={folder},tokenizer_backend=huggingface,max_length=64",
        )
    assert len(served) == 12
    for found, expected in zip(served, scored("hf", f"pretrained={folder},dtype=float32"), strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
