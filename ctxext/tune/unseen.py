"""The winner against the best default on windows or samples that the search has not read."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from ctxext.results import Record
from ctxext.results.paired import Difference, difference
from ctxext.tasks.base import SampleTask, Task


def compare(
    ours: Record, theirs: Record, task: Task, seen: int, out: Path
) -> tuple[Difference, int] | None:
    """The difference of two records beyond what was seen, paired, and what it is over.

    Args:
        ours, theirs: finished records that read the same windows or samples.
        seen: how many of these, from the first, do not count.
        out: the folder of the records.

    Returns:
        Ours minus theirs on the records' scale, and how many windows or samples are left; None
        where none are, or where the records do not keep what was measured of each.
    """
    if isinstance(task, SampleTask):
        pairs = list(zip(_scores(ours, task, out), _scores(theirs, task, out), strict=False))[seen:]
        steps = [a - b for a, b in pairs]
        if not steps:
            return None
        error = statistics.stdev(steps) / math.sqrt(len(steps)) if len(steps) > 1 else None
        return Difference(statistics.fmean(steps), error), len(steps)
    rest = [_rest(record, seen) for record in (ours, theirs)]
    if rest[0] is None or rest[1] is None:
        return None
    return difference(rest[0], rest[1]), len(rest[0]["by_window"]["n"])


def _rest(record: Record, seen: int) -> Record | None:
    """The record of a perplexity as if it had only read what comes after the windows seen."""
    kept = record.get("by_window")
    if not kept or len(kept["n"]) <= seen:
        return None
    rest = {name: values[seen:] for name, values in kept.items()}
    return {**record, "by_window": rest, "value": math.exp(sum(rest["nll"]) / sum(rest["n"]))}


def _scores(record: Record, task: SampleTask, out: Path) -> list[float]:
    """The score of each sample, in order; none where the answers are not there."""
    try:
        lines = (out / record["predictions"]).read_text(encoding="utf-8").splitlines()
        return [task.score([json.loads(line)]).value for line in lines]
    except (OSError, ValueError, KeyError):
        return []
