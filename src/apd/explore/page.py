"""The page's pictures and bars as HTML, without any framework; every text that comes from outside is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import torch
from PIL import Image
from torch import Tensor

from apd.explore.explorer import ROBUST, ZERO_SHOT, View
from apd.util.text import printable

SHOWN = 6
"""Classes with bars of their own; the others share one."""
_LEAST_SIDE = 224
"""Pictures are enlarged, pixel by pixel, to this many pixels at least."""
TITLES = {ZERO_SHOT: "Zero-shot CLIP", ROBUST: "With robust prompts"}


def png(image: Tensor) -> bytes:
    """An image (3,H,W) in [0,1] as a PNG file; small ones are enlarged so that their pixels can be seen."""
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    times = -(-_LEAST_SIDE // min(picture.size))
    if times > 1:
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def amplified(x: Tensor, x_adv: Tensor, gain: float) -> Tensor:
    """The perturbation (3,H,W), ``gain`` times as strong, around grey: 0.5 is an unchanged pixel."""
    return (0.5 + gain * (x_adv - x)).clamp(0, 1)


def shown_classes(views: Mapping[str, View]) -> list[int]:
    """The classes that any model finds likeliest, clean or attacked, in the order of the highest probability."""
    highest = torch.stack([p for view in views.values() for p in (view.clean, view.attacked)]).amax(dim=0)
    return [int(index) for index in highest.argsort(descending=True, stable=True)[:SHOWN]]


def percent(probability: float) -> str:
    """A probability for people, in whole percent unless it is small.

    >>> percent(0.821), percent(0.0049), percent(0.0001)
    ('82 %', '0.5 %', '<0.1 %')
    """
    value = 100 * probability
    if value >= 1:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.05 else "<0.1 %"


def render(
    x: Tensor, views: Mapping[str, View], class_names: Sequence[str], *, eps: str, steps: int, gain: float
) -> str:
    """Both models side by side: what each says, its pictures and its bars.

    Args:
        x: the clean image (3,S,S) in [0,1].
        views: `Explorer.look`'s.
        class_names: what the probabilities stand for; not trusted.
        eps: the budget as text.
        steps: how many steps the attack takes.
        gain: amplification of the perturbation.
    """
    names = [f"<bdi>{escape(printable(name))}</bdi>" for name in class_names]  # a right-to-left name turns nothing else
    rows = shown_classes(views)
    cards = [_card(x, view, names, rows, eps, steps, gain) for view in views.values()]
    return f'<div class="apd-cards">{"".join(cards)}</div>'


def message(text: str) -> str:
    """A sentence in place of answers; read out by screen readers."""
    return f'<div class="apd-message" role="alert">{escape(printable(text))}</div>'


def hint(text: str) -> str:
    """A sentence while there is no image yet."""
    return f'<div class="apd-hint">{escape(printable(text))}</div>'


def legend_entry(colour: str, text: str) -> str:
    """A coloured square (``apd-`` and ``colour`` name its style) and what it stands for, never broken over two lines."""
    return f'<span class="apd-entry"><span class="apd-key apd-{colour}"></span>{escape(text)}</span> '


def _card(x: Tensor, view: View, names: Sequence[str], rows: Sequence[int], eps: str, steps: int, gain: float) -> str:
    pictures = (
        (x, "clean", f"The image as {TITLES[view.name]} gets it."),
        (view.x_adv, "adversarial", f"The same image, attacked within eps {eps}."),
        (
            amplified(x, view.x_adv, gain),
            f"difference x{gain:g}",
            "What the attack adds, amplified; grey is unchanged.",
        ),
    )
    figures = "".join(_figure(png(image), caption, alt) for image, caption, alt in pictures)
    whose = "its own" if view.by == view.name else f"{TITLES[view.by]}'s"
    attacked = not torch.equal(x, view.x_adv)
    note = f"Attacked by PGD-{steps} with {whose} gradients, eps {eps}." if attacked else "Not attacked: eps is 0."
    return (
        f'<section class="apd-card" data-model="{view.name}" aria-label="{TITLES[view.name]}">'
        f"<h3>{TITLES[view.name]}</h3>{_verdict(view, names, attacked)}"
        f'<div class="apd-pictures">{figures}</div>{_bars(view, names, rows)}'
        f'<p class="apd-note">{note}</p></section>'
    )


def _verdict(view: View, names: Sequence[str], attacked: bool) -> str:
    state, word = ("fooled", "fooled") if view.fooled else ("held", "holds") if attacked else ("idle", "not attacked")

    def said(what: str, probabilities: Tensor) -> str:
        best = int(probabilities.argmax())
        return f"<dt>{what}</dt><dd><b>{names[best]}</b> <span>{percent(float(probabilities[best]))}</span></dd>"

    return (
        f'<div class="apd-verdict"><span class="apd-badge apd-{state}" data-state="{state}">{word}</span>'
        f"<dl>{said('clean', view.clean)}{said('under attack', view.attacked)}</dl></div>"
    )


def _figure(data: bytes, caption: str, alt: str) -> str:
    source = base64.b64encode(data).decode()
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{escape(alt)}"/>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _bars(view: View, names: Sequence[str], rows: Sequence[int]) -> str:
    lines = [(names[row], float(view.clean[row]), float(view.attacked[row])) for row in rows]
    rest = len(names) - len(rows)
    if rest:
        others = torch.ones(len(names), dtype=torch.bool)
        others[list(rows)] = False
        label = f"{rest} other class" + ("es" if rest > 1 else "")
        lines.append((label, float(view.clean[others].sum()), float(view.attacked[others].sum())))
    body = "".join(
        f'<tr><th scope="row">{label}</th><td>{_bar(clean, "clean")}{_bar(attacked, "attacked")}</td>'
        f'<td class="apd-number"><span>{percent(clean)}</span><span>{percent(attacked)}</span></td></tr>'
        for label, clean, attacked in lines
    )
    return (
        f'<p class="apd-legend">Probability {legend_entry("bar-clean", "clean")}'
        f"{legend_entry('bar-attacked', 'under attack')}</p>"
        f'<table class="apd-bars"><tbody>{body}</tbody></table>'
    )


def _bar(probability: float, kind: str) -> str:
    return f'<div class="apd-track"><div class="apd-bar-{kind}" style="width:{100 * probability:.2f}%"></div></div>'
