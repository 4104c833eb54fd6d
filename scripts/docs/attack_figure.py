"""Draw docs/assets/attack.svg: one digit, attacked on zero-shot CLIP and on a run of `apd train digits`.

    python scripts/docs/attack_figure.py runs/digits docs/assets/attack.svg

The digit is the first test image that both classify rightly, on which the attack fools zero-shot CLIP and not the run.
"""

from __future__ import annotations

import base64
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

import apd
from apd.attacks import PGD, Objective, ThreatModel, cross_entropy
from apd.models.classifier import PromptedCLIP

GAIN = 8
STYLE = (
    ".card{fill:#fff}.ink{fill:#1f2430}.soft{fill:#5b6270}.wrong{fill:#b3261e}.right{fill:#1b6e37}"
    "@media (prefers-color-scheme:dark){.card{fill:#20242e}.ink{fill:#eceff5}.soft{fill:#c8cfdb}.wrong{fill:#ff9a92}"
    ".right{fill:#7fdc9e}}"
)


@dataclass(frozen=True)
class Attacked:
    """What an attack did to one image: a model's name, the image (3,H,W), probabilities (C,) before and after."""

    name: str
    image: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor


def main(run: Path, target: Path) -> None:
    """Attack test images one by one until one suits, and draw it."""
    robust = apd.load_run(run)
    config = apd.Run.open(run).config
    data = apd.load_data(config.data.source)
    zero_shot = PromptedCLIP(robust.encoder, None, data.class_names, data.templates)
    decoded = data.test.decode(robust.encoder.info.preprocessing)
    for index, label in enumerate(decoded.labels.tolist()):
        x = decoded.images[index] / 255
        fooled, kept = (
            attacked(name, model, x, label, config.train.threat)
            for name, model in (("zero-shot CLIP", zero_shot), ("CLIP with APD's prompts", robust))
        )
        right = [int(each.argmax()) == label for each in (fooled.before, kept.before, fooled.after, kept.after)]
        if right == [True, True, False, True]:
            target.write_text(drawn(data.class_names, label, x, (fooled, kept), config.train.eps), encoding="utf-8")
            print(f"{target}: test image {index}, {data.class_names[label]}")
            return
    raise SystemExit("no test image suits")


def attacked(name: str, model: PromptedCLIP, x: torch.Tensor, label: int, threat: ThreatModel) -> Attacked:
    """Attack a model by PGD-20."""
    frozen = model.frozen()
    objective = Objective(frozen, cross_entropy, torch.tensor([label]))
    image = PGD(20)(objective, x[None], threat, torch.tensor([0]))
    with torch.no_grad():
        before, after = frozen(torch.stack([x, image[0]])).softmax(1)
    return Attacked(name, image[0], before, after)


def drawn(names: tuple[str, ...], label: int, x: torch.Tensor, rows: tuple[Attacked, Attacked], eps: str) -> str:
    """The figure as SVG."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 404" role="img" aria-labelledby="t d" '
        'font-family="system-ui, sans-serif" font-size="14">',
        f'<title id="t">An attack on the digit {names[label]}, eps {eps}</title>',
        f'<desc id="d">{"; ".join(described(names, each) for each in rows)}.</desc>',
        f'<style>{STYLE}</style><rect class="card" width="760" height="404" rx="10"/>',
        *(
            f'<text class="soft" x="{left + 64}" y="30" text-anchor="middle">{text}</text>'
            for left, text in ((120, "image"), (344, f"change, {GAIN} times"), (568, f"attacked, eps {eps}"))
        ),
    ]
    for row, each in enumerate(rows):
        top = 42 + 184 * row
        change = (0.5 + GAIN * (each.image - x) / 2).clamp(0, 1)
        parts += [
            f'<text class="ink" font-weight="600" x="20" y="{top + 56 + 18 * number}">{line}</text>'
            for number, line in enumerate(LINES[row])
        ]
        parts += [picture(image, left, top) for image, left in ((x, 120), (change, 344), (each.image, 568))]
        parts += [answer(names, label, each.before, 184, top + 150), answer(names, label, each.after, 632, top + 150)]
        parts += [sign("+", 296, top), sign("=", 520, top)]
    return "\n".join([*parts, "</svg>"]) + "\n"


LINES = (("zero-shot", "CLIP"), ("CLIP with", "APD's", "prompts"))


def picture(image: torch.Tensor, left: int, top: int) -> str:
    """An image (3,H,W) in [0,1] as an element of 128 units, its pixels visible."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<image x="{left}" y="{top}" width="128" height="128" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{data}"/>'
    )


def answer(names: tuple[str, ...], label: int, probabilities: torch.Tensor, middle: int, bottom: int) -> str:
    """The most probable class below an image."""
    best = int(probabilities.argmax())
    kind, mark = ("right", "\u2713") if best == label else ("wrong", "\u2717")
    text = f"{mark} {names[best]} {100 * float(probabilities[best]):.0f} %"
    return f'<text class="{kind}" font-weight="600" x="{middle}" y="{bottom}" text-anchor="middle">{text}</text>'


def sign(text: str, middle: int, top: int) -> str:
    """A plus or an equals sign between two images."""
    return f'<text class="soft" font-size="24" x="{middle}" y="{top + 72}" text-anchor="middle">{text}</text>'


def described(names: tuple[str, ...], each: Attacked) -> str:
    """One row in words."""
    before, after = (f"{names[int(p.argmax())]} ({100 * float(p.max()):.0f} %)" for p in (each.before, each.after))
    return f"{each.name} answers {before} before the attack and {after} after it"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
