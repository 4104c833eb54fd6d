"""Named objects: built-in ones, those of other packages, and anything importable as ``package.module:name``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

from apd.errors import ApdError, InputError, nearest
from apd.util.text import one_line
from apd.util.trust import is_spec, refusal, trust

__all__ = ["Registry", "is_spec", "package_of"]

T = TypeVar("T")
_MISSING = object()


def _last_change(place: str) -> int:
    try:
        return os.stat(place).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=32)
def _points(group: str, places: tuple[tuple[str, int], ...]) -> dict[str, EntryPoint]:
    """Read the installed packages' entry points, which takes tens of milliseconds: again only when a folder has changed."""
    return {point.name: point for point in sorted(entry_points(group=group), key=package_of)}


class Registry(Mapping[str, T]):
    """The one table of a kind of object, such as methods; as a mapping it holds the built-in ones.

    Args:
        kind: what an entry is called in messages, such as ``method``.
        group: entry point group in which other packages name theirs; imported only when asked for.
        built_in: name to object.
        problem: what is wrong with an object from elsewhere, as the end of "The method 'x' ..."; None if it is fine.
    """

    def __init__(
        self, kind: str, group: str, built_in: Mapping[str, T], problem: Callable[[object], str | None]
    ) -> None:
        self.kind, self.group, self.built_in, self._problem = kind, group, dict(built_in), problem
        self._given: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        return self.built_in[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.built_in)

    def __len__(self) -> int:
        return len(self.built_in)

    def find(self, name: str) -> T:
        """Return the object called ``name``: built in, given to `name_of` before, an entry point, or ``module:name``.

        Raises:
            InputError: for an unknown name, for an object that cannot be imported or is not of this kind, and for code that
                only a file names (`apd.util.trust`).
        """
        if name in self.built_in:
            return self.built_in[name]
        if name in self._given:
            return self._given[name]
        points = self._entry_points()
        if name in points:
            return self._load(points[name])
        if is_spec(name):
            return self._import(name)
        known = [*self.built_in, *points]
        way_out = nearest(name, known) if known else "Name it as package.module:name."
        raise InputError(f"No {self.kind} {name!r}. {way_out}")

    def knows(self, name: str) -> bool:
        """Whether a name is built in, was given as an object, or is another package's."""
        return name in self.built_in or name in self._given or name in self._entry_points()

    def name_of(self, given: T, settings: str = "") -> str:
        """Return the name by which `find` knows an object: of the table, or ``module:name``.

        An object that was made in this process, in a notebook cell for example, is found in this process only.

        Args:
            given: the object.
            settings: appended to the name, where objects of one class differ by them.

        Raises:
            InputError: for an object that is not of this kind.
        """
        for name, known in self.built_in.items():
            if known is given:
                return name
        spec = (
            f"{getattr(given, '__module__', '?')}:{getattr(given, '__qualname__', type(given).__qualname__)}{settings}"
        )
        self._given[spec] = self._checked(given, f"The {self.kind} {spec}")
        return spec

    def make(self, name: str) -> object:
        """Call the object called ``name`` without arguments, and return what it makes.

        Raises:
            InputError: see `find`; also for what the call raises, if that is not one of our own errors already.
        """
        return self.made(name, self.find(name))

    def made(self, name: str, maker: T) -> object:
        """Call ``maker``, which messages call ``name``, without arguments; see `make`."""
        try:
            return maker()  # type: ignore[operator]
        except ApdError:
            raise
        except Exception as error:  # whatever another module raises
            raise InputError(
                f"The {self.kind} {name!r} cannot be made ({type(error).__name__}: {one_line(error)}); it is "
                "called without arguments: name a function that takes none."
            ) from error

    def listing(self) -> tuple[dict[str, T], list[str]]:
        """Return all objects by name, and a line for each entry point that cannot be used."""
        found, problems = dict(self.built_in), []
        for name, point in self._entry_points().items():
            try:
                if name in self.built_in:
                    raise InputError(
                        f"The {self.kind} {name!r} of the package {package_of(point)} has the name of a built-in one; "
                        "rename it."
                    )
                found[name] = self._load(point)
            except InputError as error:
                problems.append(str(error))
        return found, problems

    def package(self, name: str) -> str | None:
        """Return the package that a name comes from; None for built-in ones and ``module:name``."""
        point = None if name in self.built_in else self._entry_points().get(name)
        return None if point is None else package_of(point)

    def _entry_points(self) -> dict[str, EntryPoint]:
        return _points(self.group, tuple((place, _last_change(place)) for place in map(os.path.abspath, sys.path)))

    def _load(self, point: EntryPoint) -> T:
        about = f"The {self.kind} {point.name!r} of the package {package_of(point)}"
        try:
            loaded = point.load()
        except Exception as error:  # whatever another package's module raises
            reason = one_line(error)
            raise InputError(
                f"{about} cannot be imported ({type(error).__name__}: {reason}); fix or uninstall it."
            ) from error
        return self._checked(loaded, about, "; fix or uninstall it")

    def _import(self, spec: str) -> T:
        module, _, path = spec.partition(":")
        about = f"The {self.kind} {spec!r}"
        if refused := refusal(spec):
            raise InputError(refused)
        here = str(Path.cwd())
        if here not in sys.path:  # a console script does not look into the working directory
            sys.path.append(here)
        try:
            loaded: object = import_module(module)
            for part in path.split("."):
                within, loaded = loaded, getattr(loaded, part, _MISSING)
                if loaded is _MISSING and "<" not in path and module != "__main__":
                    names = [name for name in vars(within) if not name.startswith("_")]
                    raise InputError(f"{about} is not there: {module} has no {part!r}. {nearest(part, names)}")
        except InputError:
            raise
        except Exception as error:  # whatever another module raises
            reason = one_line(error)
            way_out = f"install {module.partition('.')[0]}, or start from the folder that holds it"
            if module == "__main__" or "<" in path:  # a script, a notebook cell, inside a function
                way_out = "it was defined in a script or notebook, and exists there only: run that again, or move it to a module"
            raise InputError(f"{about} cannot be imported ({type(error).__name__}: {reason}); {way_out}.") from error
        trust(spec)  # it has run: a file that names it later adds nothing
        return self._checked(loaded, about)

    def _checked(self, loaded: object, about: str, hint: str = "") -> T:
        problem = self._problem(loaded)
        if problem is not None:
            raise InputError(f"{about} {problem}{hint}.")
        return loaded  # type: ignore[return-value]


def package_of(point: EntryPoint) -> str:
    """Return the name of the package that an entry point belongs to."""
    return point.dist.name if point.dist is not None else point.value
