"""The page's layout in Gradio: controls on the left, both models on the right."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from apd.errors import ApdError
from apd.explore.chart import draw_curves
from apd.explore.examples import Examples
from apd.explore.explorer import LARGEST_SEED, MOST_STEPS, ROBUST, ZERO_SHOT, Budgets, Explorer, Gradients
from apd.explore.page import TITLES, hint, message, render
from apd.explore.uploads import read_class_names, read_number, read_upload
from apd.util.extras import import_extra
from apd.util.text import printable

log = logging.getLogger("apd.explore")

KEPT, SWEPT = 3600.0, 60.0
"""Seconds that an upload is kept after the last question about it, and between two looks for older ones."""

_WELCOME = "Drop an image on the left, or choose an example."
# The image's own value holds an address that Gradio would fetch; only the path of the upload goes to the server.
_PATH = "image => image ? image.path : ''"
_ATTACKS = [
    ("Each model, by its own gradients (white-box)", "each"),
    (f"{TITLES[ZERO_SHOT]}; the other model sees the same image", ZERO_SHOT),
    ("The robust prompts; zero-shot CLIP sees the same image", ROBUST),
]


def build(explorer: Explorer, examples: Examples, uploads: Path) -> Any:
    """Build the page.

    Args:
        explorer: answers the questions.
        examples: images to try.
        uploads: the folder where Gradio keeps uploads.

    Returns:
        ``gradio.Blocks``.

    Raises:
        InputError: gradio is not installed.
    """
    gr = import_extra("gradio", "explore", "apd explore")
    guarded = partial(_guarded, explorer, uploads)
    title = f"apd explore: {explorer.title}"
    # Gradio deletes what was uploaded, and keeps the gallery's own files: the examples.
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=(SWEPT, KEPT)) as page:
        gr.HTML(_head(explorer), js_on_load=None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300, elem_classes="apd-left"):
                image, eps, steps = _attack_controls(gr, explorer.budgets, examples)
            with gr.Column(scale=3, min_width=320):
                answers = gr.HTML(hint(_WELCOME), elem_id="answers", js_on_load=None)
                sweep = gr.Button("Draw the curve over eps", size="sm", elem_id="sweep")
                curve = gr.HTML("", elem_id="curve", js_on_load=None)
                with gr.Row():
                    names, use, gradients, seed = _question_controls(gr, explorer)
        path = gr.Textbox(visible="hidden", elem_id="path")
        image.change(None, image, path, js=_PATH)
        asked = [path, names, steps, gradients, seed]
        other = [path.change, names.change, steps.change, gradients.change, seed.change]
        events: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_limit": 1, "api_visibility": "private"}
        gr.on(
            [path.change, eps.change, steps.change, names.blur, use.click, gradients.change, seed.change],
            guarded(partial(_cards, explorer)),
            [*asked, eps],
            answers,
            show_progress="minimal",  # a large encoder takes seconds
            **events,
        )
        sweep.click(guarded(partial(_curves, explorer)), asked, curve, concurrency_id="curve", **events)
        gr.on(other, lambda: "", None, curve, show_progress="hidden", api_visibility="private")  # of another question
    return page


def _guarded(explorer: Explorer, uploads: Path, show: Callable[[_Question], str]) -> Callable[..., str]:
    """Make a function of the page's values, as a browser sends them, that ends with HTML whatever happens."""

    def answer(path: str, names: str, steps: object, gradients: Any, seed: object, eps: object = 0.0) -> str:
        try:
            if not path:
                return hint(_WELCOME)
            return show(_read(explorer, uploads, path, names, steps, gradients, seed, eps))
        except ApdError as error:
            return message(str(error))
        except Exception as error:
            log.exception("the explorer failed")
            return message(f"This failed ({type(error).__name__}); the terminal shows why.")

    return answer


def _attack_controls(gr: Any, budgets: Budgets, examples: Examples) -> tuple[Any, Any, Any]:
    """Show the image and how it is attacked: the image, eps and the number of steps."""
    image = gr.Image(
        label="Image",
        sources=["upload", "clipboard"],
        type="filepath",
        height=240,
        buttons=[],
        elem_id="image",
    )
    _gallery(gr, examples, image)
    eps = gr.Slider(
        0,
        budgets.most,
        value=budgets.trained,
        step=budgets.step,
        label="eps of the attack" + (" (n/255)" if budgets.norm == "linf" else f" ({budgets.norm.upper()})"),
        info=f"Trained at {budgets.text(budgets.trained)}; 0: no attack.",
        elem_id="eps",
    )
    return image, eps, gr.Slider(1, MOST_STEPS, value=10, step=1, label="Attack steps (PGD)", elem_id="steps")


