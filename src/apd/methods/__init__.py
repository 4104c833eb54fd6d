"""The methods, one page each; the registry is a table, and other packages add to it by entry point."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from apd.errors import InputError, nearest
from apd.methods.adversarial import APT, AdvMaPLe, AdvVLP, AdvVP, AdvVPPixels
from apd.methods.advpt import AdvPT
from apd.methods.apd import APD
from apd.methods.base import Method, MethodSettings, Preparation, Step
from apd.methods.clean import VLP, VPT, CoOp, MaPLe
from apd.methods.fap import FAP
from apd.methods.fare import FARE
from apd.methods.pmg import PMG
from apd.methods.trades import TRADES
from apd.methods.zero_shot import ZeroShot

__all__ = ["GROUP", "METHODS", "Method", "MethodSettings", "Preparation", "Step", "find_method", "list_methods"]

METHODS: dict[str, type[Method]] = {
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
    "vlp": VLP,
    "maple": MaPLe,
    "coop": CoOp,
    "vpt": VPT,
    "zero-shot": ZeroShot,
}
"""The methods of this package."""

GROUP = "apd.methods"
"""Entry point group in which other packages name their methods; they are imported only when asked for."""


def find_method(name: str) -> type[Method]:
    """The method of that name, of this package or another.

    Raises:
        InputError: for an unknown name, and for another package's method that cannot be imported.
    """
    if name in METHODS:
        return METHODS[name]
    others = _others()
    if name not in others:
        raise InputError(f"No method {name!r}. {nearest(name, [*METHODS, *others])}")
    return _load(others[name])


def list_methods() -> tuple[dict[str, type[Method]], list[str]]:
    """All methods by name, and a line for each of another package that cannot be used."""
    found, problems = dict(METHODS), []
    for name, point in _others().items():
        try:
            if name in METHODS:
                raise InputError(
                    f"The method {name!r} of the package {_package(point)} has the name of a built-in one; rename it."
                )
            found[name] = _load(point)
        except InputError as error:
            problems.append(str(error))
    return found, problems


def package_of(name: str) -> str | None:
    """The package that a method comes from; None for those of this one."""
    point = None if name in METHODS else _others().get(name)
    return None if point is None else _package(point)


def _others() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=_package)}


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _load(point: EntryPoint) -> type[Method]:
    about = f"The method {point.name!r} of the package {_package(point)}"
    try:
        method = point.load()
    except Exception as error:  # whatever another package's module raises
        reason = " ".join(str(error).split())
        raise InputError(
            f"{about} cannot be imported ({type(error).__name__}: {reason}); mend or uninstall it."
        ) from error
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise InputError(f"{about} is no class derived from apd.methods.Method; mend or uninstall it.")
    missing = [name for name in ("summary", "source") if not getattr(method, name, "")]
    if missing:
        raise InputError(f"{about} lacks the text {missing[0]!r}, which apd list methods shows; mend or uninstall it.")
    if method.learns and method.loss is Method.loss:
        raise InputError(f"{about} does not define loss(), which it learns by; mend or uninstall it.")
    return method
