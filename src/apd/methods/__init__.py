"""The methods, one page each. `METHODS` is their table; other packages add to it by entry point."""

from __future__ import annotations

from apd.methods.adversarial import APT, AdvMaPLe, AdvVLP, AdvVP, AdvVPPixels
from apd.methods.advpt import AdvPT
from apd.methods.agft import AGFT
from apd.methods.apd import APD
from apd.methods.base import Method, MethodSettings, Preparation
from apd.methods.clean import VLP, VPT, CoOp, MaPLe
from apd.methods.coapt import CoAPT
from apd.methods.consistency import FAP, TRADES
from apd.methods.fare import FARE
from apd.methods.pmg import PMG
from apd.methods.promptkd import PromptKD
from apd.methods.step import PerObject, Step
from apd.methods.zero_shot import ZeroShot
from apd.util.plugins import Registry

__all__ = ["METHODS", "Method", "MethodSettings", "PerObject", "Preparation", "Step", "find_method"]


def _problem(found: object) -> str | None:
    if not (isinstance(found, type) and issubclass(found, Method)):
        return "is not a class derived from apd.methods.Method"
    if not (isinstance(found.Settings, type) and issubclass(found.Settings, MethodSettings)):
        return "has Settings that are not a class derived from apd.methods.MethodSettings"
    if found.learns and found.loss is Method.loss:
        return "does not define loss(), which it learns by"
    return None


METHODS: Registry[type[Method]] = Registry(
    "method",
    "apd.methods",
    {
        "apd": APD,
        "advvlp": AdvVLP,
        "advmaple": AdvMaPLe,
        "advvp": AdvVP,
        "advvp-pixels": AdvVPPixels,
        "apt": APT,
        "advpt": AdvPT,
        "fap": FAP,
        "trades": TRADES,
        "pmg": PMG,
        "fare": FARE,
        "coapt": CoAPT,
        "agft": AGFT,
        "vlp": VLP,
        "maple": MaPLe,
        "promptkd": PromptKD,
        "coop": CoOp,
        "vpt": VPT,
        "zero-shot": ZeroShot,
    },
    _problem,
)
"""What ``method.name`` names."""

find_method = METHODS.find
"""Return the method of a name; see `Registry.find`."""
