"""The server keeps what its OpenAPI description promises, with schemathesis."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from apd.serve import ServeSettings, create_app

schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def operations(trained: Path) -> dict[str, Any]:
    importlib.import_module("tests.schemathesis_images")
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(trained, ServeSettings(max_images=4)))
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.path: operation for operation in found}


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/model", "/healthz", "/readyz", "/metrics"])
def test_responses_are_as_described(operations: dict[str, Any], path: str, mode: Any) -> None:
    operation = operations[path]
    negative = mode is not schemathesis.GenerationMode.POSITIVE
    if negative and operation.method.upper() == "GET":
        pytest.skip("takes no input, so none can be wrong")
    statuses = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        statuses.add(case.call_and_validate().status_code)

    check()
    assert (min(statuses) >= 400) if negative else (200 in statuses)


def test_every_place_is_described(operations: dict[str, Any]) -> None:
    assert set(operations) == {"/v1/classify", "/v1/model", "/healthz", "/readyz", "/metrics"}
