"""Whether an accuracy is at chance level, and what to say then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def at_chance(accuracy: float, interval: tuple[float, float], n_classes: int) -> bool:
    """Whether an accuracy cannot be told from guessing: it is less than twice chance, and its interval reaches down to it.

    Args:
        accuracy: in percent.
        interval: its 95 % interval, in percent.
        n_classes: number of classes, all equally likely in a guess.

    >>> at_chance(12.0, (8.0, 17.0), 10), at_chance(55.0, (25.0, 80.0), 10), at_chance(97.5, (94.0, 99.0), 10)
    (True, False, False)
    """
    chance = 100 / n_classes
    return interval[0] <= chance and accuracy < 2 * chance


def chance_note(result: Mapping[str, Any], *, untrained: bool = False) -> str | None:
    """Say so if the clean accuracy of a result (as JSON has it) cannot be told from guessing.

    Args:
        result: the result.
        untrained: it is zero-shot CLIP's, which has seen none of these classes' images.

    Returns:
        A sentence; None where it can be told, and for older results, which do not name the number of classes.
    """
    n = result.get("n_classes")
    if not n or not at_chance(result["clean"], tuple(result["clean_interval"]), n):
        return None
    level = f"Clean accuracy is at chance level: guessing among {n} classes gives {100 / n:.1f} %."
    if untrained:
        return (
            f"{level} Zero-shot CLIP does not know such images, or the class names do not say what they show; its robust "
            "accuracy means little. Prompts trained on labelled images can know them all the same."
        )
    other = result.get("undefended")
    if other and not at_chance(other["clean"], tuple(other["clean_interval"]), n):
        return (
            f"{level} Zero-shot CLIP has {other['clean']:.1f} % on the same images, so they can be told apart: train longer, on "
            "more images or with a smaller eps; robust accuracy means little."
        )
    return (
        f"{level} The model does not know such images, the class names do not say what they show or, in a model of your own, "
        "are not in the order of its outputs; robust accuracy means little."
    )
