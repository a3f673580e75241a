"""Options that several commands have, each said once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctxext import choices
from ctxext.request.options import (
    OPTIONS,
    Option,
    check_device_map,
    of_bytes,
    of_count,
    of_tokens,
    of_words,
)

if TYPE_CHECKING:
    from ctxext.models.loading import Source


def shared(name: str) -> Any:
    """One that a grid file has as a key too."""
    return _option(OPTIONS[name])


def word(name: str, help: str, kind: Any, what: str = "") -> Any:
    """One that takes the words of a type alone; messages call it `what`, or by its name."""
    return _option(of_words(name, help, kind, what))


def count(name: str, help: str, least: int = 1) -> Any:
    """One that takes a whole number from `least` on."""
    return _option(of_count(name, help, least))


def tokens(name: str, help: str) -> Any:
    """One that takes a number of tokens."""
    return _option(of_tokens(name, help))


def size(name: str, help: str) -> Any:
    """One that takes a number of bytes."""
    return _option(of_bytes(name, help))


def _option(one: Option) -> Any:
    def parse(given: Any) -> Any:  # Typer hands the default too
        return one.read(f"--{one.name}", given) if isinstance(given, str) else given

    complete = one_of(one.words) if one.words else None
    return typer.Option(
        f"--{one.name}", help=one.help, parser=parse, metavar=one.takes, autocompletion=complete
    )


def one_of(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Completes one of these words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _names(package: str, separator: str) -> Callable[[str], list[str]]:
    """Completes the last of several names that a registry has."""

    def complete(incomplete: str) -> list[str]:
        from importlib import import_module

        head, between, last = incomplete.rpartition(separator)
        names = import_module(package).names()
        return [f"{head}{between}{name}" for name in names if name.startswith(last)]

    return complete


def _aliases(incomplete: str) -> list[str]:
    from ctxext.models.aliases import ALIASES

    return one_of(ALIASES)(incomplete)


METHOD_NAMES = _names("ctxext.methods", "+")
TASK_NAMES = _names("ctxext.tasks", ",")


def listed(name: str, help: str = "", **more: Any) -> Any:
    """One that may be given again."""
    return typer.Option(f"--{name}", help=help or OPTIONS[name].help, **more)


Model = Annotated[str, typer.Option(help=OPTIONS["model"].help, autocompletion=_aliases)]
Lengths = Annotated[list[str], listed("len")]
Methods = Annotated[list[str], listed("method", autocompletion=METHOD_NAMES)]
Json = Annotated[bool, typer.Option("--json", help="JSON, a record a line, instead of a table.")]
Out = Annotated[Path, typer.Option(help="Folder of the record files.")]
TrainLen = Annotated[int | None, shared("train-len")]
OwnScaling = Annotated[choices.OwnScaling, shared("own-scaling")]
Revision = Annotated[str | None, shared("revision")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.")
]
Attn = Annotated[choices.Attention, shared("attn")]
Dtype = Annotated[choices.Dtype, shared("dtype")]
Device = Annotated[str, shared("device")]
Batch = Annotated[int | None, shared("batch-size")]
Tokens = Annotated[int | None, shared("tokens")]
LoadIn = Annotated[choices.Quantization | None, shared("load-in")]
DeviceMap = Annotated[choices.DeviceMap | None, shared("device-map")]


def source_of(context: typer.Context) -> Source:
    """The model that a command is given, by those of its parameters that a source has too."""
    from ctxext.models.loading import Source

    known = {field.name for field in fields(Source)}
    given = {name: value for name, value in context.params.items() if name in known}
    check_device_map(given.get("device_map"), given.get("device", "auto"))
    return Source(context.params["model"], **given)
