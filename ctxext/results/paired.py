"""Standard errors of differences between cells that read the same windows.

Each window's share in a number says how far the number would move with it (its influence); the
influences of two numbers over the same windows are subtracted window by window, so that what
makes a window hard for both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ctxext.results.record import Record


class Difference(NamedTuple):
    """A value minus another on the records' scale, and its standard error over windows."""

    value: float
    stderr: float | None


def difference(record: Record, other: Record) -> Difference:
    """The first record's value minus the other's, of the same metric.

    The standard error is paired: that of a difference of two ratios of sums over the same windows
    (for perplexity times its slope, which is its value). None where a record does not keep what was
    measured window by window, where the windows do not hold the same number of scored tokens, or
    where there is one window.
    """
    ours, theirs = influences(record), influences(other)
    value = record["value"] - other["value"]
    if not ours or not theirs or record["by_window"]["n"] != other["by_window"]["n"]:
        return Difference(value, None)
    return Difference(value, spread([a - b for a, b in zip(ours, theirs, strict=True)]))


def influences(record: Record) -> list[float]:
    """What each window adds to the deviation of the record's value; [] where that is not kept."""
    kept = record.get("by_window")
    if not kept or record["metric"] not in ("perplexity", "accuracy"):
        return []
    loss = record["metric"] == "perplexity"
    counts, sums = kept["n"], kept["nll" if loss else "hits"]
    total = sum(counts)
    mean = sum(sums) / total
    slope = record["value"] if loss else 1.0
    return [slope * (x - mean * n) / total for x, n in zip(sums, counts, strict=True)]


def spread(deviations: Sequence[float]) -> float | None:
    """The standard error of a sum of deviations, one for each window; None for one window, or
    where it is beyond all numbers."""
    count = len(deviations)
    if count < 2:
        return None
    error = math.sqrt(sum(x * x for x in deviations) * count / (count - 1))
    return error if math.isfinite(error) else None
