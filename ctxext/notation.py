"""What a user writes: `name:key=value,key=value`, and lengths in tokens such as `16k`.

    read_entry(cls, "method", "rerope:window=1k")    a method
    format_entry("rerope", {"window": 1024})         its text
    parse_length("16k"), format_length(16384)        16384, "16k"

A dataclass's fields are the parameters that its text may give, and their types say how each value
is written.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
from types import NoneType, SimpleNamespace, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ctxext.errors import UsageError
from ctxext.text import did_you_mean

T = TypeVar("T")
_COUNT = "may be 0, and has no unit"
Count = Annotated[int, _COUNT]  # declares such a field
AUTO: Final = "auto"
Auto = Literal["auto"]  # beside a number, of a field that may go by the length at hand
_NEEDS: dict[Any, str] = {
    int: "a whole number of tokens such as 256 or 1k",
    Count: "a whole number such as 5",
    float: "a finite number such as 8 or 0.625",
    bool: "true or false",
    str: "a text",
}


def read_entry(cls: type[T], what: str, text: str) -> T:
    """An entry of a class from `name` or `name:key=value,key=value`.

    Args:
        cls: a dataclass; a field named by its `positional` may be given without a key.
        what: the kind of the entry, for messages.

    Raises:
        UsageError: a parameter that is unknown, malformed, given twice or missing, or a value
            that is none; the message names what is valid.
    """
    name, colon, rest = text.partition(":")
    positional = getattr(cls, "positional", None)
    given = _split_parameters(text, rest, positional) if colon else {}
    types = parameters(f"{what} {name!r}", cls)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in types:
            valid = did_you_mean(key, types) if types else "it takes none"
            raise UsageError(f"unknown parameter {key!r} in {text!r}: {valid}")
        values[key] = _convert(text, key, value, types[key])
    if positional and positional not in values:
        members = ", ".join(cls.members())  # type: ignore[attr-defined]
        valid = f", one of: {members}" if members else ""
        raise UsageError(f"{text!r} needs a {positional}: write {name}:{positional.upper()}{valid}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        lacks = field.default is dataclasses.MISSING is field.default_factory
        if lacks and field.name not in values:
            need = f"{name}:{field.name}=VALUE, {_need(types[field.name])}"
            raise UsageError(f"{text!r} needs a {field.name}: write {need}")
    try:
        return cls(**values)
    except UsageError as error:
        raise UsageError(f"{error} (in {text!r})") from None


def parameters(owner: str, cls: Any) -> dict[str, Any]:
    """The type of each field of a dataclass, without its None; `owner` is for messages.

    Raises:
        UsageError: a type that cannot be evaluated, or whose values no spec can write.
    """
    found = {}
    for field in dataclasses.fields(cls):
        kind = field.type
        said = kind if isinstance(kind, str) else inspect.formatannotation(kind)
        what = f"field {field.name!r} of {owner} has the type {said}"
        try:
            found[field.name] = _bare(_resolved(cls, field))
        except Exception as error:  # whatever evaluating an annotation may raise
            raise UsageError(
                f"{what}, which cannot be evaluated ({error}): import its names at run time"
            ) from None
        if not (field.init and _writable(found[field.name])):
            why = "whose values no spec can write" if field.init else "but is not in __init__"
            valid = (
                "int (tokens), Count, float, bool, str or Literal, or a number and a Literal, each "
                "alone or with None"
            )
            raise UsageError(f"{what}, {why}: declare {valid}")
    return found


def _resolved(cls: Any, field: dataclasses.Field[Any]) -> Any:
    """What a field's annotation, which may be text, means where it was written."""
    fields = {c: vars(c).get("__dataclass_fields__", {}) for c in cls.__mro__}
    *_, writer = (c for c in cls.__mro__ if fields[c].get(field.name) is field)
    module = vars(sys.modules.get(writer.__module__, SimpleNamespace()))
    alone = SimpleNamespace(__annotations__={field.name: field.type})
    return get_type_hints(alone, dict(vars(writer)), module, include_extras=True)[field.name]


def _bare(kind: Any) -> Any:
    """A type without None, and without notes but that of `Count`."""
    some = [one for one in get_args(kind) if one is not NoneType]
    if get_origin(kind) is Annotated:
        return Count if _COUNT in some else _bare(some[0])
    if get_origin(kind) not in (Union, UnionType):
        return kind
    return _bare(some[0]) if len(some) == 1 else Union[tuple(map(_bare, some))]  # noqa: UP007


