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
        ours_by_name, theirs_by_name = (_scores(record, task, out) for record in (ours, theirs))
        if list(ours_by_name) != list(theirs_by_name):
            return None
        steps = [score - theirs_by_name[name] for name, score in ours_by_name.items()][seen:]
        if not steps:
            return None
        error = statistics.stdev(steps) / math.sqrt(len(steps)) if len(steps) > 1 else None
        return Difference(statistics.fmean(steps), error), len(steps)
    rest = [_rest(record, seen) for record in (ours, theirs)]
    if rest[0] is None or rest[1] is None:
        return None
    return difference(rest[0], rest[1]), rest[0]["windows"]


def _rest(record: Record, seen: int) -> Record | None:
    """The record of a perplexity as if it had only read what comes after the windows seen.

    Where sums are kept of neighbours together, what lies with a window seen is left out too.
    """
    kept, windows = record.get("by_window"), record["windows"]
    if not kept or windows <= seen:
        return None
    count = len(kept["n"])
    start = (seen - 1) * count // windows + 1
    rest = {name: values[start:] for name, values in kept.items()}
    left = windows + -start * windows // count
    try:
        value = math.exp(math.fsum(rest["nll"]) / sum(rest["n"]))
    except ArithmeticError:
        return None
    return {**record, "by_window": rest, "windows": left, "value": value}


def _scores(record: Record, task: SampleTask, out: Path) -> dict[str, float]:
    """The score of each sample by its name, in order; none where the answers are not there, or
    are not those of the record."""
    try:
        path = out / record["predictions"]
        lines = path.read_bytes().splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        found = {str(row["name"]): task.score([row]).value for row in rows}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return found if len(found) == record["n"] else {}
