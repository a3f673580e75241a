"""JSON files of numbers that a parameter names as @FILE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctxext.errors import UsageError, short

LARGEST = 2**20  # bytes of a file


def read_bytes(name: str, written: str) -> bytes:
    """A file's content; UsageError where it cannot be had, or is larger than any list.

    Args:
        written: how a spec names the file, for messages.
    """
    try:
        if not Path(name).is_file():
            raise UsageError(f"there is no file {name!r}: give {written}")
        with Path(name).open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{name!r} cannot be read ({why}): give another file") from None
    if len(content) > LARGEST:
        raise UsageError(f"{name!r} has more than {LARGEST} bytes: give a file of a few lists")
    return content


def parse_json(content: bytes, name: str, holds: str) -> Any:
    """What a file's content says; UsageError, which names what it is to hold, for no JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        why = short(error, 100)
        raise UsageError(f"{name!r} is not JSON ({why}): give {holds}") from None


def numbers(value: Any, key: str, name: str, least: float, most: float) -> tuple[float, ...]:
    """A list of numbers from `least` to `most`; UsageError for anything else."""
    if not isinstance(value, list):
        raise UsageError(f"{key} of {name!r} must be a list of numbers")
    for i, x in enumerate(value):
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not least <= x <= most:
            raise UsageError(
                f"{key}[{i}] of {name!r} is {str(x)[:40]!r}: give numbers of {least:g} … {most:g}"
            )
    return tuple(map(float, value))