def _question_controls(gr: Any, explorer: Explorer) -> tuple[Any, Any, Any, Any]:
    """Show what is asked: the class names, a button that takes them, what is attacked, and the seed."""
    with gr.Column(min_width=300):
        names = gr.Textbox(
            "\n".join(explorer.class_names),
            label="Class names, one per line",
            lines=min(6, len(explorer.class_names)),
            max_lines=12,
            elem_id="classes",
        )
        use = gr.Button("Use these class names", size="sm")
    with gr.Column(min_width=300):
        gradients = gr.Radio(_ATTACKS, value="each", label="What is attacked", elem_id="gradients")
        seed = gr.Number(0, label="Seed of the random start", precision=0, minimum=0, maximum=LARGEST_SEED)
    return names, use, gradients, seed


def _head(explorer: Explorer) -> str:
    """The page's first lines: what it shows, and of which run."""
    info, budgets = explorer.robust.encoder.info, explorer.budgets
    model = f"CLIP model {info.source}, {info.image_size} px"
    about = f"{explorer.title}, {model}, trained at eps {budgets.text(budgets.trained)}"
    return (
        '<header class="apd-head"><h1>What an attack does to your image</h1><p>Zero-shot CLIP and the robust prompts of '
        "this run see the same image, clean and attacked. Each is attacked by its own gradients, away from its own "
        f'clean answer, unless you choose otherwise.</p><p class="apd-about">{escape(printable(about))}</p></header>'
    )


def _gallery(gr: Any, examples: Examples, image: Any) -> None:
    """Show the examples; a click puts one into ``image``."""
    if not examples.files:
        gr.HTML(hint(examples.why_none), js_on_load=None)
        return
    gr.HTML('<p class="apd-about">Or an example from the run\'s data:</p>', js_on_load=None)
    gallery = gr.Gallery(
        [(str(file), printable(name)) for file, name in examples.files],
        label="Examples from the run's data",
        show_label=False,
        columns=4,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        buttons=[],
        elem_id="examples",
    )

    def chosen(event: gr.SelectData) -> str:
        return str(examples.files[event.index][0])

    # Gradio reads the annotation, which is text here.
    chosen.__annotations__["event"] = gr.SelectData
    gallery.select(chosen, None, image, show_progress="hidden", api_visibility="private")


@dataclass(frozen=True, eq=False)
class _Question:
    """What the page asks, checked."""

    x: Tensor
    classes: tuple[str, ...]
    eps: float
    steps: int
    gradients: Gradients
    seed: int


def _read(
    explorer: Explorer,
    uploads: Path,
    path: str,
    names: str,
    steps: object,
    gradients: Any,
    seed: object,
    eps: object,
) -> _Question:
    x = read_upload(path, uploads, explorer.robust.encoder.info.preprocessing)
    with suppress(OSError):
        os.utime(path)  # still in use: its age counts from here
    return _Question(
        x=x,
        classes=read_class_names(names, explorer.class_names),
        eps=read_number(eps, "eps", 0, explorer.budgets.most),
        steps=int(read_number(steps, "The number of attack steps", 1, MOST_STEPS)),
        gradients=gradients,
        seed=int(read_number(seed, "The seed", 0, LARGEST_SEED)),
    )


def _cards(explorer: Explorer, asked: _Question) -> str:
    views = explorer.look(
        asked.x, asked.classes, eps=asked.eps, steps=asked.steps, gradients=asked.gradients, seed=asked.seed
    )
    text, gain = explorer.budgets.text(asked.eps), explorer.budgets.gain(asked.x.shape[-1])
    return render(asked.x, views, asked.classes, eps=text, steps=asked.steps, gain=gain)


def _curves(explorer: Explorer, asked: _Question) -> str:
    curves = explorer.sweep(asked.x, asked.classes, steps=asked.steps, gradients=asked.gradients, seed=asked.seed)
    return draw_curves(curves, explorer.budgets)
