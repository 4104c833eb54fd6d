"""What ``run.json`` and the evaluations beside it must hold, checked when they are read: they may come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apd.errors import InputError
from apd.util.files import read_json
from apd.util.json_shape import COUNT, NUMBER, TEXT, TRUTH, Each, Table, check_shape
from apd.util.text import short

TRAIN_AGAIN = "train again with --overwrite (Python: overwrite=True)"
RESULT_WAY_OUT = "remove it and evaluate again: apd evaluate RUN"
"""What to do about the damaged file of an evaluation."""
_ANYTHING: dict[str, Any] = {}
_IMAGES = ("train_images?", "validation_images?", "unlabelled_images?")
_MODEL = {
    "source": TEXT,
    "weights_sha256": TEXT,
    "tokenizer_sha256": TEXT,
    "preprocessing": _ANYTHING,
    "revision": (TEXT, None),
    "family": TEXT,
    "image_size": COUNT,
    "architecture?": TEXT,
}
_SHAPE = {
    "model?": _MODEL,
    "teachers?": Table({**_MODEL, "run?": TEXT, "prompts_sha256?": TEXT}),
    "data?": {
        **{
            "name?": TEXT,
            "source?": (TEXT, None),
            "description?": (TEXT, None),
            "ids_sha256?": TEXT,
            "labels_sha256?": TEXT,
        },
        **dict.fromkeys(_IMAGES, COUNT),
    },
    "left_out?": {**dict.fromkeys(_IMAGES, COUNT), "ids?": Each(TEXT)},
    "class_names?": Each(TEXT),
    "templates?": Each(TEXT),
    "prompts?": _ANYTHING,
    "prompts_sha256?": TEXT,
    "seeds?": _ANYTHING,
    "versions?": Table(TEXT),
    "summary?": {"val_clean?": (NUMBER, None), "val_robust?": (NUMBER, None)},
    "facts?": _ANYTHING,
    "seconds?": NUMBER,
    "averaged?": Each({"run": TEXT, "prompts_sha256": TEXT, "draws?": Each(_ANYTHING)}),
    "imported?": {"form": TEXT, "file": TEXT, "sha256": TEXT},
    "calibration?": {"temperature": NUMBER, "images": COUNT, "ece_before": NUMBER, "ece_after": NUMBER, "split?": TEXT},
}
_OF_A_FINISHED_RUN = (
    *("model", "data", "class_names", "templates", "prompts", "prompts_sha256", "seeds", "versions", "summary"),
)
_LEAST_TEMPERATURE = 0.01
"""As of `Calibration.fit`; far beyond it, probabilities are not finite."""
_LONGEST_NAME = 10_000
"""Characters of a class name or a template; CLIP reads about 77 words."""


def check_manifest(manifest: dict[str, Any], file: Path, way_out: str) -> None:
    """Check the types of everything in a manifest that something reads.

    Raises:
        InputError: naming the entry.
    """
    check_shape(manifest, _SHAPE, file, way_out)
    if manifest["status"] == "done":
        missing = [name for name in _OF_A_FINISHED_RUN if name not in manifest]
        if missing:
            raise InputError(f"{file} is damaged ({missing[0]} is missing); {way_out}.")
    for key in ("class_names", "templates"):
        long = next((text for text in manifest.get(key, ()) if len(text) > _LONGEST_NAME), None)
        if long is not None:
            raise InputError(
                f"{file} is damaged (one of {key} has {len(long)} characters: {short(long, 40)}); {way_out}."
            )
    temperature = manifest.get("calibration", {}).get("temperature", 1.0)
    if not _LEAST_TEMPERATURE <= temperature <= 1 / _LEAST_TEMPERATURE:
        raise InputError(f"{file} is damaged (calibration.temperature is {temperature:g}); {way_out}.")


_INTERVAL = Each(NUMBER)
_ACCURACY = {"accuracy": NUMBER, "interval": _INTERVAL}
_SCORES = {"clean": NUMBER, "clean_interval": _INTERVAL, "attacks": Table(_ACCURACY), "worst": _ACCURACY}
_RESULT = {
    **_SCORES,
    **dict.fromkeys(("data", "split", "classes", "norm", "eps_text"), TEXT),
    **dict.fromkeys(("n", "seed"), COUNT),
    "eps": NUMBER,
    "n_available?": COUNT,
    "n_classes?": (COUNT, None),
    "corruption?": (TEXT, None),
    "own_data?": (TRUTH, None),
    "image_size?": COUNT,
    "undefended?": (None, _SCORES),
    "skipped_images?": Each(TEXT),
    "versions?": Table(TEXT),
    "per_class?": Table({"n": COUNT, "clean": NUMBER, "worst": NUMBER}),
    "checks?": Each({"name": TEXT, "passed": (TRUTH, None), "value": NUMBER, "message": TEXT}),
}


def _readable(result: Mapping[str, Any]) -> str:
    """The budget as it is written now; earlier versions wrote those of L2 and L1 in 255ths, too."""
    text = str(result["eps_text"])
    if result["norm"] == "linf":
        return text
    from apd.attacks.threat import format_eps

    return format_eps(result["eps"], result["norm"]) if text == format_eps(result["eps"]) else text


def read_result(file: Path) -> dict[str, Any]:
    """Read an evaluation that a run folder keeps (`Result.to_dict`).

    Raises:
        InputError: a damaged file.
    """
    result = read_json(file, RESULT_WAY_OUT)
    check_shape(result, _RESULT, file, RESULT_WAY_OUT)
    result.setdefault("undefended", None)
    result["eps_text"] = _readable(result)
    base, odd = result["undefended"], [result["clean_interval"], result["worst"]["interval"]]
    odd += [entry["interval"] for entry in result["attacks"].values()]
    if base is not None:
        if not result["attacks"].keys() <= base["attacks"].keys():
            raise InputError(f"{file} is damaged (undefended lacks one of the attacks); {RESULT_WAY_OUT}.")
        odd += [base["clean_interval"], base["worst"]["interval"], *(a["interval"] for a in base["attacks"].values())]
    if any(len(ends) != 2 for ends in odd):
        raise InputError(f"{file} is damaged (an interval has two ends); {RESULT_WAY_OUT}.")
    return dict(result)
