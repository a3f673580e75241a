"""A registry: it finds its entries by file name, and those of other packages by entry point.

Each file of the package a registry looks into holds one entry, and the file's name is the
entry's name with `_` for `-`; of a folder, the file named after the kind does, as `task.py`. An
installed package brings one by an entry point of the group of the registry's package,
`ctxext.methods` or `ctxext.tasks`: its name, and the module that registers it. So names are known
without importing anything.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from ctxext.errors import UsageError, short
from ctxext.notation import parameters, read_entry
from ctxext.text import did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """The classes of one kind (`what`, for messages), found in the files of `package`."""

    def __init__(self, what: str, package: str, private: Iterable[str] = ()) -> None:
        self.what = what
        self._package = package
        self._private = frozenset(private)
        self._found: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Decorator: enter a dataclass under `name`, its fields what a spec gives it.

        Raises:
            ValueError: the name is taken.
            UsageError: a field has a type whose values no spec can write, or the version is no
                whole number from 1 on.
        """

        def enter(cls: type[T]) -> type[T]:
            if cls.__module__ != self._files().get(name, cls.__module__):
                raise ValueError(f"{self.what} {name!r} is the package's own: take another name")
            old = self._found.get(name)
            if old is not None and (old.__module__, old.__qualname__) != (
                cls.__module__,
                cls.__qualname__,
            ):
                raise ValueError(f"{self.what} {name!r} is registered twice: {old} and {cls}")
            parameters(f"{self.what} {name!r}", cls)
            version = getattr(cls, "version", 1)
            if type(version) is not int or version < 1:
                raise UsageError(
                    f"{self.what} {name!r} has the version {version!r}: give a whole number from 1"
                )
            self._found[name] = cls
            cls.name = name  # type: ignore[attr-defined]
            return cls

        return enter

    def names(self) -> list[str]:
        """All names, sorted; imports none of the entries."""
        return sorted({*self._files(), *self._found, *self._offers()})

    def classes(self, tell: Callable[[str], object] = lambda line: None) -> list[type[T]]:
        """The class of each name; what another package brings and cannot be had is told in a line
        each, and left out."""
        found = []
        for name in self.names():
            try:
                found.append(self.get(name))
            except UsageError as error:
                if name in self._files():
                    raise
                tell(str(error))
        for name in self._files().keys() & self._offers().keys():
            for point in self._offers()[name]:
                tell(
                    f"{self.what} {name!r} of the package {_named(point)} is left out: the name is "
                    "that of ctxext's own"
                )
        return found

    def _files(self) -> dict[str, str]:
        """The package's own entries by name, and their modules; none where the package is a lone
        file, as when carried."""
        folders = getattr(importlib.import_module(self._package), "__path__", ())
        return {
            found.name.replace("_", "-"): f"{self._package}.{found.name}"
            + (f".{self.what}" if found.ispkg else "")
            for found in pkgutil.iter_modules(folders)
            if found.name not in self._private
        }

    def get(self, name: str) -> type[T]:
        """The class registered as `name`; UsageError, with the nearest name, if there is none."""
        if name not in self._found:
            files = self._files()
            if name in files:
                importlib.import_module(files[name])
            elif name in self._offers():
                self._take(name)
            else:
                raise UsageError(
                    f"unknown {self.what} {name!r}: {did_you_mean(name, self.names())}"
                )
        return self._found[name]

    def _offers(self) -> dict[str, list[EntryPoint]]:
        """What other packages bring, by name."""
        return _offers(self._package, tuple(sys.path))

    def _take(self, name: str) -> None:
        """Have another package register what it brings; UsageError if it does not."""
        first, *more = self._offers()[name]
        what = f"{self.what} {name!r} of the package {_named(first)}"
        if more:
            others = " and ".join(map(_named, more))
            raise UsageError(f"{what} is brought by {others} too: uninstall all but one")
        try:
            first.load()
        except (Exception, SystemExit) as error:  # whatever another package's code may raise
            why = f"{type(error).__name__}: {short(error)}"
            raise UsageError(f"{what} cannot be loaded ({why}): mend or uninstall it") from error
        if not hasattr(self._found.get(name), "describe"):
            self._found.pop(name, None)
            raise UsageError(
                f"{what} is not registered by {first.value}: derive a class from a kind in "
                f"{self._package}.base, and decorate it with @register({name!r})"
            )

    def parse(self, text: str) -> T:
        """One entry from `name` or `name:key=value,key=value`; UsageError names what is wrong."""
        return read_entry(self.get(text.partition(":")[0].strip()), self.what, text)


@functools.lru_cache(maxsize=8)
def _offers(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """The entry points of a group, by name, of the packages on a path."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def _named(point: EntryPoint) -> str:
    return "unknown" if point.dist is None else point.dist.name
