"""What the README tells a new user works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from apd.methods import METHODS
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_from_a_photo_to_logits(clip: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "photo.jpg" in block]
    photo = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    photo.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"classifier": PromptedCLIP(clip, None, ["cat", "dog"])}
    exec(code, names)
    square = clip.info.preprocessing.apply(Image.open("photo.jpg").convert("RGB"))
    x = torch.tensor(list(square.get_flattened_data())).T.reshape(1, 3, 16, 16) / 255
    classifier, logits = names["classifier"], names["logits"]
    assert isinstance(classifier, PromptedCLIP) and isinstance(logits, torch.Tensor)
    torch.testing.assert_close(logits, classifier(x))


@pytest.mark.parametrize("page", ["README.md", "docs/data.md", "docs/methods.md"])
def test_no_example_trains_photos_on_the_embedded_clip(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    commands = re.findall(r"^(?:    |.*`)(apd train [^`\n]*)", text, re.MULTILINE)
    named = ("--model", "--config", "--resume", "digits", "apd train DATA")
    assert commands and not [command for command in commands if not any(word in command for word in named)]


@pytest.mark.parametrize("page", ["README.md", "docs/bench.md", "docs/methods.md", "examples/method-plugin/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    place = ROOT / page
    for target in re.findall(r"\]\((?!http)([^)]+)\)", place.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        there = place.parent / file if file else place
        assert there.exists(), f"{page} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page} links to {target}"


def test_it_counts_the_methods() -> None:
    words = {17: "Seventeen", 18: "Eighteen", 19: "Nineteen", 20: "Twenty", 21: "Twenty-one"}
    assert f"**{words[len(set(METHODS) - {'zero-shot'})]} methods in one loop**" in README
