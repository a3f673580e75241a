"""A registry: it finds its entries by file name.

Each file of the package a registry looks into holds one entry, and the file's name is the
entry's name with `_` for `-`; of a folder, the file named after the kind does, as `task.py`. So
names are known without importing anything.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ctxext.errors import UsageError
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
        return sorted({*self._files(), *self._found})

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
            if name not in files:
                raise UsageError(
                    f"unknown {self.what} {name!r}: {did_you_mean(name, self.names())}"
                )
            importlib.import_module(files[name])
        return self._found[name]

    def parse(self, text: str) -> T:
        """One entry from `name` or `name:key=value,key=value`; UsageError names what is wrong."""
        return read_entry(self.get(text.partition(":")[0].strip()), self.what, text)
