"""What a score cost beside rope: speed and memory of records that can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ctxext.records import Record
from ctxext.records.record import Timed

_SAME_TIME = ("device", "length", "windows", "processes")  # of records whose times can be compared
_SAME_BATCHES = (*_SAME_TIME, "batch_size", "prefill_chunk")
_FARTHEST = 1e6  # no ratio of times is higher, or lower than one over it
PREFILL, DECODE = "prefill", "decode"
_PREFILL_SECONDS: Timed = "prefill_seconds"


class Cost(NamedTuple):
    """Tokens per second, bytes at the peak, and each over that of rope where comparable.

    `speed` is of windows that are read whole. Where prompts are answered, answers differ in
    length: their reading and the steps of decoding each have a speed of their own.
    """

    speed: float | None = None
    speed_ratio: float | None = None
    memory: float | None = None
    memory_ratio: float | None = None
    prefill: float | None = None
    prefill_ratio: float | None = None
    decode: float | None = None
    decode_ratio: float | None = None


NO_COST = Cost()


def cost_of(record: Record, rope: Record | None) -> Cost:
    """What a finished record took."""
    memory = None
    if rope is not None and _alike(record, rope, _SAME_BATCHES):
        memory = _over(record["peak_memory_bytes"], rope["peak_memory_bytes"])
    held = (record["peak_memory_bytes"], memory)
    if record["buckets"]:
        time, speed = time_ratio(record, rope), record["tokens_per_second"]
        return Cost(speed, 1 / time if time else None, *held)
    prefill, decode = (_rate_beside(record, rope, kind) for kind in (PREFILL, DECODE))
    return Cost(None, None, *held, *prefill, *decode)


def time_ratio(record: Record, rope: Record | None) -> float | None:
    """The time that the same tokens take, over that of rope on the same device: seconds of the
    same windows, or of reading a token of the same prompts."""
    if record["buckets"]:
        same = rope is not None and _alike(record, rope, _SAME_TIME)
        return _over(record["seconds"], rope["seconds"]) if rope is not None and same else None
    _, ratio = _rate_beside(record, rope, PREFILL)
    return 1 / ratio if ratio else None


def _rate_beside(
    record: Record, rope: Record | None, kind: str
) -> tuple[float | None, float | None]:
    """Tokens per second, and over those of rope for the same prompts in batches of one size."""
    rate = _rate(record, kind)
    if rope is None or not _alike(record, rope, _SAME_BATCHES):
        return rate, None
    return rate, _over(rate, _rate(rope, kind))


def _rate(record: Record, kind: str) -> float | None:
    spent: Mapping[str, Any] = record
    tokens, seconds = spent.get(f"{kind}_tokens"), spent.get(f"{kind}_seconds")
    return tokens / seconds if tokens and seconds else None


def times_over_rope(at: dict[str, Record], bench: list[Record]) -> tuple[dict[str, float], str]:
    """Each method's time over that of rope, and what time that is.

    Of prefill, from bench records of one machine and setting, unless the scores' own seconds,
    which are compared on one device only, tell of more methods.
    """
    settings: dict[tuple[str, ...], dict[str, float]] = {}
    for record in sorted(bench, key=lambda r: (r["created"], r["key"])):
        ratio = record["ratio"][_PREFILL_SECONDS] if record["ratio"] else None
        for method, scored in at.items():
            if ratio and _same_setting(scored, record) and believable(ratio["median"]):
                setting = record["device"], str(record["batch_size"]), str(record["seed"])
                settings.setdefault(setting, {})[method] = ratio["median"]
    best = max(sorted(settings), key=lambda s: len(settings[s]), default=None)
    timed = settings[best] if best else {}
    own = {m: ratio for m, r in at.items() if (ratio := time_ratio(r, at.get("rope")))}
    if best and len(timed) >= max(2, len(own)):
        return timed, f"prefill time over that of rope, from bench records on {best[0]}"
    windows = any(record["buckets"] for record in at.values())
    return own, f"{'evaluation' if windows else 'prefill'} time over that of rope"


def _same_setting(scored: Record, timed: Record) -> bool:
    """Whether a bench record is of the model, method, length and path that was scored."""
    ours, theirs = (
        (r["model"], r["method"], r["length"], r["dtype"], r["attention"]) for r in (scored, timed)
    )
    weights = {r["model_sha256"] for r in (scored, timed)} - {None}
    return ours == theirs and len(weights) <= 1


def believable(ratio: float) -> bool:
    return 1 / _FARTHEST < ratio < _FARTHEST


def _alike(record: Record, rope: Record, fields: tuple[str, ...]) -> bool:
    finished = record["status"] == rope["status"] == "ok"
    ours, theirs = ({"processes": 1, **one} for one in (record, rope))
    return finished and all(ours.get(field) == theirs.get(field) for field in fields)


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
