"""What a score cost beside rope: seconds and memory of records that can be compared."""

from __future__ import annotations

import math
from typing import NamedTuple

from ctxext.results import Record

_SAME_TIME = ("device", "length", "windows")  # what records share whose times can be compared
_SAME_MEMORY = (*_SAME_TIME, "batch_size", "prefill_chunk")
_FARTHEST = 1e6  # no ratio of times is higher, or lower than one over it


class Cost(NamedTuple):
    """Tokens per second, bytes at the peak, and both over those of rope where comparable."""

    speed: float | None = None
    speed_ratio: float | None = None
    memory: float | None = None
    memory_ratio: float | None = None


NO_COST = Cost()


def cost_of(record: Record, rope: Record | None) -> Cost:
    """What a finished record took."""
    memory = None
    if rope is not None and _alike(record, rope, _SAME_MEMORY):
        memory = _over(record["peak_memory_bytes"], rope["peak_memory_bytes"])
    time, speed = time_ratio(record, rope), record["tokens_per_second"]
    return Cost(speed, 1 / time if time else None, record["peak_memory_bytes"], memory)


def time_ratio(record: Record, rope: Record | None) -> float | None:
    """Seconds over those of rope, for the same windows on the same device."""
    if rope is None or not _alike(record, rope, _SAME_TIME):
        return None
    return _over(record["seconds"], rope["seconds"])


def believable(ratio: float) -> bool:
    return 1 / _FARTHEST < ratio < _FARTHEST


def _alike(record: Record, rope: Record, fields: tuple[str, ...]) -> bool:
    finished = record["status"] == rope["status"] == "ok"
    return finished and all(record.get(field) == rope.get(field) for field in fields)


def _over(value: float | None, base: float | None) -> float | None:
    ratio = value / base if value and base else math.nan
    return ratio if believable(ratio) else None


def bytes_text(count: float) -> str:
    """`1.17 GiB`."""
    scale, unit = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{short(count / scale)} {unit}"


def short(number: float) -> str:
    """Three digits, or all before the point; an exponent from a million on."""
    if number >= 1e6:
        return f"{number:.3g}"
    before = math.floor(math.log10(number)) if number >= 0.01 else -2
    return f"{number:.{max(0, 2 - before)}f}"
