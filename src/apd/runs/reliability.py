"""Whether the accuracies of an evaluation can be trusted, derived from its health checks, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNRELIABLE = 3
"""Exit code of a command that was asked to fail where a result is not reliable."""

BECAUSE = {
    "class features": "two class names are the same to the model",
    "gradient": "the model gives no gradient, so that white-box attacks do not apply",
    "gradient recording": "answers change when gradients are recorded, as attacks do",
    "true gradients": "gradients are not the slope of the answers",
    "jumps": "answers jump between images that hardly differ",
    "flat spots": "answers stand still around the evaluated images only",
    "shifted images": "images that stand fall once they are moved by one pixel",
    "eps 0": "an attack that may change nothing changes answers",
    "batch size": "answers depend on the batch or on chance",
    "logit range": "logits are too small or too large for float32",
    "zero gradients": "many images give no gradient",
    "huge eps": "images stand although an attack may change them into any other",
    "random noise": "random noise fools images that stood under the attacks",
    "stronger attack": "the attack was too weak: a stronger one fools more images",
    "black-box": "a black-box attack fools images that stood under the gradient attacks",
    "randomized": "the model answers the same image differently",
    "probabilities": "the model gives probabilities, whose gradients vanish",
    "dynamic": "the model optimises while it answers",
}
"""A failed check to what that says of the numbers; of an attack's own checks the part after the attack's name."""


@dataclass(frozen=True)
class Reliability:
    """Whether a result can be trusted.

    Args:
        reliable: None where nothing was checked.
        because: why not, in plain words with the check's name; one per failed check.
        warnings: checks that failed but leave the numbers right, with their messages.
    """

    reliable: bool | None
    because: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """``yes``, ``no`` or ``unknown``."""
        return {True: "yes", False: "no", None: "unknown"}[self.reliable]

    def describe(self) -> str:
        """``yes``, ``no, because ...`` or ``unknown, because ...``."""
        if self.reliable is None:
            return "unknown, because the health checks were not run"
        return f"{self.word}, because {'; '.join(self.because)}" if self.because else self.word


def reliability(result: Mapping[str, Any]) -> Reliability:
    """Judge a result as JSON has it, of whatever version.

    A failed check makes it unreliable unless it is one that only warns (``warns``); a check without a verdict informs.

    >>> bad = {"name": "autoattack: black-box", "passed": False, "message": "Square fools 9.0%"}
    >>> reliability({"checks": [bad]}).describe()
    'no, because a black-box attack fools images that stood under the gradient attacks (autoattack: black-box)'
    """
    judged = [check for check in result.get("checks", ()) if check["passed"] is not None]
    failed = [check for check in judged if not check["passed"]]
    fatal = [check for check in failed if not check.get("warns")]
    warnings = tuple(f"{check['name']}: {check['message']}" for check in failed if check.get("warns"))
    if not judged:
        return Reliability(None)
    return Reliability(not fatal, tuple(_reason(check["name"]) for check in fatal), warnings)


def _reason(name: str) -> str:
    words = BECAUSE.get(name) or BECAUSE.get(name.rpartition(": ")[2])
    return f"{words} ({name})" if words else f"a check failed ({name})"
