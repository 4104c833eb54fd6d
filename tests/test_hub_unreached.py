"""Hub ids on a machine that does not reach the hub: what is in the cache is read at once."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from apd.data import load_data
from apd.models import load_clip
from apd.util import hub

from .models import save_clip
from .refusals import refused

COMMIT = "1" * 40


class _Cut:
    """A line that is cut: what is asked of the hub, and that nothing comes back."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def head(self, url: str, **_: object) -> None:
        self.asked.append(url)
        raise ConnectionError("Name or service not known")


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Cut:
    """A cut line, and somebody's model in the cache."""
    line = _Cut()
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: line)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waited {seconds} s for the hub"))
    model = tmp_path / "cache" / "models--somebody--clip"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    save_clip(model / "snapshots" / COMMIT)
    return line


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_a_model_in_the_cache_is_read_without_waiting(cut: _Cut, revision: str | None) -> None:
    info = load_clip("somebody/clip", revision=revision).info
    assert (info.source, info.revision) == ("somebody/clip", COMMIT)
    assert len(cut.asked) == 1
    assert not huggingface_hub.constants.HF_HUB_OFFLINE, "as it was"


def test_what_is_not_in_the_cache_says_that_the_hub_is_not_reached(cut: _Cut) -> None:
    for name in ("nobody/clip", "hf-hub:nobody/clip"):
        with refused(name, "not reached") as error:
            load_clip(name)
        assert "HF_HUB_OFFLINE" not in str(error.value)
    with refused("hf:nobody/images", "cache"):
        load_data("hf:nobody/images")


def test_a_folder_asks_nothing(cut: _Cut, shallow_folder: Path) -> None:
    load_clip(shallow_folder)
    with hub.hub_or_cache(str(shallow_folder)):
        assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert cut.asked == []


@pytest.mark.parametrize("source", ["hf:", "hf::split"])
def test_a_hub_data_set_has_a_name(source: str) -> None:
    with refused(source, "hf:OWNER/NAME"):
        load_data(source)
