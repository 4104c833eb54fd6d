"""Hub ids on a machine that does not reach the hub: what is in the cache is read at once."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from apd.data import load_data
from apd.export import RobustCLIP
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


PATHS = ["missing", "./missing", "/missing", "../a/missing", "a/b/missing", "C:\\models\\clip", "there/missing", "-a/b"]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_to_nothing_asks_nothing(cut: _Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "there" / "mising").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for load in (load_clip, RobustCLIP.from_pretrained):
        with refused(repr(name)):
            load(name)
    with refused(repr(str(Path(name)))):
        RobustCLIP.from_pretrained(Path(name))
    if name == "there/missing":
        with refused("'there'", "there/mising"):
            load_clip(name)
    with refused(repr(f"hf-hub:{name}x/y/z"), "owner/name"):
        load_clip(f"hf-hub:{name}x/y/z")
    assert cut.asked == []


def test_a_folder_called_like_the_owner_hides_nothing_in_the_cache(
    cut: _Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebody").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_clip("somebody/clip").info.revision == COMMIT


def test_an_export_that_is_not_in_the_cache_says_that_the_hub_is_not_reached(cut: _Cut) -> None:
    for options in ({}, {"local_files_only": True}):
        with refused("nobody/robust", "not reached", "cache"):
            RobustCLIP.from_pretrained("nobody/robust", **options)
    assert len(cut.asked) == 1


@pytest.mark.parametrize("source", ["hf:./images", "hf:a/b/c", "hf:/data/images", "hf:a--b"])
def test_a_data_set_that_cannot_be_on_the_hub_is_not_asked_for(cut: _Cut, source: str) -> None:
    with refused(source, "hf:OWNER/NAME"):
        load_data(source)
    assert cut.asked == []


@pytest.mark.parametrize("source", ["hf:", "hf::split"])
def test_a_hub_data_set_has_a_name(source: str) -> None:
    with refused(source, "hf:OWNER/NAME"):
        load_data(source)
