"""EleutherAI's evaluation harness asks the service what it asks a model in its own process, and gets the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import Serving
from tiny import save_model, story

pytestmark = pytest.mark.slow  # the harness is large, and not among what the tests install


@pytest.mark.filterwarnings("ignore")
def test_log_likelihoods_are_those_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
