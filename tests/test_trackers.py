"""What training measures goes to the trackers that accelerate knows, and to those registered with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking

import apd
from apd.errors import InputError
from apd.models import DualEncoder
from apd.runs.config import load_config

from .training import metrics, start


class Notebook(tracking.GeneralTracker):
    """Writes down what it is told."""

    name = "notebook"
    requires_logging_directory = False
    told: ClassVar[list[Any]] = []

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        self.told.append(("made", project, options))

    @property
    def tracker(self) -> Any:
        return self.told

    def start(self) -> None:
        self.told.append("started")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(("settings", values))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append("finished")


class Offline(Notebook):
    name = "offline"

    def start(self) -> None:
        raise ConnectionError("nobody is\nlogged in")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", dict(tracking.LOGGER_TYPE_TO_CLASS))
    tracking.register_tracker_class(Notebook)
    tracking.register_tracker_class(Offline)
    yield
    Notebook.told.clear()


def test_a_tracker_gets_settings_metrics_and_an_end(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    sets = ["train.trackers=notebook", "train.tracker_options={notebook: {project: mine, tags: [a]}}"]
    run = start(tmp_path / "run", clip, colours, *sets)
    made, started, (_, settings), *lines, last = Notebook.told
    assert made == ("made", "mine", {"tags": ["a"]}) and (started, last) == ("started", "finished")
    assert settings["train.epochs"] == 3 and settings["train.optimizer.lr"] == run.config.train.optimizer.lr
    kept = metrics(run)
    assert [step for step, _ in lines] == [line["step"] for line in kept]
    assert lines[0][1]["loss"] == kept[0]["loss"] and "step" not in lines[0][1]
    assert run.config.train.trackers == ["notebook"]


def test_a_tracker_hears_of_zero_shot_clip_too(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    data = apd.load_data(colours, shots=1)
    options: Any = {"trackers": ["notebook"], "device": "cpu", "quiet": True}
    run = apd.train(clip, data, method="zero-shot", output=tmp_path / "run", **options)
    assert Notebook.told[-1] == "finished" and len(Notebook.told) == 3 + len(metrics(run)) + 1


def test_trackers_may_change_when_a_run_is_resumed_and_leave_no_trace_in_others(
    tmp_path: Path, clip: DualEncoder, colours: Path
) -> None:
    plain = start(tmp_path / "run", clip, colours, "train.epochs=1")
    assert "tracker" not in (plain.path / "config.yaml").read_text()
    again = start(tmp_path / "run", clip, colours, "train.epochs=1", "train.trackers=[notebook]", resume=True)
    assert again.finished and not Notebook.told, "a finished run trains no further"


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["train.trackers=wandbb"], "wandb"),
        (["train.trackers=[mlflow]"], "pip install mlflow"),
        (["train.trackers=comet_ml"], "pip install comet-ml"),
        (["train.tracker_options={notebook: {}}"], "notebook"),
        (["train.trackers=offline"], "nobody is logged in"),
    ],
)
def test_what_cannot_track_is_refused_in_one_line(
    tmp_path: Path, clip: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch, sets: list[str], told: str
) -> None:
    for module in ("mlflow", "comet_ml"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=told) as error:
        start(tmp_path / "run", clip, colours, *sets)
    assert "\n" not in str(error.value)


def test_a_single_name_is_a_list_of_one() -> None:
    config = load_config(flags={"data.source": "digits"}, sets=["train.trackers=wandb"])
    assert config.train.trackers == ["wandb"]
