"""A grid file: models × methods × lengths × tasks × seeds × data, as one request for each model
and text."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError, short
from ctxext.models.loading import Source
from ctxext.request import lists
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.options import COMMON, LISTS, SOURCE, Option, check_data, check_device_map
from ctxext.text import did_you_mean

KEYS = (*LISTS, *COMMON, *SOURCE)
MODEL_KEYS = ("model", *SOURCE)
_MAX_BYTES = 1 << 20


def read_grid(path: Path, base: EvaluationRequest) -> tuple[EvaluationRequest, ...]:
    """The requests of a YAML file; each of KEYS has a value or a list of them.

    Model folders and data files are named from the working directory, as on the command line. A
    model is a name, or a mapping with some of MODEL_KEYS, which are for it alone; the same keys
    beside `models` are for all of them.

    Args:
        base: what the file does not say: by other options, or their defaults.

    Raises:
        UsageError: no such file, not YAML, or a bad key or value in it.
    """
    grid = _load(path)
    try:
        if grid.get("lengths") is None:
            raise UsageError("lengths are missing: add for example lengths: [512, 4k]")
        common = replace(
            base,
            methods=lists.parse_methods(_texts(grid, "methods")),
            lengths=lists.parse_lengths(_texts(grid, "lengths")),
            tasks=lists.parse_tasks(_texts(grid, "tasks", "ppl")),
            seeds=lists.parse_seeds(_texts(grid, "seeds", "0")),
            **_read(grid, COMMON),
        )
        shared = replace(base.source, **_read(grid, SOURCE))
        sources = [_source(entry, shared) for entry in _list("models", grid.get("models", "tiny"))]
        data = [check_data(text) for text in _texts(grid, "data")] or [base.data]
    except UsageError as error:
        raise UsageError(f"grid {str(path)!r}: {error}") from None
    pairs = dict.fromkeys((source, text) for source in sources for text in data)
    return tuple(replace(common, source=source, data=text) for source, text in pairs)


def _load(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses a key that is there twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            names = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
            for name, times in names.most_common(1):
                if times > 1:
                    raise UsageError(f"grid {str(path)!r}: {name[:60]} is there twice")
            return found

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"grid {str(path)!r} is larger than 1 MiB: give a grid file")
        grid = yaml.load(path.read_bytes().decode("utf-8-sig"), Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UsageError(f"cannot read the grid {str(path)!r}: {short(why)}") from None
    if not isinstance(grid, dict):
        raise UsageError(f"grid {str(path)!r} is no mapping: give {', '.join(KEYS)}")
    for key in grid:
        if key not in KEYS:
            raise UsageError(
                f"grid {str(path)!r} has an unknown key {_shown(key)!r}: "
                f"{did_you_mean(_shown(key), KEYS)}"
            )
    return grid


def _shown(value: Any) -> str:
    """A short form for messages; aliases can make a list longer than memory."""
    large = isinstance(value, int) and value.bit_length() > 64
    return "…" if large or isinstance(value, (list, dict, set, tuple)) else str(value)[:60]


def _list(key: str, value: Any) -> list[Any]:
    if value == []:
        raise UsageError(f"{key} is empty: give a value, or leave it out")
    return value if isinstance(value, list) else [value]


def _texts(grid: dict[str, Any], key: str, *default: str) -> list[str]:
    """The texts and whole numbers under a key; other values are refused."""
    if grid.get(key) is None:
        return list(default)
    values = _list(key, grid[key])
    for value in values:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not isinstance(value, str) and not (whole and value.bit_length() <= 64):
            raise UsageError(
                f"bad value {_shown(value)!r} in {key}: give text or whole numbers below 2^64"
            )
    return [str(value) for value in values]


def _one(grid: dict[str, Any], key: str) -> str | None:
    texts = _texts(grid, key)
    if len(texts) > 1:
        raise UsageError(f"{key} has {len(texts)} values: give one")
    return texts[0] if texts else None


def _read(grid: dict[str, Any], options: dict[str, Option]) -> dict[str, Any]:
    """What a mapping gives for some of the options, by the names of fields."""
    given = ((option, _one(grid, key)) for key, option in options.items())
    return {one.field: one.read(one.name, text) for one, text in given if text is not None}


def _source(entry: Any, base: Source) -> Source:
    """The model of an entry of `models`."""
    if not isinstance(entry, dict):
        entry = {"model": entry}
    for key in entry:
        if key not in MODEL_KEYS:
            valid = did_you_mean(_shown(key), MODEL_KEYS)
            raise UsageError(f"a model has an unknown key {_shown(key)!r}: {valid}")
    name = _one(entry, "model")
    if not name:
        raise UsageError("a model has no name: give its alias, Hub id or folder")
    source = replace(base, name=name, **_read(entry, SOURCE))
    check_device_map(source.device_map, source.device)
    return source