def _either(kind: Any) -> tuple[Any, Any]:
    """A number's type and the Literal beside it; None for what a type lacks of it."""
    if get_origin(kind) is not Union:
        return (None, kind) if get_origin(kind) is Literal else (kind, None)
    some = get_args(kind)
    words = [one for one in some if get_origin(one) is Literal]
    numbers = [one for one in some if one in (int, Count, float)]
    alone = len(some) == 2 and len(words) == len(numbers) == 1
    return (numbers[0], words[0]) if alone else (kind, None)


def _choices(kind: Any) -> dict[str, Any]:
    """The values of a Literal by what a spec writes for them; none for another type."""
    some = get_args(kind) if get_origin(kind) is Literal else ()
    return {format_value(one): one for one in some if type(one) in (str, int, bool)}


def _writable(kind: Any) -> bool:
    plain, words = _either(kind)
    some = set(get_args(words)) - {None}
    known = plain is None or plain in tuple(_NEEDS)
    return known and (words is None or 0 < len(some) == len(_choices(words)))


def _need(kind: Any) -> str:
    plain, words = _either(kind)
    listed = ", ".join(_choices(words))
    if plain is None:
        return f"one of: {listed}"
    return _NEEDS[plain] + (f", or {listed}" if words is not None else "")


def _split_parameters(text: str, rest: str, positional: str | None = None) -> dict[str, str]:
    """The values by key; the first may be given without one where there is a `positional`."""
    given: dict[str, str] = {}
    for number, item in enumerate(rest.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if positional and number == 0 and key and not equals:
            key, equals, value = positional, "=", key
        if not (key and equals and value):
            raise UsageError(f"malformed parameter {item!r} in {text!r}: write name:key=value")
        if key in given:
            raise UsageError(f"parameter {key!r} is given twice in {text!r}")
        given[key] = value
    return given


def _convert(text: str, key: str, value: str, kind: Any) -> int | float | bool | str:
    """The value as the field's declared type: `int` takes 4k, `float` is finite, `bool` a word,
    `Count` 0 or more."""
    asked, (kind, words) = kind, _either(kind)
    try:
        if value in (known := _choices(words)):
            return known[value]  # type: ignore[no-any-return]
        if kind is str:
            return value
        if kind == Count:
            return 0 if value == "0" else parse_length(value)
        if kind is int:
            return parse_length(value)
        if kind is float:
            number = float(value)
            if not math.isfinite(number):
                raise ValueError
            return number
        return {"true": True, "false": False}[value.lower() if kind is bool else value]
    except (KeyError, ValueError, UsageError):
        need = _need(asked)
        raise UsageError(f"bad value {value!r} for {key!r} in {text!r}: give {need}") from None


def is_length(value: object) -> TypeGuard[int]:
    """Whether it is a whole number of tokens from 2 on, below 2^31."""
    return isinstance(value, int) and not isinstance(value, bool) and 2 <= value < 2**31


def parse_length(text: str) -> int:
    """A length in tokens: `512`, `16k` (16384), `1m` (1048576).

    Raises:
        UsageError: the text is not such a length, is zero, or is above 2^31.
    """
    body, unit = text.strip().lower(), 1
    if body[-1:] in ("k", "m"):
        body, unit = body[:-1], {"k": 1024, "m": 1024**2}[body[-1]]
    if (
        not (body.isascii() and body.isdigit())
        or len(body) > 10
        or not 0 < int(body) * unit < 2**31
    ):
        raise UsageError(f"malformed length {text!r}: give tokens such as 512, 16k or 1m")
    return int(body) * unit


def format_length(tokens: int) -> str:
    """The shortest notation that `parse_length` reads back: 16384 → `16k`."""
    for unit, letter in ((1024**2, "m"), (1024, "k")):
        if tokens and tokens % unit == 0:
            return f"{tokens // unit}{letter}"
    return str(tokens)


_UNITS = {
    **{f"{letter}ib": 1024**n for n, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 1000**n for n, letter in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *([kmgt]i?b)", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """A size in bytes: `24GiB` (24 · 2^30), `80GB` (80 · 10^9), `512MiB`.

    Raises:
        UsageError: the text is no such size, is zero, or is 2^60 or more.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if not 0 < size < 2**60:
        raise UsageError(f"malformed size {text!r}: give bytes such as 24GiB, 80GB or 512MiB")
    return size


def format_entry(name: str, values: dict[str, int | float | bool | str | None]) -> str:
    """`name:key=value,…` of what is not None; `read_entry` reads it back unchanged."""
    parts = [f"{key}={format_value(v)}" for key, v in values.items() if v is not None]
    return name + (":" + ",".join(parts) if parts else "")


def format_value(value: int | float | bool | str) -> str:
    """A value as a spec writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value).replace("e+", "e")  # a plus would part two methods
