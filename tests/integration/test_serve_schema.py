"""Test random valid and invalid requests: no server error, and every response matches the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from test_serve import Serving

from tiny import save_model

COUNTS = [20, pytest.param(500, marks=pytest.mark.slow)]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_random_requests_cause_no_server_error(tmp_path: Path, mode: GenerationMode, count: int) -> None:
    save_model(tmp_path / "tiny")
    with Serving(tmp_path, "tiny", "--slots", "4") as serving:
        ask_at_random(serving, mode, count)
        assert serving.end()[0] == 0


def ask_at_random(serving: Serving, mode: GenerationMode, count: int) -> None:
    """Send random examples of each operation. Afterwards the service must work, and use little more memory."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{serving.port}/openapi.json")
    write(serving)
    before = psutil.Process(serving.process.pid).memory_info().rss
    checks = [*CHECKS, negative_data_rejection] if mode == GenerationMode.NEGATIVE else CHECKS
    statuses: dict[int, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: Any) -> None:
            response = case.call()
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            case.validate_response(response, checks=checks)

        try:
            ask()
        except Exception as error:
            if "no negative" not in str(error).lower() and "Unsatisfiable" not in type(error).__name__:
                raise
    write(serving)
    grown = psutil.Process(serving.process.pid).memory_info().rss - before
    print(f"{mode}: {statuses}, {grown / 1e6:.0f} MB more")
    assert grown < 100e6


def write(serving: Serving) -> None:
    """Generate a full batch, which is the highest use of memory."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{serving.port}/v1", api_key="none") as client:
        assert client.completions.create(model="tiny", prompt="The lamp", n=4, max_tokens=50).choices[3].text
