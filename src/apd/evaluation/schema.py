"""The JSON schema of a result: made from `ResultRecord`, kept in ``assets/schema/result.json``, printed by `apd schema`."""

from __future__ import annotations

from typing import Any

from apd.evaluation.result import SCHEMA_VERSION, ResultRecord


def result_schema() -> dict[str, Any]:
    """Make the schema (JSON Schema 2020-12) of what `Result.to_dict` returns and `apd evaluate --json` prints."""
    made = ResultRecord.model_json_schema(mode="serialization")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:apd:result:{SCHEMA_VERSION}",
    }
    return head | made | {"title": "Result of apd evaluate"}
