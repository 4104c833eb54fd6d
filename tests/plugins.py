"""Methods of an installed package most of which cannot be used."""

from __future__ import annotations

BROKEN_METHODS = {
    "lost": "no_such_module:Method",
    "odd": "json:dumps",
    "wordless": "wordless:Wordless",
    "apd": "wordless:Wordless",
    "lossless": "wordless:Lossless",
    "plain": "wordless:Plain",
    "good": "wordless:Good",
}
WORDLESS = """
from apd.methods import Method

class Wordless(Method):
    pass

class Lossless(Method):
    summary, source = "learns by nothing", "nobody"

class Plain(Lossless):
    learns = False

class Good(Lossless):
    summary = "a good one"
    def loss(self, step, x_adv):
        return {"ce": step.cross_entropy(step.student.logits(x_adv))}
"""
