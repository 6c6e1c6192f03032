"""Random requests, in and out of the schema: no server error, and every answer is as the schema says."""

from __future__ import annotations

from typing import Any

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
from test_serve import KEY, Running, running

__all__ = ["running"]
COUNTS = [20, pytest.param(500, marks=pytest.mark.slow)]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_nothing_breaks_the_service(running: Running, mode: GenerationMode, count: int) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{running.port}/openapi.json", headers=headers)
    before = psutil.Process().memory_info().rss
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
            if isinstance(case.body, dict) and running_forever(case.body):
                case.body = {**case.body, "max_tokens": 4}
            response = case.call(headers=headers)
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            case.validate_response(response, checks=checks)

        try:
            ask()
        except Exception as error:
            if "no negative" not in str(error).lower() and "Unsatisfiable" not in type(error).__name__:
                raise
    print(mode, statuses)
    assert psutil.Process().memory_info().rss - before < 100e6
    assert running.complete().choices[0].text


def running_forever(body: dict[str, Any]) -> bool:
    """Whether a valid request would write as much as the context holds."""
    return body.get("max_tokens", 16) is None
