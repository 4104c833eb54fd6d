"""How models show themselves: in short to people, in full to what tells two of them apart."""

from __future__ import annotations

from contextvars import ContextVar

from torch import nn

from apd.util.notebook import html_facts

_full: ContextVar[bool] = ContextVar("full", default=False)


def structure(module: nn.Module) -> str:
    """Return torch's own text of a module with all its parts: fingerprints of models are made of it."""
    token = _full.set(True)
    try:
        return repr(module)
    finally:
        _full.reset(token)


class ShownInShort(nn.Module):
    """A module that shows facts about itself where torch prints every layer, in notebooks as a table."""

    def shown(self) -> dict[str, str]:
        """Return the facts, the most important one first."""
        return {}

    def __repr__(self) -> str:
        if _full.get():
            return super().__repr__()
        return f"{type(self).__name__}({'; '.join(f'{name}: {value}' for name, value in self.shown().items())})"

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        return html_facts(type(self).__name__, self.shown())
