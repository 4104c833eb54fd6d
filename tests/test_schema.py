"""The JSON schema of a result: generated, kept, printed, and met by every result."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from apd.evaluation import evaluate_tensors
from apd.evaluation.result import SCHEMA_VERSION
from apd.evaluation.schema import result_schema
from apd.evaluation.settings import EvaluationSettings

from .command_line import Cli
from .toys import decoded, trained

KEPT = Path(str(files("apd"))) / "assets" / "schema" / "result.json"


def test_the_kept_schema_is_the_generated_one_and_is_printed(cli: Cli) -> None:
    """After a change: `python -m tests.test_schema` writes it again."""
    assert json.loads(KEPT.read_text()) == result_schema()
    answer = cli("schema")
    assert answer.code == 0 and json.loads(answer.out) == result_schema()
    assert result_schema()["$id"].endswith(f":{SCHEMA_VERSION}")
    jsonschema.Draft202012Validator.check_schema(result_schema())


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("checks", [False, True])
@pytest.mark.parametrize("attacks", [("clean",), ("pgd-1",), ("pgd-1", "pgd-2")])
def test_results_validate(attacks: tuple[str, ...], checks: bool, control: bool) -> None:
    settings = EvaluationSettings(attacks=attacks, eps="8/255", checks=checks, quiet=True)
    model = trained(3)
    result = evaluate_tensors(model, decoded(12, 3), list("abc"), settings, undefended=model if control else None)
    record = result.to_dict()
    jsonschema.validate(record, result_schema())
    assert set(record) == set(result_schema()["properties"]) == set(result_schema()["required"])
    assert json.loads(result.to_json()) == record


def test_what_is_not_a_result_does_not_validate() -> None:
    settings = EvaluationSettings(attacks=("pgd-1",), checks=False, quiet=True)
    record = evaluate_tensors(trained(3), decoded(6, 3), list("abc"), settings).to_dict()
    for change in ({"schema_version": 2}, {"n": "6"}, {"classifier": None}, {"worst": {"accuracy": 3}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**record, **change}, result_schema())
    without: dict[str, Any] = {key: value for key, value in record.items() if key != "images_sha256"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(without, result_schema())


def test_a_result_names_its_classifier_and_its_images() -> None:
    settings = EvaluationSettings(attacks=("clean",), checks=False, quiet=True)
    images = decoded(6, 3)
    one = evaluate_tensors(trained(3), images, list("abc"), settings)
    again = evaluate_tensors(trained(3), images, list("abc"), settings)
    assert (one.classifier, one.images_sha256) == (again.classifier, again.images_sha256)
    other = evaluate_tensors(trained(3, "linear"), decoded(6, 3, seed=1), list("abc"), settings)
    assert other.classifier != one.classifier and other.images_sha256 != one.images_sha256


def test_every_summary_of_a_run_validates(cli: Cli, run: Path) -> None:
    answer = cli("evaluate", run, "--attack", "pgd-1", "--limit", 4, "--json")
    assert answer.code == 0, answer.err
    records = [json.loads(file.read_text()) for file in (run / "results").glob("summary-*.json")]
    for record in [json.loads(answer.out), *records]:
        jsonschema.validate(record, result_schema())


if __name__ == "__main__":
    KEPT.write_text(json.dumps(result_schema(), indent=2) + "\n")
