"""Differences between cells that read the same windows or samples, and how sure they are.

Each window's share in a number says how far the number would move with it (its influence); the
influences of two numbers over the same windows are subtracted window by window, so that what
makes a window hard for both cancels. So are the scores of the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ctxext.records.intervals import Interval, apart, interval, student, tango
from ctxext.records.metrics import perfect_score
from ctxext.records.record import Record, over_windows

MANY = 30  # paired scores that differ, from which Student's interval is taken


class Difference(NamedTuple):
    """A value minus another on the records' scale, its standard error over windows or samples if
    these are the same, and its 95% interval if the values are of samples."""

    value: float
    stderr: float | None = None
    interval: Interval | None = None


def difference(record: Record, other: Record) -> Difference:
    """The first record's value minus the other's, of the same metric.

    Over windows the standard error is paired: that of a difference of two ratios of sums over the
    same windows (for perplexity times its slope, which is its value). None where a record does not
    keep what was measured window by window, where the windows do not hold the same number of scored
    tokens, or where there is one window.

    Over samples there is an interval too: Tango's of paired shares; Student's of other paired
    scores, MANY of which differ; else that of two values of different samples, which is wider.
    """
    if not (over_windows(record) or over_windows(other)):
        return _over_samples(record, other)
    ours, theirs = influences(record), influences(other)
    our, their = record.get("by_window"), other.get("by_window")
    value = record["value"] - other["value"]
    if not (our and their and ours and theirs) or our["n"] != their["n"]:
        return Difference(value)
    return Difference(value, spread([a - b for a, b in zip(ours, theirs, strict=True)]))


def _over_samples(record: Record, other: Record) -> Difference:
    ours, theirs = record["value"], other["value"]
    our, their = interval(record), interval(other)
    unpaired = apart(ours, theirs, our, their) if our and their else None
    steps, value = _steps(record, other), ours - theirs
    if not steps:
        return Difference(value, None, unpaired)
    count, most = len(steps), perfect_score(record)
    stderr = spread([(step - value) / count for step in steps])
    if most and set(steps) <= {-most, 0, most}:
        share = tango(steps.count(most), steps.count(-most), count)
        return Difference(value, stderr, share.times(most))
    if stderr and count - steps.count(0) >= MANY:
        low, high = student(value, stderr, count)
        within = Interval(max(low, -most), min(high, most)) if most else Interval(low, high)
        return Difference(value, stderr, within)
    return Difference(value, stderr, unpaired)


def _steps(record: Record, other: Record) -> list[float]:
    """Sample by sample the first's score minus the other's; [] where the prompts are not the same,
    or not known to be."""
    ours, theirs = record.get("by_sample"), other.get("by_sample")
    if not ours or not theirs or ours["prompts"] != theirs["prompts"]:
        return []
    if len(ours["scores"]) != len(theirs["scores"]):
        return []
    return [a - b for a, b in zip(ours["scores"], theirs["scores"], strict=True)]


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
