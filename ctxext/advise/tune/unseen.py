"""The winner against the best default on windows or samples that the search has not read."""

from __future__ import annotations

import math

from ctxext.records import Record
from ctxext.records.paired import Difference, difference
from ctxext.records.record import BySample, ByWindow
from ctxext.tasks.base import mean_score


def compare(ours: Record, theirs: Record, seen: int) -> tuple[Difference, int] | None:
    """The difference of two records beyond what was seen, paired, and what it is over.

    Args:
        ours, theirs: finished records that read the same windows or samples.
        seen: how many of these, from the first, do not count.

    Returns:
        Ours minus theirs on the records' scale, and how many windows or samples are left; None
        where none are, or where the records do not keep what was measured of each.
    """
    kept = [by["prompts"] if (by := r.get("by_sample")) else None for r in (ours, theirs)]
    rest = [_rest(record, seen) for record in (ours, theirs) if kept[0] == kept[1]] or [None, None]
    if rest[0] is None or rest[1] is None:
        return None
    return difference(rest[0], rest[1]), rest[0]["windows"]


def _rest(record: Record, seen: int) -> Record | None:
    """The record as if it had only read what comes after the windows or samples seen."""
    if kept := record.get("by_sample"):
        scores = kept["scores"][seen:]
        if not scores:
            return None
        value, stderr = mean_score(scores)
        some: BySample = {**kept, "scores": scores}
        found: Record = {**record, "by_sample": some, "n": len(scores), "windows": len(scores)}
        return {**found, "value": value, "stderr": stderr}
    return _rest_of_windows(record, seen)


def _rest_of_windows(record: Record, seen: int) -> Record | None:
    """That of a perplexity.

    Where sums are kept of neighbours together, what lies with a window seen is left out too.
    """
    kept, windows = record.get("by_window"), record["windows"]
    if not kept or windows <= seen:
        return None
    count = len(kept["n"])
    start = (seen - 1) * count // windows + 1
    n, nll, hits = kept["n"][start:], kept["nll"][start:], kept["hits"][start:]
    rest: ByWindow = {"n": n, "nll": nll, "hits": hits}
    left = windows + -start * windows // count
    try:
        value = math.exp(math.fsum(nll) / sum(n))
    except ArithmeticError:
        return None
    return {**record, "by_window": rest, "windows": left, "value": value}
