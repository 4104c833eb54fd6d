"""Plain words for what an evaluation measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from apd.attacks.named import reads_gradients
from apd.attacks.patch import PATTERN, Patch
from apd.runs.reliability import reliability

_CHECKS = {
    "class features": "The model can tell all class names apart.",
    "gradient": "The answers have a slope for an attack to follow.",
    "gradient recording": "The model answers the same whether or not an attack watches its slope.",
    "true gradients": "The slope that the model tells is the slope of its answers.",
    "jumps": "Answers change step by step between one image and another, without jumps.",
    "flat spots": "Answers move around these images as they do elsewhere.",
    "shifted images": "(Nearly) every image that stands also stands when it is moved by a pixel, at least one of four ways.",
    "collapse": "Without an attack, the model is about as good as zero-shot CLIP, or better.",
    "eps 0": "An attack that may change nothing changes no prediction.",
    "batch size": "An image gets the same answer alone and among others.",
    "logit range": "Answers are neither so small nor so large that rounding changes them.",
    "zero gradients": "The attack finds a slope to follow on (nearly) every image.",
    "huge eps": "When an attack may change an image into any other, (nearly) nothing is right any more, as it must be.",
    "random noise": "Random noise of the same size does less harm than the attack.",
    "stronger attack": "A longer attack with another aim finds (nearly) nothing more.",
    "undefended": "How much zero-shot CLIP keeps under the same attack; near 0 says that the attack is strong.",
}


def check_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Health checks with what each means, in words, and whether it holds."""
    rows = []
    for check in summary["checks"]:
        failed = "warns" if check.get("warns") else "FAILED"
        verdict = {True: "holds", False: failed, None: "for information"}[check["passed"]]
        rows.append({**check, "words": _check_words(check["name"]), "verdict": verdict})
    return rows


def _check_words(name: str) -> str:
    if name.endswith(": black-box"):
        return "An attack that sees only answers, no gradients, finds (nearly) nothing that the others missed."
    return _CHECKS.get(name, f"A warning of the attack's own library ({name}).")


_LENGTH = {"l2": "Euclidean length", "l1": "sum of absolute changes"}


def threat_words(summary: Mapping[str, Any]) -> str:
    """What the attacker may do, in a sentence or two."""
    size, eps, patches = summary["image_size"], summary["eps"], _patches(summary)
    put = f"The attacker may replace {_squares(patches)} of an image by any pixels." if patches else ""
    if len(patches) == len(summary["attacks"]) > 0:
        return put
    values = f"{3 * size * size:,}"
    if summary["norm"] == "linf":
        within = (
            f"The attacker may change each of the {values} colour values of an image ({size} by {size} pixels, red, green and "
            f"blue) by at most {summary['eps_text']}, which is {100 * eps:.1f} % of the way from black to white."
        )
    else:
        measure = f"{_LENGTH[summary['norm']]} of at most {summary['eps_text']}"
        within = (
            f"The attacker may change the {values} colour values of an image ({size} by {size} pixels, red, green and blue) as "
            f"long as the change as a whole has a {measure}, where a single value goes from 0 to 1."
        )
    return f"{within} {put.replace('may', 'may also', 1)}".strip()


def strength(summary: Mapping[str, Any]) -> str:
    """What the attacker may do, to go after "may"."""
    patches = _patches(summary)
    if len(patches) == len(summary["attacks"]) > 0:
        return f"replace {_squares(patches)} of an image by any pixels"
    if summary["norm"] == "linf":
        return f"change every colour value by up to {summary['eps_text']}"
    return f"change an image by a {_LENGTH[summary['norm']]} of up to {summary['eps_text']}"


def _patches(summary: Mapping[str, Any]) -> list[str]:
    return [name for name in summary["attacks"] if re.fullmatch(PATTERN, name)]


def _squares(patches: Sequence[str]) -> str:
    return f"a square of at most {max(Patch.named(name).percent for name in patches):g} %"


def attack_words(summary: Mapping[str, Any], learned: bool = True) -> str:
    """Which attacks ran, of what they are made, and what they know: all, prompts included, or answers only."""
    parts = [
        f"{name} ({', '.join(score['runs'])})" if tuple(score["runs"]) != (name,) else name
        for name, score in summary["attacks"].items()
    ]
    all_of_it = "the classifier, the learned prompts included" if learned else "the classifier"
    blind = [name for name in summary["attacks"] if not reads_gradients(name)]
    if len(blind) == len(parts):
        knowing = "They follow no gradients of the classifier (black-box)"
    else:
        but = f", but for {' and '.join(blind)}, which follow no gradients of it (black-box)" if blind else ""
        knowing = f"They know everything about {all_of_it} (white-box){but}"
    return (
        f"Attacks: {', '.join(parts)}. {knowing}, and an image counts as right only if it is right under all of them."
    )


def unharmed(classes: Sequence[Mapping[str, Any]]) -> str:
    """Say that an attack harms no class, or how many have nothing to lose; empty if neither is so."""
    never = sum(not row["clean"] for row in classes)
    if never == len(classes):
        return "No image of any class is right even without an attack."
    said = [] if any(row["worst"] < row["clean"] for row in classes) else ["No class loses accuracy under attack."]
    if never:
        have, their = ("class has", "its") if never == 1 else ("classes have", "their")
        said.append(f"{never} {have} nothing to lose: all {their} images are wrong even without an attack.")
    return " ".join(said)


def swatches(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mid-grey, and the darkest and lightest that an Linf attacker may make of it, as 8-bit levels."""
    if summary["norm"] != "linf":
        return []
    step = 255 * summary["eps"]
    levels = [("darkest allowed", 128 - step), ("original", 128.0), ("lightest allowed", 128 + step)]
    return [{"name": name, "level": round(max(0.0, min(255.0, level)), 1)} for name, level in levels]


def verdict(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the numbers can be trusted, and how many health checks failed, of how many that can."""
    judged = [check for check in summary["checks"] if check["passed"] is not None]
    found = reliability(summary)
    return {
        "judged": len(judged),
        "failed": sum(not check["passed"] for check in judged),
        "reliable": found.reliable,
        "words": found.describe(),
        "warnings": found.warnings,
    }
