"""Short names for titles, legends and tables: as little of a name as tells it from the others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

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
