"""Short names for titles, legends and tables: as little of a name as tells it from the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath

from ctxext.errors import UsageError
from ctxext.records import Record
from ctxext.system.names import printable
from ctxext.text import did_you_mean

_Part = tuple[str, dict[str, str]]  # a method's name, and its parameters


def short_path(name: str, among: Iterable[str]) -> str:
    """The last names of a path or of a Hub id, as few as no other of `among` ends in.

    What stands behind a comma, as in `hf:org/set,config=x`, stays.
    """
    others = {tuple(_names(other)) for other in among} - {tuple(_names(name))}
    parts, comma, rest = _names(name), *name.partition(",")[1:]
    for count in range(1, len(parts)):
        if not any(other[-count:] == tuple(parts[-count:]) for other in others):
            return "/".join(parts[-count:]) + comma + rest
    return name


def _names(name: str) -> list[str]:
    """The parts of what may be a path."""
    path = name.partition(",")[0]
    return [part for part in path.replace("\\", "/").split("/") if part] or [path]


def short_methods(methods: Iterable[str]) -> dict[str, str]:
    """For each method, as it was asked for, its names and those parameters alone in which it
    differs from others of these names; of a file its own name."""
    whole = list(dict.fromkeys(methods))
    read = {method: [_parts(part) for part in method.split("+")] for method in whole}
    alike: dict[tuple[str, ...], list[str]] = {}
    for method, parts in read.items():
        alike.setdefault(tuple(name for name, _ in parts), []).append(method)
    found = {}
    for names, some in alike.items():
        for method in some:
            rows = [[read[other][place][1] for other in some] for place in range(len(names))]
            found[method] = "+".join(
                _written(part, row) for part, row in zip(read[method], rows, strict=True)
            )
    texts = list(found.values())
    return {m: found[m] if texts.count(found[m]) == 1 else m for m in whole}


def parse_label(text: str, known: Iterable[str]) -> tuple[str, str]:
    """The method and its name of `METHOD=NAME`, where both may have a `=`.

    Args:
        known: methods as they were asked for, of which it is the longest that fits.

    Raises:
        UsageError: it names none of them, or has no name that can be shown.
    """
    known = [method for method in known if method != "rope"]
    method = max((m for m in known if text.startswith(f"{m}=")), key=len, default=None)
    if method is None:
        head = text.rpartition("=")[0] or text
        raise UsageError(
            f"bad value {text!r} for --label: give METHOD=NAME of a method with a record but rope; "
            f"{did_you_mean(head, known)}"
        )
    name = text.removeprefix(f"{method}=").strip()
    if not name or ":" in name or name != printable(name):
        raise UsageError(f"bad name {name!r} in --label {text!r}: give words on a line, without :")
    return method, name


def labelled(records: Iterable[Record], names: Mapping[str, str]) -> list[Record]:
    """The records with these names for methods.

    Raises:
        UsageError: two methods would have one name.
    """
    records = list(records)
    shown = {method: names.get(method, method) for method in (r["requested"] for r in records)}
    texts = list(shown.values())
    for method, name in names.items():
        if texts.count(name) > 1:
            raise UsageError(f"bad name {name!r} in --label for {method!r}: another has it too")
    return [{**record, "requested": shown[record["requested"]]} for record in records]


def told(labels: Mapping[str, str]) -> str:
    """A sentence on what the short names stand for; "" where none is short."""
    short = [f"{label} is {method}" for method, label in labels.items() if label != method]
    return printable(f"{'; '.join(short)}.") if short else ""


def _parts(text: str) -> _Part:
    name, _, rest = text.partition(":")
    pairs = (item.partition("=") for item in rest.split(",") if item)
    return name, {key: value for key, _, value in pairs}


def _written(part: _Part, alike: list[dict[str, str]]) -> str:
    """A method with the parameters in which not all that are alike agree."""
    name, given = part
    differing = {
        key: value for key, value in given.items() if len({one.get(key) for one in alike}) > 1
    }
    values = (f"{key}={_file(value)}" for key, value in differing.items())
    return f"{name}:{','.join(values)}" if differing else name


def _file(value: str) -> str:
    return f"@{PurePath(value[1:]).name}" if value.startswith("@") else value
